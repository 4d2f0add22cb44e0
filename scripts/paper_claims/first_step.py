"""The first step of a run, made again: what it changes, and the gradient by the whole weights that it is held against.

That gradient is torch's own, of the model without adapters, with the start of the run merged into its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft import recipe as recipes
from lrft.adapters.attached import Attached
from lrft.adapters.storage import read_adapter
from lrft.training.setup import set_up
from lrft.training.state import Options, Session

Matrices = Mapping[str, Tensor]
"""by site, (d, k), float64"""


@dataclass(frozen=True)
class FirstStep:
    """A run's first step.

    gradient   by the adapted weight at the run's start, of the loss of the step's rows
    all_rows   the same, of all rows of the training data
    at_base    the same as `gradient`, at the weight of the base
    descent    change of the adapted weight in a small step against the gradients of A and B, for a rate of 1
    made       the change that the run's optimiser made
    whole      `made` and what the start differs from the base
    """

    gradient: Matrices
    all_rows: Matrices
    at_base: Matrices
    descent: Matrices
    made: Matrices
    whole: Matrices


def first_step(folder: Path) -> FirstStep:
    """Of a run of one step over pairs A, B, without dropout."""
    session = set_up(recipes.load(folder / "resolved.yaml"), Options(quiet=True))
    rows = [int(row) for row in session.inputs.batches.rows(0)]
    start, descent = updates(session.adapted.attached), pair_descent(session, rows)
    saved = read_adapter(folder / "last")
    end = {site.name: saved.build(site).double().delta_weight().detach() for site in saved.sites}
    return FirstStep(
        gradient=whole_gradient(session, rows, start),
        all_rows=whole_gradient(session, list(range(len(session.inputs.train))), start),
        at_base=whole_gradient(session, rows, {}),
        descent=descent,
        made={name: end[name] - start[name] for name in start},
        whole=end,
    )


def updates(attached: Attached) -> dict[str, Tensor]:
    """By site, what the adapters add to the weights."""
    adapters: Mapping[str, Any] = attached.modules
    return {name: deepcopy(adapter).double().delta_weight().detach() for name, adapter in adapters.items()}


def pair_descent(session: Session, rows: list[int]) -> dict[str, Tensor]:
    """- s (B dA + dB A), dA and dB the gradients of the loss of `rows`."""
    session.engine.model.train()
    session.engine.answer(session.engine.batch(session.inputs.train, rows)).backward()
    found = {}
    for name, adapter in session.adapted.attached.modules.items():
        pair: Any = getattr(adapter, "inner", adapter)  # inside of what counts the update from its start
        A, B, dA, dB = (tensor.detach().double() for tensor in (pair.A, pair.B, pair.A.grad, pair.B.grad))
        found[name] = -pair.site.scale * (B @ dA + dB @ A)
    return found


def whole_gradient(session: Session, rows: list[int], added: Matrices) -> dict[str, Tensor]:
    """Of the loss of `rows` by the weights of the adapted layers, with `added` on them; leaves no adapter."""
    model: Any = session.adapted.attached.detach()
    weights = {name: model.get_submodule(name).weight for name in session.adapted.attached.modules}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, update in added.items():
            weights[name].copy_(before[name] + update)
    model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_()
    session.engine.answer(session.engine.batch(session.inputs.train, rows)).backward()
    found = {name: weight.grad.double() for name, weight in weights.items()}
    model.zero_grad()
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(before[name])
    return found


def cosine(change: Matrices, gradient: Matrices) -> float:
    """Between the change and a step against the gradient, all layers as one vector."""
    a, b = (torch.cat([of[name].flatten() for name in gradient]) for of in (change, gradient))
    return float(-(a @ b) / (a.norm() * b.norm()))
