"""PEFT's LoRA and its variants as a folder that is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.peft_type import PeftType, by_pattern

# Starts that leave the base as it is. The others of PEFT change it, so their factors are no update of the base.
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
VARIANTS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config"),
    *("use_bdlora", "use_qalora", "velora_config"),
)


@dataclass(frozen=True)
class LoraType(PeftType):
    """What PEFT multiplies into a weight is taken from the configuration alone: rank from the tensors, alpha from
    `lora_alpha` and `alpha_pattern`, their quotient from `use_rslora`."""

    def refusal(self, config: Mapping[str, Any]) -> str:
        start = config.get("init_lora_weights")
        if start not in KEEPS_BASE:
            return (
                f"with init_lora_weights {start!r} PEFT modifies the base weights: A and B are not an update of the "
                f"original base. PEFT's path_initial_model_for_weight_conversion saves one"
            )
        for key in VARIANTS:
            if config.get(key):
                return f"{key} is set, a LoRA variant that is not supported"
        if not all(str(name).endswith(".weight") for name in config.get("target_parameters") or ()):
            return "target_parameters names more than weights of linear layers"
        return super().refusal({key: value for key, value in config.items() if key not in VARIANTS})

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        dora = "magnitude" in next(iter(found.values()))
        return [(method, {}), *([("dora", {})] if dora else [])]

    def site(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], depth: int | None) -> Site:
        if not tensors.keys() >= {"A", "B"}:
            raise ValueError(f"{name} has only {', '.join(self.tensors[own].ending[:6] for own in tensors)}")
        return super().site(name, tensors, config, depth)

    def said_rank(self, name: str, config: Mapping[str, Any]) -> int | None:
        return super().said_rank(named(name, config), config)

    def factor(self, name: str, config: Mapping[str, Any], rank: int) -> float:
        alpha = float(by_pattern(named(name, config), config.get("alpha_pattern"), config["lora_alpha"]))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def named(name: str, config: Mapping[str, Any]) -> str:
    """The layer's name in patterns: that of its weight where it is a target parameter."""
    weight = f"{name}.weight"
    return weight if weight in (config.get("target_parameters") or ()) else name
