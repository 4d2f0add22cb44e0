"""Tensors that rest for a step: the optimiser's step happens to them too, and is then undone.

A gradient of zero does not stand still under Adam, whose moments move and decay, and taking tensors out of the step
changes the optimiser or what a distributed wrapper waits for.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lrft.adapters.part import Run


@torch.no_grad()
def held(run: Run, parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Each parameter with copies of its value and its optimiser state, before the step."""
    return [
        (p, p.detach().clone(), {name: t.clone() for name, t in run.optimizer.state.get(p, {}).items()})
        for p in parameters
    ]


@torch.no_grad()
def put_back(run: Run, kept: Iterable[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> None:
    """As they were when they were `held`; an optimiser state that was not there yet is as before the first step."""
    for parameter, value, state in kept:
        parameter.copy_(value)
        if not state:
            run.forget(parameter)
        for name, tensor in state.items():
            run.optimizer.state[parameter][name].copy_(tensor)
