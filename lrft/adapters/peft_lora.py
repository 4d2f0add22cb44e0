"""PEFT's LoRA and its variants as a folder that is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.peft_type import Named, PeftType, by_pattern
from lrft.model.experts import WORDS, stack_of

# Starts that leave the base as it is. The others of PEFT change it, so their factors are no update of the base.
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
VARIANTS = {
    "arrow_config": (
        "it sends each token to some of several LoRAs that are loaded beside it, and has no update of its own; lrft "
        "combine makes one LoRA of such"
    ),
    "layer_replication": "it adapts copies of layers, which the base does not have; replicate them in the base itself",
    **dict.fromkeys(("alora_invocation_tokens", "kasa_config", "use_qalora"), "a variant with a method of its own"),
}
"""settings beside which A and B are something else, with the reason"""
# VeLoRA keeps less of the input for the backward pass, and a vector for that; MonteCLoRA displaces A in training by
# noise of trained distributions. What they compute afterwards is a LoRA.
OF_TRAINING = (
    "lora_velora_embed",
    *(f"lora_monteclora_sampler.{word}" for word in ("std_prior", "expert_weights_prior", "gaussian_var_prior")),
    "lora_monteclora_sampler.expert_weights",
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
        for key, why in VARIANTS.items():
            if config.get(key) and key != self.asks:
                return f"{key} is set: {why}"
        for name in config.get("target_parameters") or ():
            if str(name).rpartition(".")[2] not in ("weight", *WORDS):
                return f"target_parameters names {name}, no weight of layers or of experts"
        return super().refusal({key: value for key, value in config.items() if key not in VARIANTS})

    def prepared(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """BD-LoRA's blocks, where a factor is kept as such, put on the diagonal of a whole factor."""
        blocks = config.get("use_bdlora")
        if not blocks or "magnitude" in tensors:
            return dict(tensors)
        last = name.rsplit(".", 1)[-1]  # PEFT looks for the words in the last one of the name
        sparse = {
            own
            for own, key in (("A", "target_modules_bd_a"), ("B", "target_modules_bd_b"))
            if any(word in last for word in blocks.get(key) or ())
        }
        return {own: diagonal(t, int(blocks["nblocks"])) if own in sparse else t for own, t in tensors.items()}

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        dora = "magnitude" in next(iter(found.values()))
        return [(method, self.values(config)), *([("dora", {})] if dora else [])]

    def site(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], depth: int | None) -> Site:
        if not tensors.keys() >= {"A", "B"}:
            raise ValueError(f"{name} has only {', '.join(self.tensors[own].ending[:6] for own in tensors)}")
        return super().site(name, tensors, config, depth)

    def said_rank(self, name: str, config: Mapping[str, Any]) -> int | None:
        return super().said_rank(named(name, config), config)

    def factor(self, name: str, config: Mapping[str, Any], rank: int) -> float:
        alpha = float(by_pattern(named(name, config), config.get("alpha_pattern"), config["lora_alpha"]))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def lora_type(adapter: type[Adapter], **more: Any) -> LoraType:
    """PEFT's LoRA, or with `more` one of its variants, as `adapter` keeps it."""
    own: dict[str, Any] = {
        "tensors": {
            "A": Named("lora_A.weight", "rk"),
            "B": Named("lora_B.weight", "dr"),
            "magnitude": Named("lora_magnitude_vector", "d"),
        },
        "alpha": "lora_alpha",
        "patterns": ("rank_pattern", "alpha_pattern"),
        "dropout": "lora_dropout",
        "training": (
            *("use_rslora", "use_dora", "init_lora_weights", "target_parameters", "eva_config", "loftq_config"),
            *("ensure_weight_tying", "megatron_core", "corda_config", "lora_ga_config", "qalora_group_size"),
            *("use_bdlora", "velora_config", "monteclora_config"),
        ),
        "repeated": OF_TRAINING,
        "beside": True,
    }
    return LoraType("LORA", adapter, **(own | more))


def named(name: str, config: Mapping[str, Any]) -> str:
    """The layer's name in patterns: its weight's where that is a target parameter, of an expert its stack's."""
    if stack_of(name) is not None:
        return name.rpartition(".")[0]
    weight = f"{name}.weight"
    return weight if weight in (config.get("target_parameters") or ()) else name


def diagonal(tensor: Tensor, blocks: int) -> Tensor:
    """(n, blocks * m) from blocks (n, m) that lie below each other."""
    return torch.block_diag(*tensor.chunk(blocks))
