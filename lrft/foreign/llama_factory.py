"""LLaMA-Factory: one flat YAML or JSON file, or arguments of llamafactory-cli."""

from lrft.foreign import lora, quantization, trainer
from lrft.foreign.entries import SAYS, Missing, Needless, Table, To

TITLE = "LLaMA-Factory"
SIGNS = ("finetuning_type", "stage", "cutoff_len", "template", "lora_target", "dataset_dir", "plot_loss")
COMMANDS = ("llamafactory-cli",)

_IMAGES = "lrft trains on text"
_LAYERWISE = "the optimiser steps once for all layers"
_OWN_METHOD = "a training method that lrft does not have; lrft methods lists those that it has"

KEYS: Table = {
    **trainer.KEYS,
    **quantization.KEYS,
    "model_name_or_path": To("model.name", "text"),
    "model_revision": To("model.revision", "text"),
    "trust_remote_code": To("model.trust_remote_code"),
    "flash_attn": To("model.attention", "attention"),
    "quantization_bit": To("model.quantization", "bits", says=quantization.BITS),
    "quantization_method": To("model.quantization.method", says=quantization.BITS),
    "quantization_type": To("model.quantization.type", says="model.quantization: nf4 or fp4"),
    "double_quantization": Needless(quantization.SCALES),
    "pure_bf16": To("model.precision", "flag", "bfloat16", "model.precision: bfloat16"),
    "stage": To("training.objective", "stage"),
    "finetuning_type": To("adapter.method", "method"),
    "lora_rank": To("adapter.rank"),
    "lora_alpha": To("adapter.alpha", "above_zero"),
    "lora_dropout": To("adapter.dropout"),
    "lora_target": To("adapter.target_modules", "targets"),
    "additional_target": lora.WHOLE,
    "use_rslora": lora.KEYS["use_rslora"],
    "use_dora": lora.KEYS["use_dora"],
    "pissa_init": To("adapter.method", "flag", "pissa", "adapter.method, e.g. pissa"),
    "pissa_iter": Missing("options of a start are written behind its name: adapter.method: {pissa: {iterations: 16}}"),
    "pissa_convert": Needless("an adapter of pissa is saved against the untouched base"),
    "loraplus_lr_ratio": To("adapter.method", "ratio", "lora+", "adapter.method: {lora+: {ratio: ...}}"),
    "loraplus_lr_embedding": Missing("embeddings have the learning rate of the adapter"),
    "use_galore": To("adapter.method", "flag", "galore", "adapter.method: galore"),
    "galore_rank": To("adapter.rank", says="adapter.rank"),
    "galore_target": To("adapter.target_modules", "targets"),
    "galore_scale": Missing(
        "options of a method are written behind its name: adapter.method: {galore: {factor: 0.25}}"
    ),
    "galore_update_interval": Missing(
        "options of a method are written behind its name: adapter.method: {galore: {every: 200}}"
    ),
    "galore_layerwise": Needless(_LAYERWISE),
    "adapter_name_or_path": To("adapter.start_from", "one_folder"),
    "create_new_adapter": Needless("adapter.start_from with another rank or method takes over the update"),
    "dataset": To("data.train", "registered"),
    "eval_dataset": To("data.validation", "registered_one", says="data.validation"),
    "dataset_dir": Needless("dataset_info.json is read beside the configuration; data.train names the files"),
    "max_samples": To("data.train.limit"),
    "mix_strategy": To(
        "data.stop",
        "words",
        {"interleave_under": "first", "interleave_over": "all"},
        "data.stop: first, last or all, with weights of data.train",
    ),
    "interleave_probs": To("data.train.weight", "weights", says="data.train.weight, of each entry"),
    "val_size": To("data.validation", "held_out"),
    "cutoff_len": To("data.max_length"),
    "packing": To("data.packing"),
    "neat_packing": To("data.packing"),
    "template": Needless("the tokenizer's own chat template is the default of data.chat_template"),
    "enable_thinking": To(
        "data.template_options", "option", "enable_thinking", "data.template_options: {enable_thinking: false}"
    ),
    "train_on_prompt": To("data.train_on", "train_on_inputs", says="data.train_on: assistant or all"),
    "mask_history": To("data.train_on", "flag", "last-assistant", "data.train_on: last-assistant"),
    "overwrite_cache": Needless("cached rows are found by their content"),
    "preprocessing_num_workers": Needless("rows are tokenised by as many processes as help"),
    "preprocessing_batch_size": Needless("rows are tokenised by as many processes as help"),
    "tokenized_path": Needless("tokenised rows are cached in lrft's own folder"),
    "streaming": To("data.streaming"),
    "use_fast_tokenizer": Needless("the tokenizer is loaded as transformers does"),
    "disable_gradient_checkpointing": To("training.gradient_checkpointing", "unless", "full"),
    "enable_liger_kernel": trainer.KEYS["use_liger_kernel"],
    "use_unsloth": Needless("another implementation of the same computation"),
    "use_unsloth_gc": Needless("training.gradient_checkpointing: full, with training.activation_offload: true"),
    "use_reentrant_gc": Needless("recomputation never re-enters autograd"),
    "plot_loss": Needless("report.md has the curves"),
    "include_effective_tokens_per_second": Needless("tokens are always counted"),
    "compute_accuracy": To("evaluation.metrics", "flag", "token_accuracy", "evaluation.metrics"),
    "predict_with_generate": Missing(
        "answers are written by lrft generate; evaluation.samples shows some in the report"
    ),
    "pref_beta": To("training.objective.beta"),
    "pref_loss": To("training.objective", "loss", says="training.objective: {dpo: {loss: ...}}"),
    "pref_ftx": To("training.objective.rpo_alpha", "above_zero"),
    "dpo_label_smoothing": To(
        "training.objective.label_smoothing", says="training.objective: {dpo: {label_smoothing: ...}}"
    ),
    "simpo_gamma": To("training.objective.gamma"),
    "kto_chosen_weight": To("training.objective.desirable_weight"),
    "kto_rejected_weight": To("training.objective.undesirable_weight"),
    "ref_model": Needless("the reference is the base with the adapter switched off"),
    "moe_aux_loss_coef": To("training.objective.router_aux_loss_coef"),
    "use_swanlab": To("logging.report_to", "flag", "swanlab", SAYS["logging.report_to.swanlab.project"]),
    "swanlab_project": To("logging.report_to.swanlab.project", "text"),
    "swanlab_run_name": To("logging.report_to.swanlab.run_name", "text"),
    "ray_num_workers": Missing("runs are started by torchrun, accelerate or SLURM, not by Ray"),
    **dict.fromkeys(
        ("image_max_pixels", "video_max_pixels", "video_fps", "video_maxlen", "media_dir", "freeze_language_model"),
        Missing(_IMAGES),
    ),
    **dict.fromkeys(
        (
            "use_badam",
            "use_apollo",
            "use_adam_mini",
            "use_dft_loss",
            "use_asft_loss",
            "asft_alpha",
            "use_eaft_loss",
            "use_llama_pro",
            "mixture_of_depths",
            "freeze_trainable_layers",
            "freeze_trainable_modules",
            "oft_block_size",
            "oft_target",
            "fp8",
            "fp8_backend",
            "fp8_enable_fsdp_float8_all_gather",
            "badam_mode",
            "badam_switch_mode",
            "badam_switch_interval",
            "badam_verbose",
            "apollo_layerwise",
            "apollo_target",
            "apollo_rank",
            "apollo_scale",
            "apollo_scale_type",
        ),
        Missing(_OWN_METHOD),
    ),
    "freeze_vision_tower": Needless("adapters stand beside layers that text reaches"),
    "freeze_multi_modal_projector": Needless("adapters stand beside layers that text reaches"),
    "use_muon": To("training.optimizer", "flag", "muon", "training.optimizer: muon"),
}

DEFAULTS = {**trainer.DEFAULTS, "lora_rank": 8, "cutoff_len": 2048, "val_size": 0}
