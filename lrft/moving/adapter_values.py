"""Conversions of what other tools say of an adapter: method, rank, target modules, where it starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.errors import nearest
from lrft.foreign import values
from lrft.moving.conversion import Conversion
from lrft.moving.draft import Nothing, Unsaid
from lrft.moving.plain_values import is_on, number


def _one_folder(value: Any, by: Any, folder: Path) -> str:
    """A folder of an adapter; several are merged one after the other by other tools."""
    names = value if isinstance(value, list) else [word.strip() for word in str(value).split(",")]
    if len(names) != 1 or isinstance(value, dict):
        raise Unsaid("adapter.start_from takes one adapter; lrft combine makes one of several")
    return str(names[0])


def _parts(value: Any, by: list[str], folder: Path) -> list[str]:
    if not is_on(value):
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
    return [registry.DEFAULT_METHOD if is_on(value) else "full"]


def _ratio(value: Any, by: str, folder: Path) -> list[Any]:
    return [{by: {"ratio": number(value, by, folder)}}]


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


CONVERSIONS: Mapping[str, Conversion] = {
    "one_folder": _one_folder,
    "parts": _parts,
    "targets": _targets,
    "modules": _modules,
    "plain_tokens": _plain_tokens,
    "expression": _expression,
    "layers": _layers,
    "last_layers": _last_layers,
    "override": _override,
    "method": _method,
    "peft": _peft,
    "ratio": _ratio,
    "start": _start,
}
