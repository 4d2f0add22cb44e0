"""mlx-lm: the YAML file of `mlx_lm.lora`, or its arguments."""

from lrft.foreign.entries import Missing, Needless, Table, To

TITLE = "mlx-lm"
SIGNS = ("lora_parameters.rank", "lora_parameters.scale", "fine_tune_type", "iters", "adapter_path", "steps_per_report")
COMMANDS = ("mlx_lm.lora", "mlx_lm")

KEYS: Table = {
    "model": To("model.name", "text"),
    "train": Needless("a command of lrft, not a key: lrft train, eval, merge, generate"),
    "test": Needless("a command of lrft, not a key: lrft eval"),
    "test_batches": Needless("lrft eval looks at all rows"),
    "fine_tune_type": To("adapter.method", "method"),
    "data": To("data.train", "mlx_folder"),
    "hf_dataset.path": To("data.train", "hub"),
    "hf_dataset.": Missing("data.train: path, split, columns and prompt say it"),
    "mask_prompt": To("data.train_on", "words", {"true": "assistant", "false": "all"}, "data.train_on: assistant"),
    "max_seq_length": To("data.max_length"),
    "seed": To("training.seed"),
    "num_layers": To("adapter.layers", "last_layers"),
    "lora_layers": To("adapter.layers", "last_layers"),
    "lora_parameters.keys": To("adapter.target_modules", "targets"),
    "lora_parameters.rank": To("adapter.rank"),
    "lora_parameters.scale": To("adapter.scale"),
    "lora_parameters.alpha": Missing("mlx-lm does not read it: its factor is lora_parameters.scale"),
    "lora_parameters.dropout": To("adapter.dropout"),
    "batch_size": To("batch.per_device"),
    "grad_accumulation_steps": To("batch.accumulation"),
    "iters": To("batch.passes", says="training.max_steps"),
    "epochs": Missing("mlx-lm does not read it: iters ends its runs"),
    "learning_rate": To("training.learning_rate", "number"),
    "optimizer": To("training.optimizer", "optimizer"),
    "optimizer_config.": Missing(
        "options of an optimiser are written out: training.optimizer: {NAME: {option: value}}"
    ),
    "optimizer_config": Missing("options of an optimiser are written out: training.optimizer: {NAME: {option: value}}"),
    "lr_schedule.name": To("training.lr_scheduler", "schedule"),
    "lr_schedule.warmup": To("training.warmup_steps"),
    "lr_schedule.": Missing(
        "a schedule ends with the run; its end is training.lr_scheduler: {NAME: {min_lr_ratio: ...}}"
    ),
    "grad_checkpoint": To("training.gradient_checkpointing", "checkpointing"),
    "val_batches": Missing("the loss is that of all validation rows; data.validation says how many are held out"),
    "steps_per_report": To("logging.every", "passes"),
    "steps_per_eval": To("evaluation.every", "passes"),
    "save_every": To("checkpoint.every", "passes"),
    "adapter_path": To("output_dir", "text"),
    "resume_adapter_file": Missing("adapter.start_from takes a folder of lrft or PEFT, not mlx-lm's file"),
    "report_to": To("logging.report_to", "trackers"),
    "project_name": To("logging.report_to.wandb.project", "text"),
    "wandb": To("logging.report_to.wandb.project", "text"),
    "trust_remote_code": To("model.trust_remote_code"),
    "clear_cache_threshold": Missing("torch's allocator decides by itself"),
    "config": Needless("the configuration is this file"),
}

DEFAULTS = {
    "lora_parameters.rank": 8,
    "lora_parameters.scale": 20.0,
    "lora_parameters.dropout": 0.0,
    "batch_size": 4,
    "iters": 1000,
    "learning_rate": 1e-5,
    "optimizer": "adam",
    "lr_schedule.name": "constant",
    "lr_schedule.warmup": 0,
    "mask_prompt": False,
}
