"""LitGPT: nested YAML of `litgpt finetune_lora`."""

from lrft.foreign.entries import Missing, Needless, Table, To

TITLE = "LitGPT"
SIGNS = ("checkpoint_dir", "lora_query", "lora_r", "train.micro_batch_size", "data.class_path")
COMMANDS = ("litgpt",)

_DATA = "rows are read by data.train: path, format, columns, prompt"

KEYS: Table = {
    "checkpoint_dir": To("model.name", "litgpt_model"),
    "out_dir": To("output_dir", "text"),
    "precision": To("training.precision", "precision"),
    "quantize": To(
        "model.quantization",
        "words",
        {
            "bnb.nf4": "nf4",
            "bnb.nf4-dq": "nf4",
            "bnb.fp4": "fp4",
            "bnb.fp4-dq": "fp4",
            "bnb.int8": "int8",
            "bnb.int8-training": "int8",
        },
    ),
    "devices": To("batch.devices"),
    "num_nodes": To("batch.nodes"),
    "lora_r": To("adapter.rank"),
    "lora_alpha": To("adapter.alpha", "above_zero"),
    "lora_dropout": To("adapter.dropout"),
    "lora_query": To("adapter.target_modules", "parts", ["q_proj"]),
    "lora_key": To("adapter.target_modules", "parts", ["k_proj"]),
    "lora_value": To("adapter.target_modules", "parts", ["v_proj"]),
    "lora_projection": To("adapter.target_modules", "parts", ["o_proj"]),
    "lora_mlp": To("adapter.target_modules", "parts", ["gate_proj", "up_proj", "down_proj"]),
    "lora_head": To("adapter.target_modules", "parts", ["lm_head"]),
    "data.class_path": To("data.train", "litgpt_data"),
    "data.init_args.json_path": To("data.train", "text"),
    "data.init_args.mask_prompt": To(
        "data.train_on", "words", {"true": "assistant", "false": "all"}, "data.train_on: assistant"
    ),
    "data.init_args.prompt_style": Missing(
        "rows are rendered by the tokenizer's chat template, or by data.train.prompt"
    ),
    "data.init_args.ignore_index": Needless("tokens that are not trained are known by a mask"),
    "data.init_args.seed": Needless("training.seed decides the split"),
    "data.init_args.val_split_fraction": To("data.validation", "held_out"),
    "data.init_args.num_workers": Needless("rows are tokenised before the first step; there are no workers"),
    "data.init_args.download_dir": Needless("the hub's own cache is used"),
    "data.init_args.": Missing(_DATA),
    "data": To("data.train", "litgpt_data"),
    "train.save_interval": To("checkpoint.every", "steps"),
    "train.log_interval": To("logging.every", "steps"),
    "train.global_batch_size": To("batch.global"),
    "train.micro_batch_size": To("batch.per_device"),
    "train.lr_warmup_steps": To("training.warmup_steps"),
    "train.lr_warmup_fraction": To("training.warmup_ratio"),
    "train.epochs": To("training.epochs"),
    "train.max_steps": To("training.max_steps", "above_zero"),
    "train.max_tokens": Missing("the end of a run is counted in epochs or steps"),
    "train.max_time": Missing("the end of a run is counted in epochs or steps"),
    "train.max_seq_length": To("data.max_length"),
    "train.tie_embeddings": Needless("tied weights stay tied"),
    "train.max_norm": To("training.max_grad_norm", "clipping"),
    "train.min_lr": Needless("LitGPT reads it in pre-training alone"),
    "eval.interval": To("evaluation.every", "steps"),
    "eval.max_new_tokens": To("evaluation.max_new_tokens"),
    "eval.max_iters": Missing("the loss is that of all validation rows; data.validation says how many are held out"),
    "eval.initial_validation": To("evaluation.at_start"),
    "eval.final_validation": Needless("a run ends with an evaluation"),
    "eval.evaluate_example": Needless("evaluation.samples shows answers in the report"),
    "logger_name": To("logging.report_to", "trackers"),
    "seed": To("training.seed"),
    "optimizer": To("training.optimizer", "component"),
    "optimizer.class_path": To("training.optimizer", "component"),
    "optimizer.init_args.lr": To("training.learning_rate", "number"),
    "optimizer.init_args.weight_decay": To("training.weight_decay"),
    "optimizer.init_args.betas": To("training.optimizer.betas"),
    "optimizer.init_args.eps": To("training.optimizer.eps"),
    "optimizer.init_args.": Missing(
        "options of an optimiser are written out: training.optimizer: {NAME: {option: value}}"
    ),
    "access_token": Missing("a token belongs into the environment: HF_TOKEN"),
    "log_every_n_steps": To("logging.every", "steps"),
}

DEFAULTS = {"train.max_norm": "none"}
