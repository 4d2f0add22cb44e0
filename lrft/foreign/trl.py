"""TRL: the YAML file of `trl sft`, `trl dpo` and others, or arguments of its scripts."""

from lrft.foreign import lora, quantization, trainer
from lrft.foreign.entries import Missing, Needless, Table, To

TITLE = "TRL"
SIGNS = (
    "dataset_name",
    "use_peft",
    "model_name_or_path",
    "dataset_text_field",
    "dataset_mixture.datasets",
    "assistant_only_loss",
)
COMMANDS = ("trl", "sft.py", "dpo.py", "kto.py", "orpo.py", "cpo.py", "reward_modeling.py")

# What is trained, by the program that is started.
PROGRAMS = {
    **{f"{name}.py": name for name in ("sft", "dpo", "kto", "orpo", "cpo")},
    **{name: name for name in ("sft", "dpo", "kto", "orpo", "cpo", "reward")},
    "reward_modeling.py": "reward",
}

_SAME_COLUMNS = "the format of the rows is found by its columns"

KEYS: Table = {
    **trainer.KEYS,
    **quantization.KEYS,
    "model_name_or_path": To("model.name", "text"),
    "model_revision": To("model.revision", "text"),
    "trust_remote_code": To("model.trust_remote_code"),
    "attn_implementation": To("model.attention", "attention"),
    "torch_dtype": To(
        "training.precision",
        "precision",
        says="model.precision for the frozen weights, training.precision for the computation",
    ),
    "dtype": To(
        "training.precision",
        "precision",
        says="model.precision for the frozen weights, training.precision for the computation",
    ),
    "use_bnb_nested_quant": Needless(quantization.SCALES),
    "use_peft": To("adapter.method", "peft", says="adapter.method"),
    "lora_r": To("adapter.rank"),
    "lora_alpha": To("adapter.alpha", "above_zero"),
    "lora_dropout": To("adapter.dropout"),
    "lora_target_modules": To("adapter.target_modules", "targets"),
    "lora_modules_to_save": lora.WHOLE,
    "lora_task_type": To("training.objective", "task"),
    "use_rslora": lora.KEYS["use_rslora"],
    "use_dora": lora.KEYS["use_dora"],
    "dataset_name": To("data.train", "hub"),
    "dataset_config": To("data.train.configuration", says="data.train.path: hub:OWNER/NAME/CONFIGURATION"),
    "dataset_train_split": To("data.train.split"),
    "dataset_test_split": Missing("data.validation takes a fraction, a number of rows or a file"),
    "dataset_mixture.datasets": To("data.train", "trl_mixture"),
    "dataset_mixture.test_split_size": To("data.validation", "held_out"),
    "dataset_mixture.seed": Needless("training.seed decides the split"),
    "datasets": To("data.train", "trl_mixture"),
    "test_split_size": To("data.validation", "held_out"),
    "dataset_mixer": Missing("data.train with a weight for each entry"),
    "dataset_streaming": To("data.streaming"),
    "dataset_num_proc": Needless("rows are tokenised by as many processes as help"),
    "dataset_text_field": To("data.train.columns", "text_column", says="data.train.columns: {theirs: text}"),
    "dataset_kwargs.": Needless(_SAME_COLUMNS),
    "max_length": To("data.max_length"),
    "max_seq_length": To("data.max_length"),
    "max_prompt_length": Needless("data.max_length counts prompt and answer together"),
    "max_completion_length": Needless("data.max_length counts prompt and answer together"),
    "truncation_mode": To("data.too_long", "words", {"keep_start": "truncate"}),
    "packing": To("data.packing"),
    "packing_strategy": Needless("attention stays inside each row"),
    "padding_free": Needless("rows are packed, or padded to the longest of a micro batch"),
    "pad_to_multiple_of": Needless("rows are packed, or padded to the longest of a micro batch"),
    "eval_packing": Needless("data.packing holds for validation rows too"),
    "assistant_only_loss": To(
        "data.train_on", "words", {"true": "assistant", "false": "all"}, "data.train_on: assistant"
    ),
    "completion_only_loss": To(
        "data.train_on", "words", {"true": "assistant", "false": "all"}, "data.train_on: assistant"
    ),
    "chat_template": To("data.chat_template", "template"),
    "chat_template_path": To("data.chat_template", "template"),
    "eos_token": Needless("the tokenizer's own end of turn is used"),
    "pad_token": Needless("padding is never trained on"),
    "activation_offloading": To("training.activation_offload"),
    "loss_type": To("training.objective", "loss", says="training.objective: {dpo: {loss: ...}}"),
    "beta": To("training.objective.beta"),
    "label_smoothing": To("training.objective.label_smoothing", "above_zero"),
    "rpo_alpha": To("training.objective.rpo_alpha"),
    "simpo_gamma": To("training.objective.gamma"),
    "cpo_alpha": To("training.objective.alpha"),
    "desirable_weight": To("training.objective.desirable_weight"),
    "undesirable_weight": To("training.objective.undesirable_weight"),
    "precompute_ref_log_probs": Needless(
        "the reference's answers are kept: training.objective: {dpo: {reference: cached}}, the default"
    ),
    "ref_model_init_kwargs": Needless("the reference is the base with the adapter switched off"),
    "model_init_kwargs": Missing("model.precision, model.attention and model.revision say it"),
    "sync_ref_model": Missing("the reference stays the base"),
    "non_eos_penalty": Missing("no such term in a loss"),
    "trackio_space_id": To("logging.report_to.trackio.space_id", "text"),
}

DEFAULTS = {
    "use_peft": False,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "max_length": 1024,
    "gradient_checkpointing": True,
}
