"""Adapters of stacked experts in PEFT's files: `target_parameters`.

PEFT has one pair for a stack: lora_A (experts r, k), and lora_B (d, r experts) in which the expert counts fastest. Of
several weights of one module the first that is registered lies innermost, under base_layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import PeftForm
from lrft.errors import UsageError
from lrft.model.experts import WORDS, UnstackedExperts, stack_of

INNER = "base_layer."


def stacks_in(names: Iterable[str]) -> dict[str, list[str]]:
    """Stacked weight MODULE.WORD -> the layers of its experts among `names`, in the order of the experts."""
    found: dict[str, list[str]] = {}
    for name in names:
        if stack_of(name) is not None:
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return {stack: sorted(layers, key=lambda name: int(name.rpartition(".")[2])) for stack, layers in found.items()}


def refused(model: nn.Module, forms: Mapping[str, PeftForm | None]) -> str:
    """Why PEFT cannot adapt these experts; "" when it can."""
    for stack, layers in stacks_in(forms).items():
        made = [forms[name] for name in layers]
        module = model.get_submodule(stack.rpartition(".")[0])
        if isinstance(module, UnstackedExperts) and len(layers) < module.base.num_experts:
            return f"its target_parameters adapt all experts of {stack}, and here only {len(layers)} have an adapter"
        if any(form is None or form.magnitude is not None for form in made):
            return "its target_parameters do not support DoRA"
        if len({(form.A.shape[0], form.scale) for form in made if form is not None}) > 1:
            return f"its target_parameters have one rank and factor for all experts of {stack}"
    return ""


def expert_tensors(model: nn.Module, forms: Mapping[str, PeftForm]) -> dict[str, Tensor]:
    """PEFT's tensors of the stacks, by their names without PEFT's prefix."""
    found: dict[str, Tensor] = {}
    stacks = stacks_in(forms)
    for stack, layers in stacks.items():
        module, _, word = stack.rpartition(".")
        own: Any = model.get_submodule(module)
        order = [name for name, _ in own.base.named_parameters(recurse=False) if f"{module}.{name}" in stacks]
        inner = INNER * (len(order) - 1 - order.index(word))
        A = torch.cat([forms[name].A for name in layers])
        B = torch.stack([forms[name].B for name in layers], dim=-1).flatten(1)
        found |= {f"{module}.{inner}lora_A.weight": A, f"{module}.{inner}lora_B.weight": B}
    return found


def split_stacks(found: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The pairs of a file of PEFT by site, those of stacks as one pair for each expert. Raises ValueError where their
    sizes do not go together."""
    parameters = [name for name in config.get("target_parameters") or () if name.rpartition(".")[2] in WORDS]
    made: dict[str, dict[str, Tensor]] = {}
    for name, pair in found.items():
        module = name.replace(f".{INNER[:-1]}", "")
        words = [word for word in WORDS if any(ends_with(f"{module}.{word}", target) for target in parameters)]
        if not words:
            made[name] = dict(pair)
            continue
        depth = (len(name) - len(module)) // len(f".{INNER[:-1]}")
        if depth >= len(words):
            raise ValueError(f"{name} lies deeper than target_parameters says")
        stack = f"{module}.{words[len(words) - 1 - depth]}"
        made |= {f"{stack}.{e}": one for e, one in enumerate(split(stack, pair, rank_of(stack, config)))}
    missing = [p for p in parameters if not any(ends_with(name.rpartition(".")[0], p) for name in made)]
    if missing:
        raise UsageError(f"target_parameters names {missing[0]}, of which the file has no tensors")
    return made


def ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def rank_of(stack: str, config: Mapping[str, Any]) -> int:
    """The rank of each expert."""
    patterns = config.get("rank_pattern") or {}
    return int(next((rank for key, rank in patterns.items() if ends_with(stack, key)), config["r"]))


def split(stack: str, pair: Mapping[str, Tensor], rank: int) -> list[dict[str, Tensor]]:
    """A (r, k) and B (d, r) of each expert."""
    if not pair.keys() >= {"A", "B"}:
        raise ValueError(f"{stack} has only one of lora_A and lora_B")
    A, B = pair["A"], pair["B"]
    if len(A) % rank or B.shape[1] != len(A):
        raise ValueError(f"{stack}: its tensors have {len(A)} and {B.shape[1]} directions, and the rank is {rank}")
    experts = len(A) // rank
    first, second = A.view(experts, rank, -1), B.view(len(B), rank, experts)
    return [{"A": first[e].contiguous(), "B": second[..., e].contiguous()} for e in range(experts)]
