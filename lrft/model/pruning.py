"""What can be cut out of a decoder's blocks and leave a decoder: heads of its attention, channels of its feed-forward.

A unit is one key-value head with the queries that read it, or one channel. It owns rows of some layers and the columns
of the one that reads them; without it, the block computes what it computes when the unit's outputs are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrft.model import linear
from lrft.model.pruned import PrunedLinear
from lrft.utils.seeds import seed_of

# Tried against smaller models of the same family: no other weight of a block depends on how many units there are.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
READERS = ("o_proj", "down_proj")
"""last words of the layers that read what units make"""


@dataclass(frozen=True)
class Units:
    """The units of one attention or one feed-forward."""

    name: str
    """of the module that holds the layers"""
    kind: str
    """heads or channels"""
    count: int
    rows: Mapping[str, int]
    """layer -> its rows for each unit"""
    reader: str
    """the layer that reads them"""
    width: int
    """its columns for each unit"""
    depth: int

    def kept_rows(self, layer: str, kept: Tensor) -> Tensor:
        """Indices of a layer's rows that belong to the units `kept` (n,), indices in order."""
        return spans(kept, self.rows[layer])

    def kept_columns(self, kept: Tensor) -> Tensor:
        return spans(kept, self.width)

    def sums(self, layer: str, values: Tensor) -> Tensor:
        """(count,): the sum over each unit's rows of a matrix (d, k), or columns where the layer is the reader."""
        by_unit = values.T if layer == self.reader else values
        return by_unit.reshape(self.count, -1).sum(1)


def spans(units: Tensor, size: int) -> Tensor:
    return (units[:, None] * size + torch.arange(size, device=units.device)).flatten()


def units_of(model: Any) -> list[Units]:
    """All units of a model of transformers, block by block. Raises ValueError for one whose blocks are not known."""
    config = model.config
    if config.model_type not in FAMILIES:
        raise ValueError(f"prunes blocks of {', '.join(FAMILIES)}, and this model is of the family {config.model_type}")
    kv_heads = config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    found = []
    for name, module in model.named_modules():
        words = {word for word, _ in module.named_children()}
        place = partial("{}.{}".format, name)
        depth = next((int(word) for word in name.split(".") if word.isdigit()), -1)
        if {"q_proj", "k_proj", "v_proj", "o_proj"} <= words:
            size = module.head_dim
            rows = {place("q_proj"): group * size, place("k_proj"): size, place("v_proj"): size}
            found.append(Units(name, "heads", kv_heads, rows, place("o_proj"), group * size, depth))
        elif {"gate_proj", "up_proj", "down_proj"} <= words:
            rows = {place("gate_proj"): 1, place("up_proj"): 1}
            found.append(Units(name, "channels", config.intermediate_size, rows, place("down_proj"), 1, depth))
    return found


def cut(count: int, ratio: float) -> int:
    """How many units of `count` are cut at `ratio`: rounded down, and one at least stays."""
    return min(int(count * ratio + 1e-9), count - 1)


def magnitudes(units: Units, weight: Callable[[str], Tensor]) -> Tensor:
    """(count,): the sum of squares of all that each unit owns. weight: that of a layer (d, k) by its name."""
    parts = [units.sums(layer, weight(layer).square()) for layer in (*units.rows, units.reader)]
    return torch.stack(parts).sum(0)


def drawn(units: Units, seed: int) -> Tensor:
    """(count,) random scores, that depend on the seed and the place in the model."""
    return torch.rand(units.count, generator=torch.Generator().manual_seed(seed_of(seed, units.name)))


def highest(scores: Tensor, n: int) -> Tensor:
    """Indices of the n highest scores, in order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:n].sort().values


def prune(model: Any, units: Units, kept: Tensor | None, quantize: str = "none") -> None:
    """Let the layers of `units` train with the units `kept` alone, None for all of them, in place. quantize: them."""
    parts: dict[str, dict[str, Tensor]] = {layer: {} for layer in (*units.rows, units.reader)}
    if kept is not None:
        parts = {layer: {"rows": units.kept_rows(layer, kept)} for layer in units.rows}
        parts[units.reader] = {"columns": units.kept_columns(kept)}
    for layer, indices in parts.items():
        parent, _, word = layer.rpartition(".")
        whole = model.get_submodule(layer)
        device = whole.weight.device
        part = PrunedLinear(whole, **{key: value.to(device) for key, value in indices.items()}, quantize=quantize)
        if device.type != "cpu":
            whole.cpu()
        setattr(model.get_submodule(parent), word, part)


def weight_of(model: Any) -> Callable[[str], Tensor]:
    """The weights (d, k) of a model's layers, by name."""
    return lambda layer: linear.dense(model.get_submodule(layer))
