"""Values of other trainers: the optimisers, schedules, losses and starts that they name, with lrft's name for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A name, or {name: options}.
Choice = str | dict[str, dict[str, Any]]

OPTIMIZERS: Mapping[str, Choice] = {
    **dict.fromkeys(
        ("adamw_torch", "adamw_hf", "adamw_torch_fused", "adamw_apex_fused", "adamw_torch_xla", "adam", "AdamW"),
        "adamw",
    ),
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit", "adamw8bit", "AdamW8bit"),
        "adamw-8bit",
    ),
    # Whose 8 bits of floating point take as many bytes.
    **dict.fromkeys(
        ("adamw_torch_8bit", "torchao_adamw_8bit", "ao_adamw_8bit", "ao_adamw_fp8", "torchao_adamw_fp8"),
        "adamw-torchao",
    ),
    **{
        name: {"adamw-torchao": {"bits": 4}}
        for name in ("adamw_torch_4bit", "torchao_adamw_4bit", "ao_adamw_4bit", "AdamW4bit")
    },
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit", "PagedAdamW"), "paged-adamw"),
    "paged_adamw_8bit": {"paged-adamw": {"bits": 8}},
    "PagedAdamW8bit": {"paged-adamw": {"bits": 8}},
    "lion_32bit": "lion",
    "lion_8bit": {"lion": {"bits": 8}},
    "paged_lion": {"lion": {"paged": True}},
    "paged_lion_32bit": {"lion": {"paged": True}},
    "paged_lion_8bit": {"lion": {"bits": 8, "paged": True}},
    "ademamix_8bit": {"ademamix": {"bits": 8}},
    "paged_ademamix": {"ademamix": {"paged": True}},
    "paged_ademamix_32bit": {"ademamix": {"paged": True}},
    "paged_ademamix_8bit": {"ademamix": {"bits": 8, "paged": True}},
    "schedule_free_adamw": "schedule-free-adamw",
    "SGD": "sgd",
}

SCHEDULES: Mapping[str, str] = {
    **dict.fromkeys(("cosine_decay", "get_cosine_schedule_with_warmup", "cosine_with_min_lr"), "cosine"),
    "cosine_warmup_with_min_lr": "cosine",
    **dict.fromkeys(("cosine_with_restarts", "cosine_with_hard_restarts"), "cosine-restarts"),
    **dict.fromkeys(("constant_with_warmup", "constant-with-warmup"), "constant"),
    **dict.fromkeys(("linear_schedule", "linear_with_warmup"), "linear"),
    "inverse_sqrt": "inverse-sqrt",
    "polynomial_decay": "polynomial",
    "warmup_stable_decay": "wsd",
}

# Losses that trainers of preferences name, as options of lrft's dpo, or as objectives of their own.
PAIR_LOSSES = (
    *("ipo", "hinge", "robust", "exo_pair", "bco_pair", "nca_pair", "apo_zero", "apo_down", "sppo_hard", "discopop"),
)
SHORT_LOSSES = {"slic": "hinge", "bco": "bco_pair", "exo": "exo_pair", "nca": "nca_pair", "sppo": "sppo_hard"}
LOSSES: Mapping[str, Choice] = {
    "sigmoid": "dpo",
    **{loss: {"dpo": {"loss": loss}} for loss in PAIR_LOSSES},
    **{short: {"dpo": {"loss": loss}} for short, loss in SHORT_LOSSES.items()},
    **{name: name for name in ("orpo", "simpo", "cpo", "kto")},
}

# Starts of a LoRA: init_lora_weights of PEFT, and what others call so. None: lrft's start as it is.
STARTS: Mapping[str, str | None] = {
    **dict.fromkeys(("true", "gaussian", "kaiming"), None),
    **{name: name for name in ("pissa", "olora", "eva", "corda")},
    **dict.fromkeys(("lora_ga", "lora-ga"), "lora-ga"),
}

PRECISIONS: Mapping[str, str] = {
    **dict.fromkeys(("bf16", "bfloat16", "bf16-true", "bf16-mixed", "bf16_mixed", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "16-true", "16-mixed", "half", "torch.float16"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "32-true", "32", "torch.float32", "no"), "fp32"),
    **dict.fromkeys(("auto", "none"), "auto"),
}

ATTENTION: Mapping[str, str] = {
    **{name: name for name in ("auto", "sdpa", "eager", "flash_attention_2")},
    **dict.fromkeys(("flash_attn", "fa2"), "flash_attention_2"),
}

TRACKERS: Mapping[str, str] = {
    **{name: name for name in ("wandb", "mlflow", "tensorboard", "trackio", "swanlab", "aim", "comet_ml")},
    **dict.fromkeys(("comet", "comet-ml"), "comet_ml"),
    **dict.fromkeys(("weights_and_biases", "w&b"), "wandb"),
}
