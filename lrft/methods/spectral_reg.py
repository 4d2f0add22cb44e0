"""Spectral regularisation. Lewandowski et al., 2024, arXiv 2406.06811: the largest singular value is kept where it was.

    loss + strength sum over layers of (s1(W + dW) / s1(W) - 1)^2

The paper draws s1 of every weight to one, for networks that are trained on for long; beside a frozen weight its own s1
is the target: a reconstruction. s1 = u' (W + dW) v with vectors u (d,) and v (k,) that follow by one power iteration in
each step and are constants for the gradient, which is u v' by the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from lrft.adapters import svd
from lrft.adapters.adapter import Factors
from lrft.adapters.part import Part, Run
from lrft.methods.nuclear_norm import factors_of
from lrft.model.linear import dense
from lrft.utils.seeds import seed_of

ITERATIONS = 30  # that find s1 of the frozen weight, once


@dataclass(frozen=True)
class SpectralReg(Part):
    """Holds the largest singular value of the adapted weight near that of the frozen one."""

    name: ClassVar[str] = "spectral-reg"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2406.06811"
    equation: ClassVar[str] = "loss + c (s1(W + dW) / s1(W) - 1)^2, s1 the largest singular value"
    evidence: ClassVar[str] = "reconstruction: the paper's penalty with the frozen weight's value as target"
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)

    strength: Annotated[float, Field(ge=0)] = 0.1
    """c; ours."""

    @cached_property
    def kept(self) -> dict[str, Tensor]:
        """u, v and the frozen weight's s1, by site."""
        return {}

    def loss(self, run: Run) -> Tensor | None:
        terms = []
        for name, adapter in run.adapters.items():
            layer: Any = run.model.get_submodule(name)
            W = dense(layer.base).to(adapter.site.dtype)
            if f"{name}/s1" not in self.kept:
                self.begin(name, W, run.seed)
            terms.append((self.largest(name, W, factors_of(adapter)) / self.kept[f"{name}/s1"].to(W) - 1).square())
        return self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def begin(self, name: str, W: Tensor, seed: int) -> None:
        with torch.random.fork_rng(devices=[W.device] if W.is_cuda else []):
            torch.manual_seed(seed_of(seed, self.name, name))
            v = svd.leading(W, 1)[2][:, 0]
        for _ in range(ITERATIONS):
            u = normalize(W @ v, dim=0)
            v = normalize(W.T @ u, dim=0)
        self.kept.update({f"{name}/u": u, f"{name}/v": v, f"{name}/s1": u @ (W @ v)})

    def largest(self, name: str, W: Tensor, factors: Factors) -> Tensor:
        """s1(W + dW), after one power iteration."""
        B, A, s = factors
        with torch.no_grad():
            v = self.kept[f"{name}/v"].to(W)
            u = normalize(W @ v + s * B @ (A @ v), dim=0)
            v = normalize(W.T @ u + s * A.T @ (B.T @ u), dim=0)
            self.kept.update({f"{name}/u": u, f"{name}/v": v})
        return u @ (W @ v) + s * (u @ B) @ (A @ v)

    def state(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.kept.update({name: tensor.clone() for name, tensor in state.items()})
