"""GradNormLoRP against weight normalisation that is written out."""

from __future__ import annotations

from typing import Any

import pairs
import torch
from torch import Tensor, nn

from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.methods.gradnormlorp import GradNormLorp

WHOLE = {"gradnormlorp": {"projection": "coordinate", "factor": 1.0}}


class Taken:
    """A layer under training, by the part's hooks and its optimiser."""

    def __init__(self, rank: int, words: Any = WHOLE) -> None:
        self.attached = pairs.attach(words, rank=rank, filled=False)
        composition = compose.compose((e["name"], e["options"]) for e in self.attached.methods)
        self.part = next(part for part in composition.parts if isinstance(part, GradNormLorp))
        self.optimizer = pairs.optimizer_of(self.attached, eps=1e-12)
        self.W0 = self.attached.layers()["0"].base.weight.detach().clone()
        self.D = self.attached.modules["0"].tensors()["D"]

    @property
    def W(self) -> Tensor:
        return (self.W0 + self.D).detach()

    def step(self, G: Tensor) -> Tensor:
        """One step of the first layer with the gradient G of its weight; returns what v was given."""
        run = Run(0, 9, self.attached.model, self.attached.modules, self.optimizer, 0, lambda t: t)
        for adapter in self.attached.modules.values():
            D = adapter.tensors()["D"]
            D.grad = G.clone() if D is self.D else torch.zeros_like(D)
        self.part.after_backward(run)
        of_v = self.D.grad.clone()
        self.optimizer.step()
        self.part.after_step(run)
        return of_v


def wide(seed: int) -> Tensor:
    return torch.randn(7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_gradients_are_those_of_norm_and_direction() -> None:
    taken, G = Taken(4), wide(0)
    v, g = taken.W0.clone().requires_grad_(), taken.W0.norm(dim=1, keepdim=True).requires_grad_()
    (g * v / v.norm(dim=1, keepdim=True) * G).sum().backward()
    of_v = taken.step(G)
    assert torch.allclose(of_v, v.grad, atol=1e-12)
    assert (of_v * taken.W0).sum(dim=1).abs().max() < 1e-12
    assert torch.allclose(0.1 * g.grad[:, 0], taken.part.kept["0/mean"], rtol=1e-10)


def test_with_all_directions_it_is_adam_of_norm_and_direction_with_v_set_to_the_weight() -> None:
    taken = Taken(7)  # the smaller side: nothing is projected away
    W = taken.W0.clone()
    g, v = nn.Parameter(W.norm(dim=1, keepdim=True)), nn.Parameter(W.clone())
    stock = torch.optim.AdamW([g, v], lr=0.01, eps=1e-30, weight_decay=0.0)
    for step in range(4):
        stock.zero_grad()
        (g * v / v.norm(dim=1, keepdim=True) * wide(step)).sum().backward()
        stock.step()
        W = (g * v / v.norm(dim=1, keepdim=True)).detach()
        taken.step(wide(step))
        assert torch.allclose(taken.W, W, rtol=1e-7), "the first step is that of g and v kept apart"
        with torch.no_grad():
            v.copy_(W)


def test_without_gradients_the_weight_stays_what_it_is() -> None:
    taken = Taken(2, "gradnormlorp")
    taken.step(torch.zeros(7, 9, dtype=torch.float64))
    assert torch.allclose(taken.W, taken.W0, rtol=1e-14)
