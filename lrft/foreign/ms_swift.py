"""ms-swift: arguments of `swift sft` and `swift rlhf`, mostly in shell scripts."""

from lrft.foreign import lora, quantization, trainer
from lrft.foreign.entries import Missing, Needless, Table, To

TITLE = "ms-swift"
SIGNS = ("tuner_type", "train_type", "split_dataset_ratio", "model_author", "rlhf_type", "torch_dtype", "init_weights")
COMMANDS = ("swift", "sft.py", "rlhf.py")

_CARD = "who the model says it is comes from the rows"
_IMAGES = "lrft trains on text"
_OWN_METHOD = "a training method that lrft does not have; lrft methods lists those that it has"
_GALORE = "options of a method are written behind its name: adapter.method: {galore: {...}}"

KEYS: Table = {
    **trainer.KEYS,
    **quantization.KEYS,
    "model": To("model.name", "text"),
    "model_revision": To("model.revision", "text"),
    "attn_impl": To("model.attention", "attention"),
    "torch_dtype": To(
        "training.precision",
        "precision",
        says="model.precision for the frozen weights, training.precision for the computation",
    ),
    "quant_bits": To("model.quantization", "bits", says=quantization.BITS),
    "quant_method": To("model.quantization.method", says=quantization.BITS),
    "use_hf": Needless("models and data come from the Hugging Face hub"),
    "task_type": To("training.objective", "task"),
    "problem_type": To(
        "training.objective.problem",
        "words",
        {
            "multi_label_classification": "multi-label",
            "single_label_classification": "single-label",
            "regression": "regression",
        },
    ),
    "num_labels": Needless("labels are taken from the data"),
    "rlhf_type": To("training.objective", "loss"),
    "loss_type": To("training.objective", "loss", says="training.objective: {dpo: {loss: ...}}"),
    "beta": To("training.objective.beta"),
    "rpo_alpha": To("training.objective.rpo_alpha"),
    "simpo_gamma": To("training.objective.gamma"),
    "cpo_alpha": To("training.objective.alpha"),
    "desirable_weight": To("training.objective.desirable_weight"),
    "undesirable_weight": To("training.objective.undesirable_weight"),
    "ref_model": Needless("the reference is the base with the adapter switched off"),
    "teacher_model": To("training.objective.teacher", "text", says="training.objective: {distill: {teacher: ...}}"),
    "tuner_type": To("adapter.method", "method"),
    "train_type": To("adapter.method", "method"),
    "tuner_backend": Needless("another implementation of the same computation"),
    "lora_rank": To("adapter.rank"),
    "lora_alpha": To("adapter.alpha", "above_zero"),
    "lora_dropout": To("adapter.dropout"),
    "lora_bias": lora.KEYS["bias"],
    "target_modules": To("adapter.target_modules", "targets"),
    "target_regex": To("adapter.target_modules", "expression"),
    "modules_to_save": lora.WHOLE,
    "use_rslora": lora.KEYS["use_rslora"],
    "use_dora": lora.KEYS["use_dora"],
    "init_weights": To("adapter.method", "start", says="adapter.method, e.g. pissa"),
    "lorap_lr_ratio": To("adapter.method", "ratio", "lora+", "adapter.method: {lora+: {ratio: ...}}"),
    "use_galore": To("adapter.method", "flag", "galore", "adapter.method: galore"),
    "galore_rank": To("adapter.rank", says="adapter.rank"),
    "adapters": To("adapter.start_from", "one_folder"),
    "dataset": To("data.train", "hub_ids"),
    "val_dataset": To("data.validation", "hub_id", says="data.validation"),
    "split_dataset_ratio": To("data.validation", "held_out"),
    "interleave_prob": To("data.train.weight", "weights", says="data.train.weight, of each entry"),
    "stopping_strategy": To(
        "data.stop",
        "words",
        {"first_exhausted": "first", "all_exhausted": "all"},
        "data.stop: first, last or all, with weights of data.train",
    ),
    "max_length": To("data.max_length"),
    "truncation_strategy": To(
        "data.too_long", "words", {"delete": "drop", "right": "truncate", "split": "split", "raise": "error"}
    ),
    "packing": To("data.packing"),
    "padding_free": Needless("rows are packed, or padded to the longest of a micro batch"),
    "strict": To("data.on_bad_row", "words", {"true": "error", "false": "skip"}, "data.on_bad_row"),
    "dataset_shuffle": To("data.shuffle"),
    "train_dataloader_shuffle": To("data.shuffle"),
    "loss_scale": To("data.train_on", "words", {"default": "assistant", "last_round": "last-assistant", "all": "all"}),
    "template": Needless("the tokenizer's own chat template is the default of data.chat_template"),
    "use_chat_template": Missing("rows with messages are rendered by a chat template, rows of text are not"),
    "system": Missing("a system message stands in each row, or in data.train.prompt"),
    "enable_thinking": To(
        "data.template_options", "option", "enable_thinking", "data.template_options: {enable_thinking: false}"
    ),
    "streaming": To("data.streaming"),
    "shuffle_buffer_size": To("data.window", says="data.window, with data.streaming: true"),
    "lazy_tokenize": Needless("rows are tokenised before the first step"),
    "load_from_cache_file": Needless("cached rows are found by their content"),
    "cached_dataset": Needless("cached rows are found by their content"),
    "dataset_num_proc": Needless("rows are tokenised by as many processes as help"),
    "load_data_args": Needless("a run's folder holds the recipe"),
    "early_stop_interval": To("training.early_stopping", "patience"),
    "optimizer": To("training.optimizer", "optimizer"),
    "max_epochs": To("training.epochs"),
    "merge_lora": Needless("lrft merge RUN"),
    "create_checkpoint_symlink": Needless("best/ and last/ in the run folder"),
    "add_version": Needless("a run folder is never overwritten"),
    "config_file": Needless("distributed.strategy, and the launcher, say how processes work together"),
    "deepspeed_autotp_size": Missing(
        "tensors are not divided over devices; distributed.strategy: fsdp divides the base"
    ),
    "freeze_vit": Needless("adapters stand beside layers that text reaches"),
    "freeze_aligner": Needless("adapters stand beside layers that text reaches"),
    "model_author": Missing(_CARD),
    "model_name": Missing(_CARD),
    "swanlab_project": To("logging.report_to.swanlab.project", "text"),
    "swanlab_exp_name": To("logging.report_to.swanlab.run_name", "text"),
    **dict.fromkeys(
        ("freeze_llm", "vit_lr", "aligner_lr", "max_pixels", "freeze_parameters"),
        Missing(_IMAGES),
    ),
    **dict.fromkeys(
        (
            "lisa_activated_layers",
            "lisa_step_interval",
            "llamapro_num_new_blocks",
            "reft_intervention_type",
            "reft_rank",
            "adapter_act",
            "adapter_length",
            "boft_block_size",
            "boft_block_num",
            "fourier_n_frequency",
            "vera_rank",
            "adalora_target_r",
            "adalora_init_r",
        ),
        Missing(_OWN_METHOD),
    ),
    **dict.fromkeys(
        (
            "galore_scale",
            "galore_update_proj_gap",
            "galore_optim_per_parameter",
            "galore_quantization",
            "galore_with_embedding",
        ),
        Missing(_GALORE),
    ),
    **dict.fromkeys(
        (
            "lora_ga_batch_size",
            "lora_ga_iters",
            "lora_ga_max_length",
            "lora_ga_direction",
            "lora_ga_scale",
            "lora_ga_stable_gamma",
        ),
        Missing("options of a start are written behind its name: adapter.method: {lora-ga: {...}}"),
    ),
    **dict.fromkeys(
        ("infer_backend", "stream", "max_new_tokens", "temperature", "served_model_name", "max_batch_size"),
        Needless("lrft generate, chat and serve take it"),
    ),
}

DEFAULTS = {
    **trainer.DEFAULTS,
    "per_device_train_batch_size": 1,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "gradient_checkpointing": True,
    "split_dataset_ratio": 0,
}
