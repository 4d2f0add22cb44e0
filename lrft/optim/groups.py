"""What the groups of named parameters say that an optimiser is made over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lrft.errors import UsageError


def on_gpu(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether all parameters are on CUDA devices."""
    return all(parameter.device.type == "cuda" for group in groups for _, parameter in group["params"])


def refuse_paging_without_gpu(gpu: bool, name: str, instead: str) -> None:
    """Raises UsageError: state moves between the memory of a CUDA device and of the machine, or there is no paging."""
    if not gpu:
        raise UsageError(f"training.optimizer: {name} pages its state out of a GPU's memory; there is no GPU", instead)


def split(
    groups: Iterable[dict[str, Any]], chosen: Callable[[str, Tensor], bool]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of the parameters (name, tensor) that are chosen, and those of the others; none is empty."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        for side, wanted in zip(sides, (True, False), strict=True):
            members = [(name, p) for name, p in group["params"] if chosen(name, p) is wanted]
            if members:
                side.append({**group, "params": members})
    return sides


class Joined(torch.optim.Optimizer):
    """Several optimisers as one: their groups one after the other, one state, a step of each.

    Each group says by "member" whose it is: who loads a state makes new groups.
    """

    def __init__(self, members: Iterable[torch.optim.Optimizer]) -> None:
        self.members = list(members)
        groups = [{**group, "member": n} for n, member in enumerate(self.members) for group in member.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for n, member in enumerate(self.members):
            member.param_groups = [group for group in self.param_groups if group["member"] == n]
            member.state = self.state
            member.step()
