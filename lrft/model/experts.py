"""Stacked experts: the matrices of all experts of a block in one tensor, each of them shown as a linear layer.

transformers keeps them so for kernels that take all experts at once, under one protocol
(`transformers.integrations.moe.use_experts_implementation`): `gate_up_proj` or `up_proj`, and `down_proj`, of shape
(experts, d, k), or (experts, k, d) where `is_transposed`; `_apply_gate` between them. Here a module takes the place of
the stack, whose layers are views of it: what adapts a linear layer adapts an expert. Tokens are sorted by expert, and
each expert computes for its own; all of them in one product where `lrft.model.grouped` can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import linear

from lrft.model import grouped

WORDS = ("gate_up_proj", "up_proj", "down_proj")
PROTOCOL = ("is_transposed", "has_bias", "has_gate", "has_post_expert_norm", "_apply_gate", "num_experts")


class ExpertLinear(nn.Module):
    """The matrix of one expert, (d, k) of a stack, as a linear layer. It owns nothing."""

    def __init__(self, stack: nn.Parameter, bias: nn.Parameter | None, expert: int, transposed: bool) -> None:
        super().__init__()
        self.stack = stack
        self.biases = bias
        self.expert = expert
        self.transposed = transposed

    @property
    def weight(self) -> Tensor:
        return self.stack[self.expert]

    @property
    def bias(self) -> Tensor | None:
        return None if self.biases is None else self.biases[self.expert]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T if self.transposed else self.weight, self.bias)

    def pairs(self, x: Tensor) -> Sequence[grouped.Pair]:
        """Nothing is added to its product."""
        return ()


class UnstackedExperts(nn.Module):
    """In the place of a stack of experts: `gate_up_proj.3` is a layer of expert 3."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.words = [word for word in WORDS if isinstance(getattr(base, word, None), nn.Parameter)]
        for word in self.words:
            stack, bias = getattr(base, word), getattr(base, f"{word}_bias", None)
            layers = [ExpertLinear(stack, bias, e, base.is_transposed) for e in range(len(stack))]
            self.add_module(word, nn.ModuleList(layers))
        self.train(base.training)

    def forward(self, hidden: Tensor, *routed: Tensor, **named: Tensor) -> Tensor:
        """hidden (tokens, k); routed: the experts of each token and their weights, (tokens, top)."""
        base: Any = self.base
        chosen, weights = (*routed, *named.values())
        order = torch.argsort(chosen.reshape(-1), stable=True)
        tokens = order // chosen.shape[-1]
        counts = self.counts(chosen.reshape(-1))
        inner = self.product(self.words[0], hidden[tokens], counts)
        inner = base._apply_gate(inner) if base.has_gate else base.act_fn(inner)
        outer = self.product(self.words[-1], inner, counts)
        found = base.post_expert_norm(outer) if base.has_post_expert_norm else outer
        weighted = found * weights.reshape(-1)[order][:, None]
        return torch.zeros_like(hidden).index_add(0, tokens, weighted.to(hidden.dtype))

    def product(self, word: str, rows: Tensor, counts: list[int]) -> Tensor:
        """The outputs (rows, d) of the layers of `word` for rows (rows, k), of which each has its count in turn."""
        layers = list(self.get_submodule(word).children())
        # Processes that share a step have to have the same tensors in it, routed to or not.
        everyone = all_take_part()
        stack: Tensor = getattr(self.base, word)
        if grouped.is_possible(rows, stack):
            pairs = grouped.pairs_of(layers, rows)
            if pairs is not None:
                W = stack.transpose(1, 2) if self.base.is_transposed else stack
                biases = getattr(self.base, f"{word}_bias", None)
                return grouped.linear_plus_pairs(rows, W, biases, counts, pairs, everyone)
        mine = zip(layers, rows.split(counts), strict=True)
        return torch.cat([layer(own) for layer, own in mine if everyone or len(own)])

    def counts(self, chosen: Tensor) -> list[int]:
        """How many tokens each expert gets. Without content all get the same, as a balanced router would have it."""
        number = int(self.base.num_experts)
        if chosen.is_meta or isinstance(chosen, FakeTensor):
            return [len(chosen) // number + (e < len(chosen) % number) for e in range(number)]
        counts: list[int] = torch.bincount(chosen, minlength=number).tolist()
        return counts


def all_take_part() -> bool:
    """Whether other processes compute with this one, and a gradient is wanted."""
    many = torch.distributed.is_available() and torch.distributed.is_initialized()
    return many and torch.is_grad_enabled() and torch.distributed.get_world_size() > 1


def is_stack(module: nn.Module) -> bool:
    """Whether a module is a stack of experts of the protocol above."""
    return all(hasattr(module, name) for name in PROTOCOL) and all(
        isinstance(p, nn.Parameter) and p.ndim == 3 for p in (getattr(module, "down_proj", None),)
    )


def stacks(model: nn.Module) -> dict[str, list[str]]:
    """Name of each stack of experts that `unstack` has not taken -> the names of its weights, MODULE.WORD."""
    shown = {id(module.base) for module in model.modules() if isinstance(module, UnstackedExperts)}
    return {
        name: [f"{name}.{word}" for word in WORDS if isinstance(getattr(module, word, None), nn.Parameter)]
        for name, module in model.named_modules()
        if is_stack(module) and id(module) not in shown
    }


def unstack(model: nn.Module, names: Iterable[str]) -> None:
    """Let the stacks of these names show their experts as linear layers, in place."""
    for name in names:
        parent, _, word = name.rpartition(".")
        stack = model.get_submodule(name)
        if not isinstance(stack, UnstackedExperts):
            setattr(model.get_submodule(parent), word, UnstackedExperts(stack))


def word_of(name: str) -> str:
    """How people call a layer: the last word of its name, of an expert that of its stack."""
    place = stack_of(name)
    return name.rpartition(".")[2] if place is None else f"experts.{place[1]}"


def unstack_for(model: nn.Module, layers: Iterable[str]) -> None:
    """`unstack` what layers of these names need."""
    wanted = dict.fromkeys(place[0] for name in layers if (place := stack_of(name)) is not None)
    if wanted:
        unstack(model, [name for name in stacks(model) if name in wanted])


def restack(model: nn.Module) -> None:
    """Put the stacks back that `unstack` has taken."""
    for name, module in list(model.named_modules()):
        if isinstance(module, UnstackedExperts):
            parent, _, word = name.rpartition(".")
            setattr(model.get_submodule(parent), word, module.base)


def is_stored_transposed(model: nn.Module, name: str) -> bool:
    """Whether the module of this name is a stack whose weights are (experts, k, d)."""
    module = dict(model.named_modules()).get(name)
    found: Any = module.base if isinstance(module, UnstackedExperts) else module
    return bool(getattr(found, "is_transposed", False))


def stack_of(layer: str) -> tuple[str, str, int] | None:
    """(module, word, expert) of a layer of an expert by its name; None for any other name."""
    name, _, number = layer.rpartition(".")
    module, _, word = name.rpartition(".")
    return (module, word, int(number)) if number.isdigit() and word in WORDS and module else None
