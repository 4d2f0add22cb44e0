"""Conversions of what other tools say of the training: objective, loss, optimiser, schedule, precision, batches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.foreign import values
from lrft.moving.conversion import OFF, Conversion
from lrft.moving.draft import Nothing, Unsaid
from lrft.moving.plain_values import above_zero, is_on, same
from lrft.recipe.foreign_keys import VALUES
from lrft.recipe.schema import CHOICE_OPTIONS


def _warmup(value: Any, by: Any, folder: Path) -> Any:
    """warmup_steps; below 1 it is a share of the run in newer versions of transformers."""
    value = same(value, by, folder)
    if isinstance(value, float) and 0 < value < 1:
        raise Unsaid("a share of the run is training.warmup_ratio")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _task(value: Any, by: Any, folder: Path) -> str:
    word = str(value).upper()
    if word in ("CAUSAL_LM", "CAUSALLM"):
        raise Nothing("the objective of text is the default")
    if word in ("SEQ_CLS", "SEQUENCE_CLASSIFICATION"):
        return "classification"
    raise Unsaid("objectives: " + ", ".join(registry.declared("objectives")))


def _stage(value: Any, by: Any, folder: Path) -> Any:
    """Stages of LLaMA-Factory."""
    stages = {"sft": "sft", "pt": "text", "rm": "reward"}
    if value in stages:
        return stages[value]
    return _loss(value, by, folder)


def _loss(value: Any, by: Any, folder: Path) -> Any:
    if isinstance(value, list):
        if len(value) != 1:
            raise Unsaid("one loss is trained; rpo_alpha adds the likelihood of the chosen answers")
        value = value[0]
    word = str(value).lower()
    if word in ("sft", "nll", "chunked_nll", "cross_entropy"):
        return "sft"
    if word in ("rm", "reward"):
        return "reward"
    if word in registry.declared("objectives"):
        return word
    if word not in values.LOSSES:
        raise Unsaid("losses with a counterpart: " + ", ".join(values.LOSSES))
    return values.LOSSES[word]


def _optimizer(value: Any, by: Any, folder: Path) -> Any:
    word = str(value)
    if word.lower().replace("_", "-") in registry.declared("optimizers"):
        return word.lower().replace("_", "-")
    if word not in values.OPTIMIZERS:
        raise Unsaid(
            VALUES["training.optimizer"].get(word) or "optimisers: " + ", ".join(registry.declared("optimizers"))
        )
    return values.OPTIMIZERS[word]


def _component(value: Any, by: Any, folder: Path) -> Any:
    """A class of an optimiser by its import path."""
    name = str(value).rsplit(".", 1)[-1]
    return _optimizer(name if name in values.OPTIMIZERS else name.lower(), by, folder)


def _schedule(value: Any, by: Any, folder: Path) -> str:
    word = str(value).lower()
    if word in CHOICE_OPTIONS["lr_scheduler"]:
        return word
    if word not in values.SCHEDULES:
        raise Unsaid(
            VALUES["training.lr_scheduler"].get(word) or "schedules: " + ", ".join(CHOICE_OPTIONS["lr_scheduler"])
        )
    return values.SCHEDULES[word]


def _component_schedule(value: Any, by: Any, folder: Path) -> str:
    return _schedule(str(value).rsplit(".", 1)[-1], by, folder)


def _schedule_options(value: Any, by: Any, folder: Path) -> dict[str, Any]:
    """lr_scheduler_kwargs of transformers."""
    names = {"min_lr_rate": "min_lr_ratio", "num_cycles": "cycles", "power": "power"}
    if not isinstance(value, dict) or not set(value) <= set(names):
        raise Unsaid("options with a counterpart: " + ", ".join(names))
    return {names[name]: item for name, item in value.items()}


def _precision(value: Any, by: Any, folder: Path) -> str:
    word = str(value).lower()
    if word not in values.PRECISIONS:
        raise Unsaid("training.precision: auto, bf16, fp16 or fp32")
    if values.PRECISIONS[word] == "auto":
        raise Nothing("auto, as by default")
    return values.PRECISIONS[word]


def _attention(value: Any, by: Any, folder: Path) -> str:
    word = str(value).lower()
    if word not in values.ATTENTION:
        raise Unsaid("model.attention: auto, sdpa, flash_attention_2 or eager")
    return values.ATTENTION[word]


def _bits(value: Any, by: Any, folder: Path) -> str:
    if str(value) not in ("4", "8"):
        raise Unsaid("model.quantization: nf4 for 4 bits, int8 for 8")
    return {"4": "nf4", "8": "int8"}[str(value)]


def _checkpointing(value: Any, by: Any, folder: Path) -> str:
    if value in ("unsloth", "offload", "offload_disk") or is_on(value):
        return "full"
    raise Nothing("off, as by default")


def _clipping(value: Any, by: Any, folder: Path) -> Any:
    value = same(value, by, folder)
    return value if isinstance(value, int | float) and value > 0 else "none"


def _steps(value: Any, by: Any, folder: Path) -> Any:
    value = same(value, by, folder)
    if value == "none" or (isinstance(value, int | float) and value <= 0):
        return "none"
    if isinstance(value, float) and value >= 1:
        return int(value)
    return value


def _passes(value: Any, by: Any, folder: Path) -> Any:
    return _steps(value, by, folder)


def _deepspeed(value: Any, by: Any, folder: Path) -> str:
    """The stage of ZeRO, by the name of DeepSpeed's file or the number in it."""
    stage = value.get("zero_optimization", {}).get("stage") if isinstance(value, dict) else None
    found = re.search(r"z(?:ero)?[_-]?(\d)", str(value)) if stage is None else None
    stage = int(found[1]) if found else stage
    if stage in (0, 1):
        raise Nothing("state of an adapter's optimiser is small: each process keeps its own")
    if stage not in (2, 3):
        raise Unsaid("distributed.strategy: auto, ddp, fsdp or zero2")
    return "zero2" if stage == 2 else "fsdp"


def _fsdp(value: Any, by: Any, folder: Path) -> str:
    if not value:
        raise Nothing(OFF)
    return "fsdp"


def trackers(value: Any, by: Any, folder: Path) -> list[str]:
    words = value if isinstance(value, list) else str(value).split(",")
    names = [str(word).strip().lower() for word in words]
    if names in (["none"], ["csv"]):
        raise Nothing("metrics.jsonl is always written, and nothing else by default")
    if unknown := [name for name in names if name not in values.TRACKERS]:
        raise Unsaid(f"{', '.join(unknown)}: trackers are {', '.join(dict.fromkeys(values.TRACKERS.values()))}")
    return [values.TRACKERS[name] for name in names]


def _metric(value: Any, by: Any, folder: Path) -> str:
    word = str(value).removeprefix("eval_").removeprefix("eval/")
    if word == "loss":
        raise Nothing("the validation loss decides, as by default")
    raise Unsaid("evaluation.best names a metric of evaluation.metrics")


def _patience(value: Any, by: Any, folder: Path) -> dict[str, Any]:
    return {"patience": above_zero(value, by, folder)}


CONVERSIONS: Mapping[str, Conversion] = {
    "warmup": _warmup,
    "task": _task,
    "stage": _stage,
    "loss": _loss,
    "optimizer": _optimizer,
    "component": _component,
    "schedule": _schedule,
    "component_schedule": _component_schedule,
    "schedule_options": _schedule_options,
    "precision": _precision,
    "attention": _attention,
    "bits": _bits,
    "checkpointing": _checkpointing,
    "clipping": _clipping,
    "steps": _steps,
    "passes": _passes,
    "deepspeed": _deepspeed,
    "fsdp": _fsdp,
    "trackers": trackers,
    "metric": _metric,
    "patience": _patience,
}
