"""Key names from other trainers, and of missing features: rejected with the lrft equivalent, never accepted as aliases.

Accepting a second spelling would leave two in the world; refusing with the fix costs one edit.
"""

from __future__ import annotations

from collections.abc import Mapping

from lrft.recipe.nodes import Node

_MODEL = "model.name"
_TARGETS = "adapter.target_modules"
_LENGTH = "data.max_length"
_QUANTIZATION = "model.quantization"
_BITS = f"{_QUANTIZATION}: nf4 for 4 bits, int8 for 8"
_DIVIDED = "distributed.strategy: auto, ddp, fsdp or zero2"
_TRACKER = "logging.report_to: [{%s: {project: ..., run_name: ...}}]"

_OBJECTIVE = "training.objective: sft, dpo, simpo, orpo, cpo or kto"
_EMBEDDING = "training.objective: {embedding: {%s: ...}}"
_BETA = "training.objective: {dpo: {beta: ...}}, and the same of simpo, orpo, cpo and kto"

# {their name: where it lives here}. A name that is also a key of lrft somewhere is not listed.
KEYS: Mapping[str, str] = {
    **dict.fromkeys(("base_model", "model_name", "model_name_or_path", "pretrained_model_name_or_path"), _MODEL),
    **dict.fromkeys(("checkpoint_dir", "model_id"), _MODEL),
    **dict.fromkeys(("finetuning_type", "tuner_type", "fine_tune_type", "peft", "peft_type"), "adapter.method"),
    **dict.fromkeys(("lora_r", "lora_rank", "r", "dim"), "adapter.rank"),
    "lora_alpha": "adapter.alpha",
    **dict.fromkeys(
        ("adapter_name_or_path", "lora_model_dir", "resume_adapter_file", "adapters"), "adapter.start_from"
    ),
    "lora_dropout": "adapter.dropout",
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_layers", "lora_attn_modules"), _TARGETS),
    **dict.fromkeys(("keys", "lora_modules"), _TARGETS),
    **dict.fromkeys(("lora_target_linear", "match_all_linear"), "adapter.target_modules: all-linear"),
    **dict.fromkeys(("layers_to_transform", "num_layers", "lora_layers"), "adapter.layers"),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), "adapter.overrides"),
    **dict.fromkeys(("peft_use_rslora", "use_rslora"), "adapter.method: rslora"),
    **dict.fromkeys(("peft_use_dora", "use_dora"), "adapter.method: dora"),
    **dict.fromkeys(
        ("pissa_init", "init_lora_weights", "peft_init_lora_weights", "init_weights"),
        "adapter.method, e.g. pissa",
    ),
    **dict.fromkeys(("loraplus_lr_ratio", "lorap_lr_ratio"), "adapter.method: {lora+: {ratio: ...}}"),
    **dict.fromkeys(("datasets", "dataset", "train_file", "train_dataset"), "data.train"),
    **dict.fromkeys(("sequence_len", "cutoff_len", "max_seq_length", "max_seq_len"), _LENGTH),
    **dict.fromkeys(("model_max_length", "block_size", "seq_length"), _LENGTH),
    **dict.fromkeys(("sample_packing", "neat_packing", "pack", "packed"), "data.packing"),
    **dict.fromkeys(("train_on_inputs", "train_on_prompt", "train_on_input"), "data.train_on: assistant or all"),
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss", "mask_prompt"), "data.train_on: assistant"),
    "train_on_completions": "data.train_on: assistant",
    **dict.fromkeys(("val_set_size", "val_size", "split_dataset_ratio", "test_split_size"), "data.validation"),
    **dict.fromkeys(("valid_split", "validation_dataset", "eval_dataset"), "data.validation"),
    **dict.fromkeys(("interleave_probs", "interleave_prob", "sampling_weights"), "data.train.weight, of each entry"),
    **dict.fromkeys(("stopping_strategy", "mix_strategy"), "data.stop: first, last or all, with weights of data.train"),
    **dict.fromkeys(("chat_template_kwargs",), "data.template_options"),
    "enable_thinking": "data.template_options: {enable_thinking: false}",
    "template": "data.chat_template, which is optional: the tokenizer's own template is the default",
    **dict.fromkeys(("per_device_train_batch_size", "local_batch_size"), "training.micro_batch_size"),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), "evaluation.micro_batch_size"),
    "effective_batch_size": "training.global_batch_size",
    **dict.fromkeys(("num_epochs", "num_train_epochs"), "training.epochs"),
    **dict.fromkeys(("iters", "train_steps"), "training.max_steps"),
    "lr": "training.learning_rate",
    **dict.fromkeys(
        ("lr_scheduler_type", "lr_schedule", "scheduler", "learning_rate_scheduler"), "training.lr_scheduler"
    ),
    **dict.fromkeys(("num_warmup_steps", "lr_warmup_steps"), "training.warmup_steps"),
    "warmup_fraction": "training.warmup_ratio",
    **dict.fromkeys(("teacher_model", "teacher_model_name_or_path"), "training.objective: {distill: {teacher: ...}}"),
    **dict.fromkeys(("kd_alpha", "kd_ratio"), "training.objective: {distill: {alpha: ...}}"),
    "kd_temperature": "training.objective: {distill: {temperature: ...}}",
    **dict.fromkeys(("optim", "optimizer_name", "optimizer_type"), "training.optimizer"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), "training.optimizer: {adamw: {betas, eps}}"),
    **dict.fromkeys(("optim_args", "optimizer_kwargs"), "training.optimizer: {NAME: {option: value}}"),
    **dict.fromkeys(("lr_scheduler_kwargs", "cosine_min_lr_ratio"), "training.lr_scheduler: {NAME: {option: value}}"),
    **dict.fromkeys(("clip_grad_norm", "gradient_clipping", "max_norm"), "training.max_grad_norm"),
    "bf16": "training.precision: bf16",
    "fp16": "training.precision: fp16",
    **dict.fromkeys(("mixed_precision", "mixed_precision_dtype"), "training.precision"),
    **dict.fromkeys(
        ("torch_dtype", "dtype"),
        "model.precision for the frozen weights, training.precision for the computation",
    ),
    **dict.fromkeys(("activation_checkpointing", "grad_checkpoint"), "training.gradient_checkpointing"),
    **dict.fromkeys(
        ("enable_activation_checkpointing", "enable_gradient_checkpointing"),
        "training.gradient_checkpointing",
    ),
    **dict.fromkeys(("neftune_noise_alpha", "noise_alpha", "noisy_embedding_alpha"), "training.neftune_alpha"),
    **dict.fromkeys(("label_smoothing_factor", "label_smoothing"), "training.objective: {sft: {label_smoothing: ...}}"),
    **dict.fromkeys(("z_loss", "z_loss_coef", "softmax_auxiliary_loss"), "training.objective: {sft: {z_loss: ...}}"),
    **dict.fromkeys(
        ("router_aux_loss_coef", "moe_aux_loss_coef", "aux_loss_coef", "output_router_logits"),
        "training.objective: {sft: {router_aux_loss_coef: ...}}",
    ),
    **dict.fromkeys(
        ("wandb_project", "wandb_entity", "wandb_name", "wandb_run_id", "use_wandb", "enable_wandb", "wandb"),
        _TRACKER % "wandb",
    ),
    **dict.fromkeys(
        ("use_mlflow", "mlflow_experiment_name", "mlflow_run_name", "hf_mlflow_log_artifacts"), _TRACKER % "mlflow"
    ),
    **dict.fromkeys(("use_tensorboard", "tensorboard_dir", "logging_dir"), "logging.report_to: [tensorboard]"),
    **dict.fromkeys(("use_comet", "comet_project_name", "comet_workspace"), _TRACKER % "comet_ml"),
    **dict.fromkeys(("use_swanlab", "swanlab_project", "swanlab_run_name"), _TRACKER % "swanlab"),
    **dict.fromkeys(("use_trackio", "trackio_project_name", "trackio_space_id", "project"), _TRACKER % "trackio"),
    **dict.fromkeys(("logger_name", "metric_logger", "log_with", "loggers"), "logging.report_to"),
    "random_seed": "training.seed",
    **dict.fromkeys(("logging_steps", "log_every_n_steps", "log_interval", "steps_per_report"), "logging.every"),
    **dict.fromkeys(("eval_steps", "evals_per_epoch", "steps_per_eval", "val_every_steps"), "evaluation.every"),
    **dict.fromkeys(("metric_for_best_model", "best_metric", "greater_is_better"), "evaluation.best"),
    **dict.fromkeys(("compute_metrics", "eval_metrics", "compute_accuracy", "do_causal_lm_eval"), "evaluation.metrics"),
    "eval_causal_lm_metrics": "evaluation.metrics",
    **dict.fromkeys(("test_datasets", "eval_datasets"), "data.validation for one, evaluation.sets for several"),
    **dict.fromkeys(("save_steps", "save_every", "save_interval", "ckpt_every_steps"), "checkpoint.every"),
    **dict.fromkeys(("save_total_limit", "max_recent_checkpoints"), "checkpoint.keep"),
    **dict.fromkeys(("out_dir", "output_directory", "adapter_path", "project_name"), "output_dir"),
    **dict.fromkeys(
        ("num_labels", "id2label", "label2id", "label_names"),
        "data.labels, where the labels are not to be taken from the rows to train on",
    ),
    "problem_type": "training.objective: {classification: {problem: ...}}",
    "class_weight": "training.objective: {classification: {class_weights: ...}}",
    **dict.fromkeys(("text_column", "text_column_name", "sentence_column"), "data.train.columns: {theirs: text}"),
    **dict.fromkeys(("label_column", "label_column_name", "target_column"), "data.train.columns: {theirs: label}"),
    **dict.fromkeys(("matryoshka_dims", "matryoshka_dim"), _EMBEDDING % "matryoshka"),
    **dict.fromkeys(("pooling_mode", "pooling_method", "sentence_pooling_method"), _EMBEDDING % "pooling"),
    **dict.fromkeys(("normalize_embeddings", "normalized", "normlized"), _EMBEDDING % "normalize"),
    **dict.fromkeys(("similarity_fct", "similarity_fn_name"), _EMBEDDING % "similarity"),
    "infonce_temperature": _EMBEDDING % "temperature",
    **dict.fromkeys(
        ("query_instruction", "query_instruction_for_retrieval", "query_prefix"),
        "data.query_prompt, for training.objective: embedding",
    ),
    **dict.fromkeys(
        ("passage_instruction", "passage_instruction_for_retrieval", "passage_prefix", "document_prefix"),
        "data.document_prompt, for training.objective: embedding",
    ),
    **dict.fromkeys(
        ("query_max_length", "query_max_len", "passage_max_length", "passage_max_len"),
        f"{_LENGTH}, of each text",
    ),
    **dict.fromkeys(
        ("label_all_tokens", "label_all_subtokens"), "training.objective: {token-classification: {tokens: all}}"
    ),
    **dict.fromkeys(("tokens_column", "tokens_column_name"), "data.train.columns: {theirs: tokens}"),
    **dict.fromkeys(("tags_column", "tags_column_name"), "data.train.columns: {theirs: tags}"),
    "attn_implementation": "model.attention",
    "load_in_4bit": f"{_QUANTIZATION}: nf4",
    "load_in_8bit": f"{_QUANTIZATION}: int8",
    **dict.fromkeys(("quantization_bit", "quant_bits", "quant_bit", "bits"), _BITS),
    **dict.fromkeys(("quantization_config", "quantization_method", "quant_method"), _BITS),
    **dict.fromkeys(("bnb_4bit_quant_type", "quantization_type"), f"{_QUANTIZATION}: nf4 or fp4"),
    "bnb_4bit_compute_dtype": "training.precision",
    **dict.fromkeys(("deepspeed", "deepspeed_config", "zero_stage", "fsdp_config", "distributed_type"), _DIVIDED),
    "fsdp": _DIVIDED,
    **dict.fromkeys(("rl", "stage", "rlhf_type", "trainer_type"), _OBJECTIVE),
    **dict.fromkeys(("pref_beta", "dpo_beta", "rl_beta", "kto_beta", "orpo_alpha", "orpo_beta", "beta"), _BETA),
    **dict.fromkeys(("pref_loss", "dpo_loss", "loss_type", "dpo_loss_type"), "training.objective: {dpo: {loss: ...}}"),
    **dict.fromkeys(("pref_ftx", "dpo_ftx", "rpo_alpha"), "training.objective: {dpo: {rpo_alpha: ...}}"),
    **dict.fromkeys(
        ("dpo_label_smoothing", "cdpo_label_smoothing"), "training.objective: {dpo: {label_smoothing: ...}}"
    ),
    **dict.fromkeys(("simpo_gamma", "rl_gamma"), "training.objective: {simpo: {gamma: ...}}"),
    "cpo_alpha": "training.objective: {cpo: {alpha: ...}}",
    **dict.fromkeys(
        ("kto_chosen_weight", "kto_desirable_weight"), "training.objective: {kto: {desirable_weight: ...}}"
    ),
    **dict.fromkeys(
        ("kto_rejected_weight", "kto_undesirable_weight"), "training.objective: {kto: {undesirable_weight: ...}}"
    ),
    "precompute_ref_log_probs": "training.objective: {dpo: {reference: cached}}, the default",
}

# Names with a sentence of their own.
SENTENCES: Mapping[str, str] = {
    "batch_size": "is ambiguous. Per step over all devices: training.global_batch_size. "
    "Per device and pass: training.micro_batch_size",
    "gradient_accumulation_steps": "is not needed: remove it and set training.global_batch_size "
    "(rows per device x accumulation steps x devices)",
    **dict.fromkeys(
        ("resume_from_checkpoint", "resume", "restore_from"),
        "is not part of a recipe: give --resume to the command",
    ),
    **dict.fromkeys(
        ("bnb_4bit_use_double_quant", "double_quantization"),
        "is not needed: model.quantization nf4 and fp4 always quantise the scales too",
    ),
    **dict.fromkeys(("use_loftq", "loftq_config"), ": LoftQ is not supported in this version"),
    "on_signal": "is not needed: SIGTERM and Ctrl-C always save a checkpoint before the run ends",
    **dict.fromkeys(
        ("generation", "generation_config", "generation_max_length", "predict_with_generate"),
        "is not a key: answers are greedy, of at most evaluation.max_new_tokens tokens",
    ),
    **dict.fromkeys(
        ("full_determinism", "deterministic_mode", "cudnn_deterministic_mode"),
        "is another tool's name. In lrft: training.deterministic",
    ),
    "run_name": "belongs to a tracker: logging.report_to: [{NAME: {run_name: ...}}]",
    "mlflow_tracking_uri": "is not a key of a recipe: set the environment variable MLFLOW_TRACKING_URI, and "
    "logging.report_to: [mlflow]",
    **dict.fromkeys(
        ("ref_model", "ref_model_name_or_path", "reference_model"),
        "is not needed: the reference is the base with the adapter switched off, or the adapter of adapter.start_from",
    ),
    "additional_target": ": adapter.modules_to_save is not supported in this version",
    "lora_modules_to_save": ": adapter.modules_to_save is not supported in this version",
}
ACCUMULATION = ("gradient_accumulation_steps", "grad_accumulation_steps", "gradient_accumulation")
PER_DEVICE = ("per_device_train_batch_size", "micro_batch_size", "local_batch_size", "batch_size")

# Keys of other versions of this format.
ABSENT: frozenset[str] = frozenset(
    {
        "after",
        "compare",
        "compile",
        "modules_to_save",
        "objective",
        "streaming",
        "task",
    }
)

# {key: {value: sentence}}: values that a nearest name would not explain.
_NOT_YET = "is not supported in this version"
_WARMUP = "training.warmup_ratio and training.warmup_steps hold for every schedule"
VALUES: Mapping[str, Mapping[str, str]] = {
    "adapter.method": {
        "qlora": f"qlora is lora over a quantised base model: use lora, and {_QUANTIZATION}: nf4",
    },
    "adapter.target_modules": {
        **dict.fromkeys(("all", "all_linear"), "Here: all-linear, which leaves out the output head"),
    },
    "model.precision": {"bf16": "Here: bfloat16", "fp16": "Here: float16", "fp32": "Here: float32"},
    "model.quantization": {
        **dict.fromkeys(("4bit", "4-bit", "int4", "4", "bnb", "bitsandbytes", "true"), "Here: nf4"),
        **dict.fromkeys(("8bit", "8-bit", "8", "llm_int8", "llm.int8"), "Here: int8"),
        **dict.fromkeys(("false", "no"), "Here: none"),
        **dict.fromkeys(("gptq", "awq", "hqq", "aqlm", "quanto", "torchao"), "Here: nf4, fp4 or int8"),
    },
    "training.precision": {
        **{"bfloat16": "Here: bf16", "float16": "Here: fp16", "float32": "Here: fp32"},
        "no": "Here: fp32",
    },
    "training.gradient_checkpointing": {
        "auto": f"auto {_NOT_YET}; give none, light, medium or full",
        "true": "Here: full, or light, which costs a few percent",
        "false": "Here: none",
    },
    "data.train.format": {
        **dict.fromkeys(("dpo", "pairwise", "ranking", "orpo"), "Here: preference"),
        **dict.fromkeys(("pair", "triplet", "triplets", "pair-class"), "Here: pairs"),
        **dict.fromkeys(("ner", "conll", "token-classification"), "Here: tagged"),
    },
    "training.objective": {
        **dict.fromkeys(("embeddings", "contrastive", "infonce", "mnrl", "biencoder", "bi-encoder"), "Here: embedding"),
        **dict.fromkeys(("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"), "Here: embedding"),
        "MatryoshkaLoss": "Here: {embedding: {matryoshka: [...]}}",
        "MultipleNegativesSymmetricRankingLoss": "Here: {embedding: {symmetric: true}}",
        **dict.fromkeys(("ner", "token_classification", "TOKEN_CLS"), "Here: token-classification"),
        **dict.fromkeys(("sequence-classification", "seq_cls", "SEQ_CLS"), "Here: classification"),
        **{loss: f"Here: {{dpo: {{loss: {loss}}}}}" for loss in ("ipo", "hinge", "robust", "exo_pair", "bco_pair")},
        **{"slic": "Here: {dpo: {loss: hinge}}", "bco": "Here: {dpo: {loss: bco_pair}}"},
        **{"cdpo": "Here: {dpo: {label_smoothing: ...}}", "rpo": "Here: {dpo: {rpo_alpha: ...}}"},
    },
    "distributed.strategy": {
        **dict.fromkeys(
            ("zero-2", "zero_2", "zero1", "zero-1", "zero_1"),
            "Here: zero2. For small adapters it saves almost nothing; use ddp",
        ),
        **dict.fromkeys(
            ("zero3", "zero-3", "zero_3"),
            "Here: fsdp, which shards the frozen base as ZeRO-3 does; adapters are replicated",
        ),
        "deepspeed": ("Here: zero2, which shards gradients and optimiser state, or fsdp, which shards the frozen base"),
        **dict.fromkeys(("fsdp2", "full_shard"), "Here: fsdp, which is FSDP2"),
        **dict.fromkeys(("hsdp", "hybrid_shard"), "Here: fsdp with distributed.shard_over: node, its default"),
    },
    "training.lr_scheduler": {
        "cosine_with_min_lr": "Here: {cosine: {min_lr_ratio: ...}}",
        "cosine_warmup_with_min_lr": "Here: {cosine: {min_lr_ratio: ...}}",
        **dict.fromkeys(
            ("cosine_with_restarts", "cosine_with_hard_restarts"), "Here: {cosine-restarts: {cycles: ...}}"
        ),
        "inverse_sqrt": "Here: inverse-sqrt",
        **dict.fromkeys(("constant_with_warmup", "constant-with-warmup"), f"Here: constant; {_WARMUP}"),
        "linear_with_warmup": f"Here: linear; {_WARMUP}",
        "warmup_stable_decay": "Here: {wsd: {decay_ratio: ..., min_lr_ratio: ...}}",
        "polynomial_decay": "Here: {polynomial: {power: ...}}",
        "reduce_lr_on_plateau": "Here: training.early_stopping; a rate that depends on losses is not supported",
    },
    "logging.report_to": {
        **dict.fromkeys(("none", "no", "all"), "Here: [], or the names of those that are wanted"),
        **dict.fromkeys(("comet", "comet-ml"), "Here: comet_ml"),
        **dict.fromkeys(("weights_and_biases", "weights-and-biases", "w&b"), "Here: wandb"),
        **dict.fromkeys(
            ("clearml", "dvclive", "neptune", "codecarbon", "azure_ml", "dagshub", "flyte"),
            f"it {_NOT_YET}; metrics.jsonl in the run folder has all that a tracker gets",
        ),
    },
    "training.optimizer": {
        **dict.fromkeys(
            ("adamw_torch", "adamw_hf", "adamw_torch_fused", "adamw_apex_fused", "adam", "AdamW"),
            "Here: adamw, fused on a GPU",
        ),
        **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw8bit", "AdamW8bit"), "Here: adamw-8bit"),
        **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "Here: paged-adamw"),
        **dict.fromkeys(("paged_adamw_8bit", "PagedAdamW8bit"), "Here: {paged-adamw: {bits: 8}}"),
        "lion_32bit": "Here: lion",
        "lion_8bit": "Here: {lion: {bits: 8}}",
        **dict.fromkeys(("paged_lion", "paged_lion_32bit"), "Here: {lion: {paged: true}}"),
        "paged_lion_8bit": "Here: {lion: {bits: 8, paged: true}}",
        "ademamix_8bit": "Here: {ademamix: {bits: 8}}",
        **dict.fromkeys(("paged_ademamix", "paged_ademamix_32bit"), "Here: {ademamix: {paged: true}}"),
        "paged_ademamix_8bit": "Here: {ademamix: {bits: 8, paged: true}}",
        **dict.fromkeys(
            ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
            "Here: adapter.method: galore, which brings its optimiser",
        ),
        **dict.fromkeys(("schedule_free_adamw", "schedule_free_sgd"), f"it {_NOT_YET}; use adamw"),
        **dict.fromkeys(
            ("torchao_adamw_8bit", "torchao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_4bit", "adamw_torch_8bit"),
            "Here: adamw-8bit",
        ),
    },
}


def key_sentence(name: str, dotted: str, root: Node) -> str | None:
    """What to say about a key that another tool, or another version, has. None when nobody known has it."""
    if name in ACCUMULATION:
        return f"{dotted} {SENTENCES[ACCUMULATION[0]]}{_product(name, root)}"
    if name in SENTENCES:
        sentence = SENTENCES[name]
        return f"{dotted}{sentence}" if sentence.startswith(":") else f"{dotted} {sentence}"
    if name in KEYS:
        return f"{dotted} is another tool's name. In lrft: {KEYS[name]}"
    if name in ABSENT:
        return f"{dotted} is not supported in this version"
    return None


def _product(name: str, root: Node) -> str:
    """ " (4 per device x 8 steps = 32 on one device)" when both numbers stand in the recipe."""
    wanted = (name, *PER_DEVICE)
    counts = {path[-1]: node.value for path, node in root.walk() if path and path[-1] in wanted}
    steps, rows = counts.get(name), next((counts[key] for key in PER_DEVICE if key in counts), None)
    if type(steps) is not int or type(rows) is not int:
        return ""
    return f" ({rows} per device x {steps} steps = {rows * steps} on one device)"
