"""Adam on a projection of the gradient: what GaLore, Fira and FRUGAL have in common.

A gradient G (m, n), turned so that m >= n, is seen in r directions of its smaller side: R = G P' (m, r), the rows of
P (r, n) orthonormal. Adam's moments are those of R. Every `period` steps P is chosen anew. The family is a grid:

    projection   svd, randomized   the leading right singular vectors of the present gradient
                 random            orthonormal rows drawn at random
                 dct               the r rows of the cosine basis that hold most of the gradient
                 coordinate        r columns drawn at random
    moments      keep them when P changes, as they are, or reset them together with their count of steps
    residual     what becomes of G - R P: none, fira (scaled as Adam scales R), sign, sgd

A state is tensors and nothing else: saved and loaded as Adam's is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lrft.core import spectrum

Projection = Literal["svd", "randomized", "random", "dct", "coordinate"]
BASIS_AT_ONCE = 512


@dataclass(frozen=True)
class Grid:
    """One member of the family."""

    projection: Projection = "svd"
    period: int = 200
    scale: float = 1.0
    """on the projected part of the step"""
    moments: Literal["keep", "reset"] = "keep"
    residual: Literal["none", "fira", "sign", "sgd"] = "none"
    residual_scale: float = 1.0
    growth: float = 1.01
    """of fira's residual from one step to the next, at most"""


class ProjectedAdam(torch.optim.Optimizer):
    """groups: as `optim.grouped` makes them, with "rank". Matrices only.

    seed_of     a seed from (name of the tensor, number of the change)
    broadcast   a tensor of the first process to all: singular vectors have no sign of their own
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        grid: Grid,
        *,
        betas: tuple[float, float],
        eps: float,
        seed_of: Callable[[str, int], int],
        broadcast: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.grid, self.betas, self.eps = grid, betas, eps
        self.seed_of, self.broadcast = seed_of, broadcast

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                if p.grad is not None:
                    G = upright(p.grad)
                    change = self.change(name, self.state[p], G, min(group["rank"], G.shape[1]))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(change if G.shape == p.shape else change.T, alpha=-group["lr"])

    def change(self, name: str, state: dict[str, Tensor], G: Tensor, rank: int) -> Tensor:
        """What this step takes away (m, n), over the learning rate."""
        grid = self.grid
        if not state:
            state["step"] = torch.zeros(())
            state["count"] = torch.zeros(())  # steps since the moments began
        if int(state["step"]) % grid.period == 0:
            self.choose(name, state, G, rank)
        state["step"] += 1
        state["count"] += 1
        R = down(state, G)
        first, second = self.betas
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(R), torch.zeros_like(R)
        state["exp_avg"].lerp_(R, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(R, R, value=1 - second)
        # The official order: epsilon before the correction of the moments' start.
        direction = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + self.eps)
        count = int(state["count"])
        bias = math.sqrt(1 - second**count) / (1 - first**count)
        change = up(state, direction, G).mul_(grid.scale * bias)
        if grid.residual != "none":
            rest = G - up(state, R, G)
            change += self.residual(state, rest, R, direction, bias)
        return change

    def choose(self, name: str, state: dict[str, Tensor], G: Tensor, rank: int) -> None:
        """A new P, as a tensor or as the numbers of rows of a basis."""
        number = int(state["step"]) // self.grid.period
        generator = torch.Generator().manual_seed(self.seed_of(name, number))
        n = G.shape[1]
        match self.grid.projection:
            case "svd":
                state["P"] = self.broadcast(spectrum.exact(G, rank)[2].T.contiguous())
            case "randomized":
                with torch.random.fork_rng(devices=[G.device] if G.is_cuda else []):
                    torch.manual_seed(generator.initial_seed())
                    state["P"] = self.broadcast(spectrum.leading(G, rank)[2].T.contiguous())
            case "random":
                drawn = torch.randn(n, rank, generator=generator, dtype=G.dtype)
                state["P"] = self.broadcast(torch.linalg.qr(drawn).Q.T.contiguous().to(G.device))
            case "dct":
                energy = torch.cat([(G @ rows.T).square().sum(dim=0) for rows in cosines_in_parts(G)])
                state["cosines"] = self.broadcast(energy.topk(rank).indices.sort().values)
            case "coordinate":
                state["columns"] = torch.randperm(n, generator=generator)[:rank].sort().values.to(G.device)
        if self.grid.moments == "reset":
            state.pop("exp_avg", None)
            state.pop("exp_avg_sq", None)
            state["count"].zero_()

    def residual(self, state: dict[str, Tensor], rest: Tensor, R: Tensor, direction: Tensor, bias: float) -> Tensor:
        """What the directions that P leaves out add to the change."""
        if self.grid.residual == "sign":
            return rest.sign_().mul_(self.grid.residual_scale)
        if self.grid.residual == "sgd":
            return rest.mul_(self.grid.residual_scale)
        # Fira: each row of the residual is scaled as Adam scales that row of R, and may not grow fast.
        rest *= (direction.norm(dim=1) / (R.norm(dim=1) + 1e-8))[:, None]
        norm = rest.norm()
        if "residual_norm" in state:
            rest *= (self.grid.growth * state["residual_norm"] / norm.clamp_min(1e-30)).clamp_max(1.0)
        state["residual_norm"] = rest.norm()
        return rest.mul_(bias * self.grid.residual_scale)


def upright(G: Tensor) -> Tensor:
    """G or its transpose, at least float32, with no fewer rows than columns."""
    G = G if G.dtype == torch.float64 else G.float()
    return G if G.shape[0] >= G.shape[1] else G.T


def down(state: dict[str, Tensor], G: Tensor) -> Tensor:
    """R = G P' (m, r)."""
    if "columns" in state:
        return G.index_select(1, state["columns"])
    return G @ rows_of(state, G).T


def up(state: dict[str, Tensor], R: Tensor, G: Tensor) -> Tensor:
    """R P (m, n)."""
    if "columns" in state:
        return torch.zeros_like(G, memory_format=torch.contiguous_format).index_copy_(1, state["columns"], R)
    return R @ rows_of(state, G)


def rows_of(state: dict[str, Tensor], G: Tensor) -> Tensor:
    """P (r, n)."""
    return cosines(state["cosines"], G) if "cosines" in state else state["P"]


def cosines(rows: Tensor, G: Tensor) -> Tensor:
    """These rows of the orthonormal cosine basis (DCT-II) of G's columns."""
    n = G.shape[1]
    at = torch.arange(n, dtype=torch.float64, device=G.device) + 0.5
    basis = torch.cos(math.pi / n * rows.double()[:, None] * at) * math.sqrt(2 / n)
    basis[rows == 0] = math.sqrt(1 / n)
    return basis.to(G.dtype)


def cosines_in_parts(G: Tensor) -> Any:
    """All rows of the basis, some at a time."""
    return (cosines(rows, G) for rows in torch.arange(G.shape[1], device=G.device).split(BASIS_AT_ONCE))
