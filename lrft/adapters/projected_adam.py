"""Adam on a projection of the gradient: the family of GaLore, Fira and FRUGAL.

A gradient G (m, n), turned so that m >= n, is seen in r directions of its smaller side: R = G P' (m, r), the rows of
P (r, n) orthonormal. Adam's moments are those of R. Every so many steps P is chosen anew. The family is a grid:

    projection   svd, randomized   the leading right singular vectors of the present gradient
                 random            orthonormal rows drawn at random
                 dct               the r rows of the cosine basis that hold most of the gradient
                 coordinate        r columns drawn at random, of the smaller side, or of the inputs whatever the sides
                 block             all columns of some tensors, drawn at random, and none of the others
    moments      when P changes: keep them as they are; rotate them into the new directions; reset them together with
                 their count of steps (zero moments that count on would make the next steps several times too long)
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

from lrft.adapters import svd
from lrft.adapters.part import Making, Part, Run
from lrft.utils import seeds

Projection = Literal["svd", "randomized", "random", "dct", "coordinate", "block"]
BASIS_AT_ONCE = 512


@dataclass(frozen=True)
class Grid:
    """One member of the family."""

    projection: Projection = "svd"
    density: float = 0.25
    """share of the tensors that `block` selects at a time; at least one, unless it is 0"""
    scale: float = 1.0
    """on the projected part of the step"""
    moments: Literal["keep", "rotate", "reset"] = "keep"
    residual: Literal["none", "fira", "sign", "sgd"] = "none"
    residual_scale: float = 1.0
    growth: float = 1.01
    """maximum growth of fira's residual from one step to the next"""
    rest: Literal["paper", "official"] = "paper"
    """fira's residual: G - R P, or G - scale R P as in the released code"""
    of_inputs: bool = False
    """never transpose: directions are always those of a weight's inputs"""
    late_eps: bool = False
    """add epsilon after bias correction, as torch's AdamW does; otherwise before it, as GaLore does"""

    def turned(self, G: Tensor) -> Tensor:
        """G (m, n) or its transpose, at least float32, whose columns the directions are of."""
        return precise(G) if self.of_inputs else upright(G)


class ProjectedAdam(torch.optim.Optimizer):
    """groups: as `optim.grouped` makes them, with "rank". "period", in steps, may be set at any time. A vector, such as
    the bias of a head, is a matrix of one column.

    seed_of     a seed from (name of the tensor, number of the change)
    broadcast   a tensor of the first process to all: a decomposition may round otherwise on another
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
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "period": 200, "betas": betas, "eps": eps})
        self.grid, self.betas, self.eps = grid, betas, eps
        self.seed_of, self.broadcast = seed_of, broadcast
        self.names = [name for group in self.param_groups for name in group["param_names"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                if p.grad is not None:
                    self.move(name, p, p.grad, group)

    def move(self, name: str, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """The step of one tensor."""
        G, state = self.grid.turned(gradient), self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["count"] = torch.zeros(())  # steps since the moments began
        number, since = divmod(int(state["step"]), group["period"])
        if since == 0:
            self.choose(name, number, state, G, min(group["rank"], G.shape[1]))
        change = self.change(state, G)
        # Decay first, as AdamW and FRUGAL do. (GaLore's and Fira's code decays after the step: lr^2 apart.)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(turned_back(change, p), alpha=-group["lr"])
        self.learn(state, G, group)

    def learn(self, state: dict[str, Tensor], G: Tensor, group: dict[str, Any]) -> None:
        """What a member of the family makes of a gradient when the tensor has moved along it."""

    def change(self, state: dict[str, Tensor], G: Tensor) -> Tensor:
        """What this step takes away (m, n), over the learning rate."""
        grid = self.grid
        state["step"] += 1
        state["count"] += 1
        R = down(state, G)
        first, second = self.betas
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(R), torch.zeros_like(R)
        state["exp_avg"].lerp_(R, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(R, R, value=1 - second)
        count = int(state["count"])
        started = math.sqrt(1 - second**count)
        bias = started / (1 - first**count)
        eps = self.eps * (started if grid.late_eps else 1.0)
        direction = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + eps)
        change = up(state, direction, G).mul_(grid.scale * bias)
        if grid.residual != "none":
            rest = G - up(state, R, G) * (grid.scale if grid.rest == "official" else 1.0)
            change += self.residual(state, rest, R, direction, bias)
        return change

    def choose(self, name: str, number: int, state: dict[str, Tensor], G: Tensor, rank: int) -> None:
        """A new P, as a tensor or as the numbers of rows of a basis. `number` changes were made before."""
        generator = torch.Generator().manual_seed(self.seed_of(name, number))
        n, before = G.shape[1], dict(state)
        match self.grid.projection:
            case "svd":
                state["P"] = self.broadcast(svd.exact(G, rank)[2].T.contiguous())
            case "randomized":
                with torch.random.fork_rng(devices=[G.device] if G.is_cuda else []):
                    torch.manual_seed(generator.initial_seed())
                    state["P"] = self.broadcast(svd.leading(G, rank)[2].T.contiguous())
            case "random":
                drawn = torch.randn(n, rank, generator=generator, dtype=G.dtype)
                state["P"] = self.broadcast(torch.linalg.qr(drawn).Q.T.contiguous().to(G.device))
            case "dct":
                energy = torch.cat([(G @ rows.T).square().sum(dim=0) for rows in cosines_in_parts(G)])
                state["cosines"] = self.broadcast(energy.topk(rank).indices.sort().values)
            case "coordinate":
                state["columns"] = torch.randperm(n, generator=generator)[:rank].sort().values.to(G.device)
            case "block":
                state["columns"] = torch.arange(n if name in self.active(number) else 0, device=G.device)
        if "exp_avg" in state and self.grid.moments == "rotate":
            # M <- M T and V <- V T^2 (entry by entry) for T = P_before P': of columns, those that stay keep theirs.
            T = overlap(before, state, G)
            state["exp_avg"] = state["exp_avg"] @ T
            state["exp_avg_sq"] = state["exp_avg_sq"] @ T.square()
        elif self.grid.moments == "reset":
            state.pop("exp_avg", None)
            state.pop("exp_avg_sq", None)
            state["count"].zero_()

    def active(self, number: int) -> set[str]:
        """The tensors that `block` takes after `number` changes: the same on every process."""
        wanted = max(1, round(self.grid.density * len(self.names))) if self.grid.density else 0
        generator = torch.Generator().manual_seed(self.seed_of("block", number))
        return {self.names[i] for i in torch.randperm(len(self.names), generator=generator)[:wanted].tolist()}

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
            before = state["residual_norm"].to(norm.device)
            limit = (self.grid.growth * before / norm.clamp_min(1e-30)).clamp_max(1.0)
            rest *= torch.where(before > 0, limit, torch.ones_like(limit))  # from nothing it may grow to anything
        state["residual_norm"] = rest.norm()
        return rest.mul_(bias * self.grid.residual_scale)


class LayerwiseAdam(ProjectedAdam):
    """Moves each tensor as its gradient arrives (`lrft.adapters.gradients.TakesGradients`): a step in one backward
    pass, of which one gradient at a time is alive."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.moved: dict[Tensor, Tensor] = {}
        # By number: who loads a state replaces the groups themselves.
        self.place = {
            p: (name, number)
            for number, group in enumerate(self.param_groups)
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }

    @torch.no_grad()
    def take(self, p: Tensor, gradient: Tensor) -> bool:
        """One that is not finite moves nothing: its norm ends the run."""
        self.moved[p] = precise(gradient).norm()
        if self.moved[p].isfinite():
            name, number = self.place[p]
            self.move(name, p, gradient, self.param_groups[number])
        return True

    def norms(self) -> dict[Tensor, Tensor]:
        return self.moved

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.moved.clear()


def upright(G: Tensor) -> Tensor:
    """G or its transpose, at least float32, with no fewer rows than columns."""
    G = precise(G)
    return G if G.shape[0] >= G.shape[1] else G.T


def precise(G: Tensor) -> Tensor:
    """At least float32; a vector as a column."""
    G = G if G.dtype == torch.float64 else G.float()
    return G[:, None] if G.ndim == 1 else G


def turned_back(change: Tensor, p: Tensor) -> Tensor:
    """`change` as it is added to `p`, whose gradient was turned."""
    if p.ndim == 1:
        return change[:, 0]
    return change if change.shape == p.shape else change.T


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


def overlap(before: dict[str, Tensor], now: dict[str, Tensor], G: Tensor) -> Tensor:
    """P_before P' (r, r). Rows of one basis are orthonormal: for these it says which are the same."""
    for kind in ("columns", "cosines"):
        if kind in now:
            return (before[kind][:, None] == now[kind]).to(G.dtype)
    return before["P"] @ now["P"].T


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


class Projecting(Part):
    """Abstract: a part whose optimiser is of this family. It has the option `every`, and says its point of the grid."""

    every: float
    """Steps from one projection to the next, or a share of the run when below 1."""

    def grid(self) -> Grid:
        raise NotImplementedError("abstract")

    def rank(self, rank: int, shape: torch.Size) -> int:
        """Directions of a tensor of this shape, from the recipe's rank."""
        return rank

    def optimizer(self, groups: list[dict[str, Any]], **given: Any) -> ProjectedAdam:
        """Its optimiser. `given` are the arguments of `ProjectedAdam` beside the groups and the grid."""
        return ProjectedAdam(groups, self.grid(), **given)

    def make_optimizer(self, groups: list[dict[str, Any]], making: Making) -> torch.optim.Optimizer:
        groups = [{**group, "rank": self.rank(group["rank"], group["params"][0][1].shape)} for group in groups]
        return self.optimizer(
            groups,
            betas=making.betas,
            eps=making.eps,
            seed_of=lambda *words: seeds.seed_of(making.seed, *words),
            broadcast=making.broadcast,
        )

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        m, n = (d, k) if self.grid().of_inputs else (max(d, k), min(d, k))
        r = min(self.rank(rank, torch.Size((d, k))), n)
        projection = self.grid().projection
        if projection == "block":
            return round(2 * self.grid().density * d * k)
        return 2 * m * r + (r if projection in ("dct", "coordinate") else r * n)

    def before_step(self, run: Run) -> None:
        period = run.steps(self.every)
        for group in run.optimizer.param_groups if run.optimizer else ():
            group["period"] = period
