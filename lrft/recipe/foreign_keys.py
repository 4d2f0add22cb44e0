"""Key names from other trainers, and of missing features: rejected with the lrft equivalent, never accepted as aliases.

Accepting a second spelling would leave two in the world; refusing with the fix costs one edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from lrft.foreign import others, values
from lrft.foreign.entries import SAYS, Entry, To, place
from lrft.foreign.tools import TOOLS
from lrft.recipe.nodes import Node
from lrft.recipe.schema import Section

_MODEL = "model.name"
_LENGTH = "data.max_length"
_QUANTIZATION = "model.quantization"
_BITS = f"{_QUANTIZATION}: nf4 for 4 bits, int8 for 8"
_DIVIDED = "distributed.strategy: auto, ddp, fsdp or zero2"
_OBJECTIVE, _BETA = SAYS["training.objective"], SAYS["training.objective.beta"]
_EMBEDDING = "training.objective: {embedding: {%s: ...}}"
_TRACKER = "logging.report_to: [{%s: {project: ..., run_name: ...}}]"

# {name: where it lives in lrft}, of tools without a table in lrft/foreign, and of names that its tables use for several
# things. A name that is also a key of lrft somewhere is not listed.
OTHERS: Mapping[str, str] = {
    **dict.fromkeys(("pretrained_model_name_or_path", "model_id", "model_name", "checkpoint_dir"), _MODEL),
    "peft": "adapter.method",
    "dim": "adapter.rank",
    **dict.fromkeys(("target_layers", "lora_modules"), "adapter.target_modules"),
    "match_all_linear": "adapter.target_modules: all-linear",
    **dict.fromkeys(("dataset", "train_file", "train_dataset"), "data.train"),
    **dict.fromkeys(("model_max_length", "block_size", "seq_length"), _LENGTH),
    "pack": "data.packing",
    "train_on_completions": "data.train_on: assistant",
    **dict.fromkeys(("valid_split", "validation_dataset"), "data.validation"),
    "eval_datasets": "data.validation for one, evaluation.sets for several",
    "sampling_weights": "data.train.weight, of each entry",
    "chat_template_kwargs": "data.template_options",
    "local_batch_size": "training.micro_batch_size",
    "effective_batch_size": "training.global_batch_size",
    "train_steps": "training.max_steps",
    **dict.fromkeys(("lr_schedule", "scheduler", "learning_rate_scheduler"), "training.lr_scheduler"),
    "warmup_fraction": "training.warmup_ratio",
    "teacher_model_name_or_path": "training.objective: {distill: {teacher: ...}}",
    "kd_alpha": "training.objective: {distill: {alpha: ...}}",
    "kd_temperature": "training.objective: {distill: {temperature: ...}}",
    **dict.fromkeys(("optimizer_name", "optimizer_type"), "training.optimizer"),
    "optimizer_kwargs": "training.optimizer: {NAME: {option: value}}",
    "gradient_clipping": "training.max_grad_norm",
    **dict.fromkeys(("mixed_precision", "mixed_precision_dtype"), "training.precision"),
    "dtype": "model.precision for the frozen weights, training.precision for the computation",
    **dict.fromkeys(("activation_checkpointing", "enable_gradient_checkpointing"), "training.gradient_checkpointing"),
    **dict.fromkeys(("noise_alpha", "noisy_embedding_alpha"), "training.neftune_alpha"),
    **dict.fromkeys(("z_loss", "z_loss_coef", "softmax_auxiliary_loss"), "training.objective: {sft: {z_loss: ...}}"),
    **dict.fromkeys(
        ("router_aux_loss_coef", "aux_loss_coef"), "training.objective: {sft: {router_aux_loss_coef: ...}}"
    ),
    "enable_wandb": _TRACKER % "wandb",
    "project": _TRACKER % "trackio",
    "tensorboard_dir": "logging.report_to: [tensorboard]",
    **dict.fromkeys(("metric_logger", "log_with", "loggers"), "logging.report_to"),
    "random_seed": "training.seed",
    "val_every_steps": "evaluation.every",
    "best_metric": "evaluation.best",
    **dict.fromkeys(("compute_metrics", "eval_metrics", "do_causal_lm_eval"), "evaluation.metrics"),
    "eval_causal_lm_metrics": "evaluation.metrics",
    "ckpt_every_steps": "checkpoint.every",
    "max_recent_checkpoints": "checkpoint.keep",
    "output_directory": "output_dir",
    **dict.fromkeys(
        ("id2label", "label2id", "label_names"),
        "data.labels, where the labels are not to be taken from the rows to train on",
    ),
    "class_weight": "training.objective: {classification: {class_weights: ...}}",
    **dict.fromkeys(("text_column", "text_column_name", "sentence_column"), "data.train.columns: {theirs: text}"),
    **dict.fromkeys(("label_column", "label_column_name", "target_column"), "data.train.columns: {theirs: label}"),
    **dict.fromkeys(("quant_bit", "bits", "quantization_config"), _BITS),
    **dict.fromkeys(("deepspeed_config", "zero_stage", "distributed_type"), _DIVIDED),
    "trainer_type": _OBJECTIVE,
    **dict.fromkeys(("kto_beta", "orpo_beta"), _BETA),
    **dict.fromkeys(("dpo_loss", "dpo_loss_type"), "training.objective: {dpo: {loss: ...}}"),
    "dpo_ftx": "training.objective: {dpo: {rpo_alpha: ...}}",
    "cdpo_label_smoothing": "training.objective: {dpo: {label_smoothing: ...}}",
    "rl_gamma": "training.objective: {simpo: {gamma: ...}}",
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
    **dict.fromkeys(
        ("peft_model_id", "init_from", "init_adapter", "pretrained_adapter", "lora_path", "lora_weights", "peft_path"),
        "adapter.start_from",
    ),
    **dict.fromkeys(("alignment_type", "train_mode"), "training.objective: sft, dpo, simpo, orpo, cpo, kto or reward"),
    "simpo_beta": "training.objective: {dpo: {beta: ...}}, and the same of simpo, orpo, cpo and kto",
    "discopop_tau": "training.objective: {dpo: {loss: discopop, temperature: ...}}",
    **dict.fromkeys(
        ("dpo_norm_loss", "length_normalize", "dpo_use_length_normalization"),
        "training.objective: {dpo: {length_normalized: true}}",
    ),
    "center_rewards_coefficient": "training.objective: {reward: {center: ...}}",
    "gamma_beta_ratio": "training.objective: {simpo: {gamma: ...}}",
    **dict.fromkeys(("num_samples", "max_train_samples"), "data.train.limit, of each entry"),
    "disable_shuffling": "data.shuffle",
    **dict.fromkeys(
        ("buffer_size", "pretrain_multipack_buffer_size", "streaming_multipack_buffer_size"),
        "data.window, with data.streaming: true",
    ),
    "pretraining_dataset": "data.train, with training.objective: text",
    "ds_type": "data.train.path, whose ending says the kind",
    "split_special_tokens": "data.train.special_tokens: text or tokens",
    **dict.fromkeys(
        (
            "field_messages",
            "field_instruction",
            "field_input",
            "field_output",
            "field_system",
            "field_prompt",
            "field_chosen",
            "field_rejected",
            "field_completion",
            "field_label",
            "field_tools",
        ),
        "data.train.columns: {theirs: ours}",
    ),
    "roles_to_train": "data.train_on: assistant, last-assistant or all",
    **dict.fromkeys(("batch_flattening", "sample_packing_group_size", "sample_packing_bin_size"), "data.packing"),
    "eval_sequence_len": "data.max_length, for all rows",
    **dict.fromkeys(("train_split", "dataset_split", "split_name"), "data.train.split"),
    **dict.fromkeys(("galore_proj_type", "optim_target_modules"), "adapter.method: galore"),
    "early_stopping_steps": "training.early_stopping: {patience: ...}",
    "early_stopping_threshold": "training.early_stopping: {min_delta: ...}",
    "cosine_constant_lr_ratio": "training.lr_scheduler: {wsd: {decay_ratio: ...}}",
    "auto_find_batch_size": "training.micro_batch_size: auto",
    "compute_dtype": "training.precision",
    "eval_max_new_tokens": "evaluation.max_new_tokens",
    **dict.fromkeys(("eval_table_size", "num_completions_to_print"), "evaluation.samples"),
    "eval_on_each_dataset": "evaluation.sets",
    **dict.fromkeys(
        ("comet_experiment_key", "comet_mode", "comet_online"),
        "logging.report_to: [{comet_ml: {project: ..., run_name: ...}}]",
    ),
    **dict.fromkeys(
        ("swanlab_workspace", "swanlab_logdir"), "logging.report_to: [{swanlab: {project: ..., run_name: ...}}]"
    ),
    "reference_free": "training.objective: {cpo: {alpha: 0}}, which has no reference",
    **dict.fromkeys(("deterministic_mode", "cudnn_deterministic_mode"), "training.deterministic"),
    "export_hub_model_id": "after.push: OWNER/NAME",
}

# Names that stand for several things, or whose answer is none of the tables' kinds.
SENTENCES: Mapping[str, str] = {
    "batch_size": "is ambiguous. Per step over all devices: training.global_batch_size. "
    "Per device and pass: training.micro_batch_size",
    "gradient_accumulation_steps": "is not needed: remove it and set training.global_batch_size "
    "(rows per device x accumulation steps x devices)",
    **dict.fromkeys(
        ("devices", "num_nodes"),
        "is not needed: the launcher says it, as in torchrun --nproc-per-node 2 -m lrft train",
    ),
}
ACCUMULATION = ("gradient_accumulation_steps", "grad_accumulation_steps", "gradient_accumulation")
PER_DEVICE = ("per_device_train_batch_size", "micro_batch_size", "local_batch_size", "batch_size")

# {key: {value: sentence}}: values that a nearest name would not explain.
_NOT_YET = "is not supported in this version"
_WARMUP = "training.warmup_ratio and training.warmup_steps hold for every schedule"


def _shown(choice: values.Choice) -> str:
    """A name, or {name: {option: value}}, as a recipe has it."""
    if isinstance(choice, str):
        return choice
    ((name, options),) = choice.items()
    words = (
        f"{option}: {str(value).lower() if isinstance(value, bool) else value}" for option, value in options.items()
    )
    return f"{{{name}: {{{', '.join(words)}}}}}"


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
        **dict.fromkeys(("float8", "fp8_e4m3", "e4m3"), "Here: fp8"),
        **dict.fromkeys(("false", "no"), "Here: none"),
        **dict.fromkeys(("gptq", "awq", "hqq", "aqlm", "quanto", "torchao"), "Here: nf4, fp4, int8 or fp8"),
    },
    "training.precision": {
        word: f"Here: {name}" for word, name in values.PRECISIONS.items() if word not in values.PRECISIONS.values()
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
        **{word: f"Here: {_shown(choice)}" for word, choice in values.LOSSES.items() if choice != word},
        **dict.fromkeys(("rm", "reward-modeling", "reward_modeling", "rlhf"), "Here: reward, a reward model of pairs"),
        **dict.fromkeys(
            ("ppo", "grpo", "rloo", "online_dpo", "gspo"),
            "training on answers that the model itself samples is not supported in this version",
        ),
        **dict.fromkeys(("pt", "pretrain", "pretraining"), "Here: text"),
        **dict.fromkeys(("embeddings", "contrastive", "infonce", "mnrl", "biencoder", "bi-encoder"), "Here: embedding"),
        **dict.fromkeys(("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"), "Here: embedding"),
        "MatryoshkaLoss": "Here: {embedding: {matryoshka: [...]}}",
        "MultipleNegativesSymmetricRankingLoss": "Here: {embedding: {symmetric: true}}",
        **dict.fromkeys(("ner", "token_classification", "TOKEN_CLS"), "Here: token-classification"),
        **dict.fromkeys(("sequence-classification", "seq_cls", "SEQ_CLS"), "Here: classification"),
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
        **{word: f"Here: {name}" for word, name in values.SCHEDULES.items()},
        **dict.fromkeys(("cosine_with_min_lr", "cosine_warmup_with_min_lr"), "Here: {cosine: {min_lr_ratio: ...}}"),
        **dict.fromkeys(
            ("cosine_with_restarts", "cosine_with_hard_restarts"), "Here: {cosine-restarts: {cycles: ...}}"
        ),
        **dict.fromkeys(("constant_with_warmup", "constant-with-warmup"), f"Here: constant; {_WARMUP}"),
        "linear_with_warmup": f"Here: linear; {_WARMUP}",
        "warmup_stable_decay": "Here: {wsd: {decay_ratio: ..., min_lr_ratio: ...}}",
        "polynomial_decay": "Here: {polynomial: {power: ...}}",
        "reduce_lr_on_plateau": "Here: training.early_stopping; a rate that depends on losses is not supported",
    },
    "logging.report_to": {
        **dict.fromkeys(("none", "no", "all"), "Here: [], or the names of those that are wanted"),
        **dict.fromkeys(("weights-and-biases",), "Here: wandb"),
        **{word: f"Here: {name}" for word, name in values.TRACKERS.items() if word != name},
        **dict.fromkeys(
            ("clearml", "dvclive", "neptune", "codecarbon", "azure_ml", "dagshub", "flyte"),
            f"it {_NOT_YET}; metrics.jsonl in the run folder has all that a tracker gets",
        ),
    },
    "training.optimizer": {
        **{word: f"Here: {_shown(choice)}" for word, choice in values.OPTIMIZERS.items()},
        **dict.fromkeys(
            ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
            "Here: adapter.method: galore, which brings its optimiser",
        ),
        **dict.fromkeys(("schedule_free_radam", "schedule_free_sgd"), "Here: schedule-free-adamw"),
    },
}


@cache
def keys() -> Mapping[str, str]:
    """{their name: where it lives in lrft}, of the tables in lrft/foreign and of OTHERS: names on which all agree."""
    found: dict[str, set[str]] = {}
    for name, entry in _entries():
        found.setdefault(name, set()).add(place(entry) if isinstance(entry, To) else "")
    agreed = {name: next(iter(places)) for name, places in found.items() if len(places) == 1 and places != {""}}
    return {**agreed, **OTHERS}


@cache
def reasons() -> Mapping[str, str]:
    """{their name: why a recipe has no such key}, of names that no tool uses for something that it has."""
    found: dict[str, list[Entry]] = {}
    for name, entry in _entries():
        found.setdefault(name, []).append(entry)
    return {
        name: entries[0].reason
        for name, entries in found.items()
        if name not in OTHERS and not isinstance(entries[0], To) and not any(isinstance(entry, To) for entry in entries)
    }


def _entries() -> Iterator[tuple[str, Entry]]:
    """(last part of the dotted name, entry) of every line of every table that is no name of lrft."""
    ours = {name for section in Section.__subclasses__() for name in section.model_fields}
    for table in (*(tool.KEYS for tool in TOOLS.values()), others.KEYS):
        for dotted, entry in table.items():
            name = dotted.rsplit(".", 1)[-1]
            if name and not name.startswith("_") and name not in ours:
                yield name, entry


def key_sentence(name: str, dotted: str, root: Node) -> str | None:
    """What to say about a key that another tool, or another version, has. None when nobody known has it."""
    if name in ACCUMULATION:
        return f"{dotted} {SENTENCES[ACCUMULATION[0]]}{_product(name, root)}"
    if name in SENTENCES:
        return f"{dotted} {SENTENCES[name]}"
    if name in keys():
        return f"{dotted} is another tool's name. In lrft: {keys()[name]}"
    if name in reasons():
        return f"{dotted} is another tool's name, without a key in lrft: {reasons()[name]}"
    return None


def _product(name: str, root: Node) -> str:
    """ " (4 per device x 8 steps = 32 on one device)" when both numbers stand in the recipe."""
    wanted = (name, *PER_DEVICE)
    counts = {path[-1]: node.value for path, node in root.walk() if path and path[-1] in wanted}
    steps, rows = counts.get(name), next((counts[key] for key in PER_DEVICE if key in counts), None)
    if type(steps) is not int or type(rows) is not int:
        return ""
    return f" ({rows} per device x {steps} steps = {rows * steps} on one device)"
