"""Tensors that rest for a step: the optimiser's step happens to them too, and is then undone.

A gradient of zero does not stand still under Adam, whose moments move and decay, and taking tensors out of the step
changes the optimiser or what a distributed wrapper waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lrft.adapters.part import Run


@torch.no_grad()
def held(run: Run, parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Each parameter with copies of its value and its optimiser state, before the step."""
    return [(p, p.detach().clone(), copied(run.optimizer.state.get(p, {}))) for p in parameters]


@torch.no_grad()
def put_back(run: Run, kept: Iterable[tuple[Tensor, Tensor, dict[str, Any]]]) -> None:
    """As they were when they were `held`; an optimiser state that was not there yet is as before the first step."""
    for parameter, value, state in kept:
        parameter.copy_(value)
        if not state:
            run.forget(parameter)
        else:
            run.optimizer.state[parameter] = state


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's optimiser state: tensors, and numbers that its step replaces."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
