"""Keys of PEFT's LoraConfig, as a saved adapter_config.json has them, and Unsloth and TRL in part."""

from lrft.foreign.entries import Missing, Needless, Table, To

WHOLE = To("adapter.modules_to_save", "modules")
"""Modules that are trained in full."""
LOFTQ = "LoftQ is not supported in this version"
_VARIANT = "a variant of LoRA that lrft does not have; lrft methods lists those that it has"
_START = "options of a start are written behind its name: adapter.method: {NAME: {option: value}}"

KEYS: Table = {
    "base_model_name_or_path": To("model.name", "text"),
    "revision": To("model.revision", "text"),
    "peft_type": To("adapter.method", "method"),
    "task_type": To("training.objective", "task"),
    "r": To("adapter.rank"),
    "lora_alpha": To("adapter.alpha", "above_zero"),
    "lora_dropout": To("adapter.dropout"),
    "target_modules": To("adapter.target_modules", "targets"),
    "exclude_modules": To("adapter.exclude_modules", "targets"),
    "layers_to_transform": To("adapter.layers", "layers"),
    "layers_pattern": Needless("blocks are found by the first number in a layer's name"),
    "rank_pattern": To("adapter.overrides", "override", "rank"),
    "alpha_pattern": To("adapter.overrides", "override", "alpha"),
    "use_rslora": To("adapter.method", "flag", "rslora", "adapter.method: rslora"),
    "use_dora": To("adapter.method", "flag", "dora", "adapter.method: dora"),
    "init_lora_weights": To("adapter.method", "start", says="adapter.method, e.g. pissa"),
    "bias": To("adapter.biases", "words", {"none": "none", "all": "all", "lora_only": "adapted"}),
    "lora_bias": To("adapter", "refused", "lora_B has no bias", "adapter.biases, which trains those of the layers"),
    "fan_in_fan_out": Needless("how a layer stores its weight is seen from the layer"),
    "inference_mode": Needless("lrft train makes a new adapter"),
    "modules_to_save": WHOLE,
    "trainable_token_indices": Missing("adapter.train_tokens names the tokens by their text"),
    "target_parameters": Missing("adapters stand beside linear layers; experts kept as one tensor have none"),
    "loftq_config": Missing(LOFTQ),
    "eva_config": Missing(_START),
    "corda_config": Missing(_START),
    "lora_ga_config": Missing(_START),
    "auto_mapping": Needless("written by PEFT for itself"),
    "peft_version": Needless("written by PEFT for itself"),
    "runtime_config": Needless("settings of PEFT at run time"),
    "ensure_weight_tying": Needless("tied weights stay tied"),
    "megatron_config": Missing("Megatron's layers are not supported"),
    "megatron_core": Needless("has a meaning with megatron_config alone"),
    "qalora_group_size": Needless("has a meaning with use_qalora alone"),
    "layer_replication": Missing("blocks are not repeated"),
    "alora_invocation_tokens": Missing(_VARIANT),
    "arrow_config": Missing(_VARIANT),
    "kasa_config": Missing(_VARIANT),
    "monteclora_config": Missing(_VARIANT),
    "use_bdlora": Missing(_VARIANT),
    "use_qalora": Missing(_VARIANT),
    "velora_config": Missing(_VARIANT),
}
