"""Shared base of optimisers that update A (r, k) and B (d, r) of a layer jointly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lrft.adapters.adapter import Adapter


def refuse_factor(name: str, adapter: Adapter) -> None:
    """Raises ValueError for a factor s that is not 1: the formulas of `name` are those of dW = B A."""
    if adapter.site.scale != 1:
        raise ValueError(
            f"{name} does not support a scaling factor, got {adapter.site.scale:g}: remove alpha and scale"
        )


class PairOptimizer(torch.optim.Optimizer):
    """Abstract. groups: as `optim.grouped` makes them of the pairs of a LoRA, one group for each site.

    Raises ValueError for tensors of another kind, as a head has.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        names = [name for group in self.param_groups for name in group["param_names"]]
        others = [name for name in names if name.rsplit(".", 1)[-1] not in ("A", "B")]
        if others:
            raise ValueError(f"its optimiser takes pairs A and B alone, and {others[0]} is trained too")

    def pairs(self) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        """(group, A, B) of every layer whose factors, parameters, have gradients."""
        for group in self.param_groups:
            words = [name.rsplit(".", 1)[-1] for name in group["param_names"]]
            named = dict(zip(words, group["params"], strict=True))
            if named["A"].grad is not None:
                yield group, named["A"], named["B"]
