"""GradNormLoRP. Huang et al., 2024, arXiv 2412.19616: weight normalisation, and GaLore's step of the direction.

With W = g v / |v| row by row, G the gradient of W and u = v / |v|:

    of g:  <G_i, u_i>,    of v:  (g_i / |v_i|) (G_i - <G_i, u_i> u_i)

v moves by GaLore's step, g by Adam. After each step v is set to W, so that g = |v| and nothing is kept beside the
weight but GaLore's state and two numbers for each row. A reconstruction of the paper's idea: of its two released
optimisers one moves nothing, the other discards its own step of g, leaves the radial part of the gradient in v's and
keeps a copy of every weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from lrft.adapters.part import Run
from lrft.adapters.projected_adam import Grid, Projecting
from lrft.model.linear import dense


@dataclass(frozen=True)
class GradNormLorp(Projecting):
    """GaLore on the directions of the weight's rows, and Adam on their norms."""

    name: ClassVar[str] = "gradnormlorp"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2412.19616"
    equation: ClassVar[str] = "W = g v / |v|: g <- g - lr Adam(<G, u>), v <- v - lr factor Adam(G_v P') P"
    evidence: ClassVar[str] = (
        "gradients compared with autograd; a reconstruction, the released optimisers do not implement it"
    )
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps", "magnitude")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("restart",)

    projection: Literal["svd", "randomized", "random", "dct", "coordinate"] = "svd"
    """The directions of v's step, as in galore."""
    every: Annotated[float, Field(gt=0)] = 500.0
    """Steps between projection updates, or a fraction of the run when below 1. The authors' 500."""
    factor: Annotated[float, Field(gt=0)] = 4.0
    """On the step of v: the authors' 4, in fine-tuning."""

    @cached_property
    def kept(self) -> dict[str, Tensor]:
        """Adam's moments (d,) of g and its count of steps, by site."""
        return {}

    @cached_property
    def now(self) -> dict[str, tuple[Tensor, Tensor]]:
        """g (d,) and its gradient (d,) in the step that is being made, by site."""
        return {}

    def grid(self) -> Grid:
        return Grid(projection=self.projection, scale=self.factor)

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        return super().optimizer_numbers(d, k, rank) + 2 * d

    def weights(self, run: Run) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """(site, D, the frozen weight)."""
        for name, adapter in run.adapters.items():
            layer: Any = run.model.get_submodule(name)
            D = adapter.tensors()["D"]
            yield name, D, dense(layer.base).to(D.dtype)

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for name, D, W0 in self.weights(run):
            if D.grad is not None:
                v = W0 + D
                u = normalize(v, dim=1)
                slope = (D.grad * u).sum(dim=1)
                self.now[name] = v.norm(dim=1), slope
                D.grad -= slope[:, None] * u

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        groups = {p: group for group in run.optimizer.param_groups for p in group["params"]}
        for name, D, W0 in self.weights(run):
            g, slope = self.now.pop(name)
            g = g - groups[D]["lr"] * self.adam(name, slope, groups[D])
            D.copy_(g[:, None] * normalize(W0 + D, dim=1) - W0)

    def adam(self, name: str, slope: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's answer to the gradient of g."""
        first, second = group["betas"]
        mean, square = (
            self.kept.get(f"{name}/{kind}", torch.zeros_like(slope)).to(slope) for kind in ("mean", "square")
        )
        count = self.kept.get(f"{name}/count", torch.zeros(())) + 1
        mean, square = mean.lerp(slope, 1 - first), square.lerp(slope.square(), 1 - second)
        self.kept.update({f"{name}/mean": mean, f"{name}/square": square, f"{name}/count": count})
        bias = math.sqrt(1 - second ** int(count)) / (1 - first ** int(count))
        return bias * mean / (square.sqrt() + group["eps"])

    def state(self) -> dict[str, Tensor]:
        return dict(self.kept)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.kept.update({name: tensor.clone() for name, tensor in state.items()})
