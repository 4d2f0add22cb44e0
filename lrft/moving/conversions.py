"""Conversions of values, by the name that a line of a table gives: `how` of `lrft.foreign.entries.To`.

Each takes the value, what the table gives with it, and the folder of the configuration. It returns the value of a
recipe, or raises `Unsaid` (no counterpart) or `Nothing` (nothing is asked for); both carry the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.errors import nearest
from lrft.foreign import values
from lrft.moving import sources
from lrft.moving.draft import Nothing, Unsaid
from lrft.moving.python_calls import Computed
from lrft.recipe.foreign_keys import VALUES
from lrft.recipe.schema import CHOICE_OPTIONS
from lrft.recipe.yaml_scalars import looks_like_number, resolve

Conversion = Callable[[Any, Any, Path], Any]
OFF = "off, as by default"


def convert(how: str, value: Any, by: Any, folder: Path) -> Any:
    """`value` by the conversion `how`. Raises Unsaid or Nothing, with the reason."""
    if isinstance(value, Computed):
        if re.search(r"bf(loat)?16_supported", value):
            raise Nothing("training.precision: auto takes bf16 where the GPU has it")
        raise Unsaid("computed in the file, which is read and not run")
    if isinstance(value, str) and re.search(r"\$[({A-Za-z_]|^<.*>$", value):
        raise Unsaid("a value that only the shell or the user knows")
    return CONVERSIONS[how](value, by, folder)


def _same(value: Any, by: Any, folder: Path) -> Any:
    if isinstance(value, str) and looks_like_number(value):
        return resolve(value)
    return value


def _text(value: Any, by: Any, folder: Path) -> str:
    if isinstance(value, dict | list):
        raise Unsaid("expected text")
    return str(value)


def _one_folder(value: Any, by: Any, folder: Path) -> str:
    """A folder of an adapter; several are merged one after the other by other tools."""
    names = value if isinstance(value, list) else [word.strip() for word in str(value).split(",")]
    if len(names) != 1 or isinstance(value, dict):
        raise Unsaid("adapter.start_from takes one adapter; lrft combine makes one of several")
    return str(names[0])


def _number(value: Any, by: Any, folder: Path) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Unsaid("expected a number") from None


def _above_zero(value: Any, by: Any, folder: Path) -> Any:
    value = _same(value, by, folder)
    if not isinstance(value, int | float) or value <= 0:
        raise Nothing(OFF)
    return value


def _warmup(value: Any, by: Any, folder: Path) -> Any:
    """warmup_steps; below 1 it is a share of the run in newer versions of transformers."""
    value = _same(value, by, folder)
    if isinstance(value, float) and 0 < value < 1:
        raise Unsaid("a share of the run is training.warmup_ratio")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: Any, by: Any, folder: Path) -> Any:
    """`by` when the flag is on."""
    if value == "auto":
        raise Nothing("auto, as by default")
    if not _is_on(value):
        raise Nothing(OFF)
    return by


def _unless(value: Any, by: Any, folder: Path) -> Any:
    if _is_on(value):
        raise Nothing(OFF)
    return by


def _is_on(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "yes")


def _words(value: Any, by: Mapping[str, str], folder: Path) -> str:
    word = str(value).lower() if isinstance(value, bool) else str(value)
    if word not in by:
        raise Unsaid(f"values with a counterpart: {', '.join(by)}")
    return by[word]


def _parts(value: Any, by: list[str], folder: Path) -> list[str]:
    if not _is_on(value):
        raise Nothing("these layers have no adapter, as nothing names them")
    return by


def _targets(value: Any, by: Any, folder: Path) -> list[str]:
    words = value if isinstance(value, list) else [word.strip() for word in str(value).split(",")]
    if len(words) == 1 and str(words[0]).lower() in ("all", "all-linear", "all_linear"):
        return ["all-linear"]
    if isinstance(value, str) and re.search(r"[\\^$*+()|\[\]]", value):
        return [f"re:{value}"]
    kept = [
        str(word) for word in words if str(word) not in ("all-linear", "embed_tokens", "lm_head") or len(words) == 1
    ]
    if "all-linear" in words:
        raise Unsaid("all-linear, and modules that are trained in full: adapter.modules_to_save")
    return kept


def _modules(value: Any, by: Any, folder: Path) -> list[str]:
    """Names of modules that are trained in full."""
    words = value if isinstance(value, list) else [word.strip() for word in str(value or "").split(",")]
    return [str(word) for word in words if word]


def _plain_tokens(value: Any, by: Any, folder: Path) -> list[dict[str, Any]]:
    """New tokens whose text stands for them."""
    return [{"token": str(token), "special": False} for token in value]


def _expression(value: Any, by: Any, folder: Path) -> list[str]:
    return [f"re:{value}"]


def _layers(value: Any, by: Any, folder: Path) -> Any:
    return [value] if isinstance(value, int) else list(value) if isinstance(value, list) else value


def _last_layers(value: Any, by: Any, folder: Path) -> str:
    if isinstance(value, int) and value < 0:
        return "all"
    raise Unsaid("counts blocks from the end; adapter.layers names them: of 32 blocks the last 16 are 16-31")


def _override(value: Any, by: str, folder: Path) -> dict[str, dict[str, Any]]:
    """{pattern: {rank or alpha: number}} from PEFT's patterns, which match the end of a name."""
    if not isinstance(value, dict):
        raise Unsaid("expected a map of patterns")
    return {f"re:(.*\\.)?({pattern})": {by: number} for pattern, number in value.items()}


def _refused(value: Any, by: str, folder: Path) -> Any:
    """A switch of something that lrft does not have: nothing is lost where it is off. by: the reason."""
    if value in ("none", False):
        raise Nothing(OFF)
    raise Unsaid(by)


def _method(value: Any, by: Any, folder: Path) -> list[str]:
    word = str(value).lower().replace("_", "-")
    if word == "qlora":
        return [registry.DEFAULT_METHOD]
    if word in registry.methods() or word in registry.PRESETS:
        return [word]
    close = nearest(word, registry.methods())
    raise Unsaid(
        f"lrft has no method {value}" + (f"; {close[0]} is near" if close else "; lrft methods lists those it has")
    )


def _peft(value: Any, by: Any, folder: Path) -> list[str]:
    """use_peft: without it all weights are trained."""
    return [registry.DEFAULT_METHOD if _is_on(value) else "full"]


def _ratio(value: Any, by: str, folder: Path) -> list[Any]:
    return [{by: {"ratio": _number(value, by, folder)}}]


def _start(value: Any, by: Any, folder: Path) -> list[str]:
    word = str(value).lower()
    if word.startswith("pissa_niter_"):
        return [{"pissa": {"svd": "randomized", "iterations": int(word.rsplit("_", 1)[1])}}]  # type: ignore[list-item]
    if word not in values.STARTS:
        raise Unsaid(f"starts with a counterpart: {', '.join(word for word, name in values.STARTS.items() if name)}")
    name = values.STARTS[word]
    if name is None:
        raise Nothing("A is drawn, B is zero, as by default")
    return [name]


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
    if value in ("unsloth", "offload", "offload_disk") or _is_on(value):
        return "full"
    raise Nothing("off, as by default")


def _clipping(value: Any, by: Any, folder: Path) -> Any:
    value = _same(value, by, folder)
    return value if isinstance(value, int | float) and value > 0 else "none"


def _steps(value: Any, by: Any, folder: Path) -> Any:
    value = _same(value, by, folder)
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


def _trackers(value: Any, by: Any, folder: Path) -> list[str]:
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
    return {"patience": _above_zero(value, by, folder)}


def _held_out(value: Any, by: Any, folder: Path) -> Any:
    value = _same(value, by, folder)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unsaid("data.validation: a fraction, a number of rows or a file")
    if value <= 0:
        return "none"
    return value if value < 1 else int(value)


def _train_on_inputs(value: Any, by: Any, folder: Path) -> str:
    return "all" if _is_on(value) else "assistant"


def _template(value: Any, by: Any, folder: Path) -> str:
    text = str(value)
    if "{%" in text or "{{" in text:
        raise Unsaid("a template's text belongs into a .jinja file: data.chat_template: FILE.jinja")
    if text.endswith(".jinja"):
        return text
    raise Nothing("the tokenizer's own chat template is the default of data.chat_template")


def _option(value: Any, by: str, folder: Path) -> dict[str, Any]:
    return {by: value}


def _text_column(value: Any, by: Any, folder: Path) -> dict[str, str]:
    if not value or value == "text":
        raise Nothing("text is the column that rows of text have")
    return {str(value): "text"}


def _renamed(value: Any, by: Any, folder: Path) -> dict[str, str]:
    """{column in the file: column of lrft} from torchtune's {its column: column in the file}."""
    names = {"input": "prompt", "output": "completion", "text": "text", "instruction": "instruction"}
    if not isinstance(value, dict) or not set(value) <= set(names):
        raise Unsaid("data.train.columns: {column in the file: column of lrft}")
    return {str(theirs): names[name] for name, theirs in value.items()}


def _whole_split(value: Any, by: Any, folder: Path) -> str:
    if not re.fullmatch(r"[\w.-]+", str(value)):
        raise Unsaid("a slice of a split: data.train.limit takes some rows, data.validation holds some out")
    return str(value)


def _weights(value: Any, by: Any, folder: Path) -> list[float]:
    words = value if isinstance(value, list) else str(value).split(",")
    return [_number(word, by, folder) for word in words]


def _torchtune_model(value: Any, by: Any, folder: Path) -> str:
    name = str(value).rsplit(".", 1)[-1]
    if name.startswith("qlora_"):
        return "nf4"
    raise Nothing("the model's folder says how it is built")


def _torchtune_attention(value: Any, by: Any, folder: Path) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return ["o_proj" if name == "output_proj" else str(name) for name in names]


def _torchtune_loss(value: Any, by: Any, folder: Path) -> Any:
    name = str(value).rsplit(".", 1)[-1]
    if name.endswith("DPOLoss"):
        return "dpo"
    if name.startswith("ForwardKL"):
        return "distill"
    if "CrossEntropy" in name or name.startswith("CE"):
        raise Nothing("the loss of sft, the default")
    raise Unsaid("objectives: " + ", ".join(registry.declared("objectives")))


def _torchtune_logger(value: Any, by: Any, folder: Path) -> list[str]:
    name = str(value).rsplit(".", 1)[-1].removesuffix("Logger").lower()
    return _trackers("none" if name in ("disk", "stdout") else name, by, folder)


CONVERSIONS: Mapping[str, Conversion] = {
    "same": _same,
    "text": _text,
    "one_folder": _one_folder,
    "number": _number,
    "above_zero": _above_zero,
    "warmup": _warmup,
    "flag": _flag,
    "unless": _unless,
    "words": _words,
    "parts": _parts,
    "targets": _targets,
    "modules": _modules,
    "plain_tokens": _plain_tokens,
    "expression": _expression,
    "layers": _layers,
    "last_layers": _last_layers,
    "override": _override,
    "refused": _refused,
    "method": _method,
    "peft": _peft,
    "ratio": _ratio,
    "start": _start,
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
    "trackers": _trackers,
    "metric": _metric,
    "patience": _patience,
    "held_out": _held_out,
    "train_on_inputs": _train_on_inputs,
    "template": _template,
    "option": _option,
    "text_column": _text_column,
    "renamed": _renamed,
    "whole_split": _whole_split,
    "weights": _weights,
    "torchtune_model": _torchtune_model,
    "torchtune_attention": _torchtune_attention,
    "torchtune_loss": _torchtune_loss,
    "torchtune_logger": _torchtune_logger,
    **sources.CONVERSIONS,
}
