"""The passes of a step over a small problem whose losses are written down, for parts that compose a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.gradients import Gradients
from lrft.adapters.part import Part, Run

Loss = Callable[[], Tensor]


class Problem:
    """`own` and `other` are the losses of the step's rows and of the auxiliary rows, of the tensors `trained`."""

    def __init__(self, trained: Sequence[nn.Parameter], own: Loss, other: Loss | None = None, lr: float = 0.1) -> None:
        self.trained, self.losses = list(trained), {"own": own, "auxiliary": other}
        self.optimizer = torch.optim.AdamW(self.trained, lr=lr, weight_decay=0.0)
        self.asked: list[str] = []

    def gradient(self, which: str) -> Gradients:
        loss = self.losses[which]
        assert loss is not None
        self.asked.append(which)
        found = torch.autograd.grad(loss(), self.trained, allow_unused=True)
        return {p: g for p, g in zip(self.trained, found, strict=True) if g is not None}

    def own(self) -> Gradients:
        return self.gradient("own")

    def auxiliary(self) -> Gradients:
        return self.gradient("auxiliary")

    @contextmanager
    def stepped(self, gradients: Gradients) -> Iterator[None]:
        before = [p.detach().clone() for p in self.trained]
        saved = self.optimizer.state_dict()
        saved = {**saved, "state": {k: {n: t.clone() for n, t in v.items()} for k, v in saved["state"].items()}}
        self.step(gradients)
        yield
        with torch.no_grad():
            for p, value in zip(self.trained, before, strict=True):
                p.copy_(value)
        self.optimizer.load_state_dict(saved)

    def step(self, gradients: Gradients) -> None:
        for p in self.trained:
            p.grad = gradients.get(p)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def compose(self, part: Part, adapters: Any = None) -> Gradients:
        run = Run(0, 10, nn.Identity(), adapters or {}, self.optimizer, 0, lambda t: t)
        return part.compose_gradient(run, self.own(), self)


def quadratic(n: int = 5, seed: int = 0) -> tuple[nn.Parameter, Tensor, Loss]:
    """w (n,), a symmetric H (n, n) and the loss w' H w / 2, float64."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    w = nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64))
    return w, root @ root.T, lambda: w @ (root @ root.T) @ w / 2


def curved(n: int = 5, seed: int = 0) -> tuple[list[nn.Parameter], Loss]:
    """Two tensors and a loss that is no polynomial of them, float64."""
    generator = torch.Generator().manual_seed(seed)
    a = nn.Parameter(torch.randn(n, 3, generator=generator, dtype=torch.float64))
    b = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    return [a, b], lambda: ((x @ a).tanh() * b).sum().exp() / 10 + (a**2).sum().sqrt()


class Composing(Part):
    """Hands the passes of the first step to `act`, and leaves its gradient as it is."""

    name = "composing"
    slots = ("gradient",)

    def __init__(self, act: Callable[[Run, Gradients, Any], Gradients | None], rows: float | str | None = None) -> None:
        self.act, self.rows = act, rows

    @property
    def auxiliary_rows(self) -> float | str | None:
        return self.rows

    def compose_gradient(self, run: Run, gradient: Gradients, passes: Any) -> Gradients:
        return self.act(run, gradient, passes) or gradient
