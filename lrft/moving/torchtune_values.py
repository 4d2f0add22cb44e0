"""Conversions of components that torchtune's configurations name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.moving.conversion import Conversion
from lrft.moving.draft import Nothing, Unsaid
from lrft.moving.training_values import trackers


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
    return trackers("none" if name in ("disk", "stdout") else name, by, folder)


CONVERSIONS: Mapping[str, Conversion] = {
    "torchtune_model": _torchtune_model,
    "torchtune_attention": _torchtune_attention,
    "torchtune_loss": _torchtune_loss,
    "torchtune_logger": _torchtune_logger,
}
