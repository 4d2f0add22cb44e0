"""IncreLoRA. Zhang et al., 2023, arXiv 2308.12043.

The released code adds tensors and raises the divisor of alpha as a layer grows, which shrinks what it has learnt; here
tensors are made once, zero until their turn, and the factor is that of the final mean rank (`rescale` shrinks the gates
instead of the factor: the same update, with steps of the gates that are not shrunk). Its scores are those of one
micro-batch of one process; here those of the whole step, for as many layers at a time as memory allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.calibration import GRADIENTS_AT_ONCE
from lrft.adapters.gated import GatedPair, asked, built, smoothed
from lrft.adapters.part import Method, Run
from lrft.model.send import send
from lrft.utils.seeds import seed_of

RESERVE = 1e-5
STD = 0.02


@dataclass(frozen=True)
class Increlora(Method):
    """Each layer starts with one component; the layers whose update matters most to the loss get more."""

    name: ClassVar[str] = "increlora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2308.12043"
    equation: ClassVar[str] = (
        "W + (alpha / r) B diag(g) A, growing where the smoothed sum of |dW * dL/dW| / sqrt(d k) is large"
    )
    parameters: ClassVar[str] = "r' (d + k + 1), r' = over * rank; r (d + k + 1) at the end"
    exports: ClassVar[str] = "PEFT LoRA of the active components, or merged model"
    evidence: ClassVar[str] = (
        "scores from full gradients, growth and component warm-up compared with the released formulas"
    )
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "as adalora, whose form and start it has"
    edits_moments: ClassVar[bool] = True
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")
    conflicts: ClassVar[tuple[str, ...]] = ("gradient",)  # it sums up the gradients of all passes of a step

    over: Annotated[float, Field(ge=1)] = 2.0
    """Maximum rank of a layer relative to the recipe's rank, the final mean rank; chosen by lrft."""
    grow: Annotated[int, Field(ge=1)] = 1
    """Components that a layer gets at a time: half the recipe's rank in the scripts."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the run before the first layer grows. From there the total grows evenly."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Share of the run at which the total is reached. In the scripts it follows from 2 to 13 layers each time."""
    interval: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the run between growths: 100 to 3000 steps in the scripts."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the run in which the learning rate of a new component rises to that of the others."""
    rescale: bool = False
    """Whether a layer that grows from n to m components keeps n / m of its update, as in the released code."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the mean distance of A A' and B' B from the identity: 0.1 to 0.3 in the scripts."""

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """born/SITE (r,): the step from which a component's gate trains, -1 before; and a site's smoothed score."""
        return {}

    @cached_property
    def step(self) -> dict[str, Any]:
        """What is known inside one step: gradients and scores by site, hooks, tensors before the step."""
        return {"gradients": {}, "scores": {}, "hooks": [], "before": {}}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        return [replace(site, rank=built(site.rank, self.over)) for site in sites]

    def build(self, site: Site) -> Delta:
        """One component whose gate is 0, and the reserve. All others are zero: without gradient they stay so."""
        adapter, drawn = GatedPair(site, trains_gate=True), 1 + self.grow
        with torch.no_grad():
            adapter.A[:drawn].normal_(std=STD)
            adapter.B[:, :drawn].normal_(std=STD)
        return adapter

    def goal(self, run: Run) -> int:
        return sum(asked(adapter.site.rank, self.over) for adapter in run.adapters.values())

    def left(self, run: Run) -> int:
        """Components still to be given."""
        return self.goal(run) - sum(self.active(run, site) for site in run.adapters)

    def active(self, run: Run, site: str) -> int:
        return int((self.born(run, site) >= 0).sum())

    def born(self, run: Run, site: str) -> Tensor:
        if f"born/{site}" not in self.memory:
            self.memory[f"born/{site}"] = torch.full((run.adapters[site].site.rank,), -1)
            self.memory[f"born/{site}"][0] = 0
        return self.memory[f"born/{site}"]

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        if run.step == 0:
            self.keep_reserve(run)
        if self.left(run) and run.step < self.end * run.total_steps:
            for site in turn(run):
                watch = partial(watched, self.step["gradients"], site)
                self.step["hooks"].append(run.model.get_submodule(site).register_forward_hook(watch))

    def loss(self, run: Run) -> Tensor | None:
        """Over the components that are drawn (n of them): |A A' - 1| and |B' B - 1|, Frobenius, mean of all factors."""
        terms = []
        for site, adapter in run.adapters.items() if self.orthogonality else ():
            tensors, n = adapter.tensors(), self.active(run, site) + (self.grow if self.left(run) else 0)
            for rows in (tensors["A"][:n], tensors["B"].T[:n]):
                terms.append((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).norm())
        return self.orthogonality * torch.stack(terms).mean() if terms else None

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        while self.step["hooks"]:
            self.step["hooks"].pop().remove()
        self.step["scores"] = {}
        world = run.reduce(torch.ones(1, device=next(run.model.parameters()).device))  # the loop's losses hold it
        for site, G in self.step["gradients"].items():
            dW = product(run.adapters[site])
            self.step["scores"][site] = ((dW * run.reduce(G)).abs().sum() / world / dW.numel() ** 0.5).squeeze()
        self.step["gradients"].clear()
        for site, p, _ in self.held(run):
            self.step["before"][site, id(p)] = p.detach().clone()
            if p.ndim == 1 and p.grad is not None:
                p.grad[self.active(run, site) :] = 0.0  # components are born in their order

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for site, p, rates in self.held(run):
            p.copy_(self.step["before"].pop((site, id(p))).lerp(p, send(rates.to(p.dtype), p.device)))
        scores = self.step["scores"]
        finite = torch.stack(list(scores.values())).isfinite().tolist() if scores else []
        for (site, score), counts in zip(scores.items(), finite, strict=True):
            if counts:
                smoothed(self.memory, site, score)
        first, last, done = int(self.begin * run.total_steps), self.end * run.total_steps, run.step + 1
        every = max(1, round(self.interval * run.total_steps))
        if self.left(run) and (done >= last or (done > first and (done - first) % every == 0)):
            self.extend(run, done, min(1.0, (done - first) / max(last - first, 1e-9)))
            self.keep_reserve(run)

    def held(self, run: Run) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """(site, tensor, how much of its step each component makes): gates in reserve none, new components a part."""
        warm = max(1.0, self.warmup * run.total_steps)
        for site, adapter in run.adapters.items():
            born = self.born(run, site)
            rates = ((run.step + 1 - born).double() / warm).clamp(max=1.0).masked_fill(born == 0, 1.0)
            tensors = adapter.tensors()
            yield site, tensors["gate"], rates.masked_fill(born < 0, 0.0)
            rates = rates.masked_fill(born < 0, 1.0)
            if (rates < 1).any():
                yield site, tensors["A"], rates[:, None]
                yield site, tensors["B"], rates

    def extend(self, run: Run, done: int, progress: float) -> None:
        """Give the components that are due at `progress` to the layers of the highest scores."""
        more = self.goal(run) - len(run.adapters)
        due = self.left(run) - (more - int(round(more * progress, 9)))
        score = self.scores(run)
        order = sorted(run.adapters, key=score.__getitem__, reverse=True)
        while due > 0:
            for site in order:
                n, born = self.active(run, site), self.born(run, site)
                given = min(self.grow, due, len(born) - n)
                if self.rescale:
                    run.adapters[site].tensors()["gate"][:n] *= n / (n + given)
                born[n : n + given] = done
                due -= given

    def scores(self, run: Run) -> dict[str, float]:
        """The smoothed score of each site, 0 for one without."""
        device = next(iter(run.adapters.values())).tensors()["A"].device
        none = torch.zeros((), device=device)
        both = [
            torch.stack([self.memory.get(f"{kind}/{site}", none).to(device) for site in run.adapters])
            for kind in ("mean", "spread")
        ]
        return dict(zip(run.adapters, (both[0] * both[1]).tolist(), strict=True))

    def keep_reserve(self, run: Run) -> None:
        """The next components of each layer train A and B behind a gate of almost nothing; none when all are given."""
        left = self.left(run)
        marks = [adapter.tensors()["A"].any(dim=1) for adapter in run.adapters.values()]
        marked: list[bool] = torch.cat(marks).tolist()  # read at once
        for site, adapter in run.adapters.items():
            tensors, n = adapter.tensors(), self.active(run, site)
            mine, marked = marked[: len(tensors["A"])], marked[len(tensors["A"]) :]
            A, B, gate = tensors["A"], tensors["B"], tensors["gate"]
            for slot in range(n + self.grow if left else n):
                drawn = slot < len(A) and not mine[slot]
                if drawn:
                    generator = torch.Generator().manual_seed(seed_of(run.seed, self.name, site, slot))
                    A[slot] = STD * send(torch.randn(A.shape[1], generator=generator).to(A.dtype), A.device)
                    B[:, slot] = STD * send(torch.randn(len(B), generator=generator).to(B.dtype), B.device)
                if drawn or n <= slot < len(A):
                    gate[slot] = RESERVE
            if not left:
                for p, rows in ((A, A), (B, B.T), (gate, gate)):
                    rows[n:] = 0.0
                    for moment in run.optimizer.state.get(p, {}).values():
                        if moment.shape == p.shape:
                            (moment.T if p is B else moment)[n:] = 0.0

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.update({name: tensor.clone() for name, tensor in state.items()})


def product(adapter: Any) -> Tensor:
    """dW (d, k), also inside a wrapper."""
    tensors = adapter.tensors()
    return adapter.site.scale * (tensors["B"] * tensors["gate"]) @ tensors["A"]


def turn(run: Run) -> list[str]:
    """The sites scored in this step: all where their gradients fit into memory at once, else some of them in turn."""
    turns: list[list[str]] = [[]]
    held = 0
    for site, adapter in run.adapters.items():
        held += adapter.site.d * adapter.site.k
        if turns[-1] and held > GRADIENTS_AT_ONCE:
            turns.append([])
            held = adapter.site.d * adapter.site.k
        turns[-1].append(site)
    return turns[run.step % len(turns)]


def watched(gradients: dict[str, Tensor], site: str, layer: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
    """Forward hook of a layer: adds dL/dW (d, k) of this pass to `gradients` when its backward pass comes by."""
    x, dtype = given[0].detach(), layer.adapter.site.dtype

    def add(slope: Tensor) -> None:
        G = slope.flatten(0, -2).to(dtype).T @ x.flatten(0, -2).to(dtype)
        gradients[site] = gradients[site] + G if site in gradients else G

    if out.requires_grad:
        out.register_hook(add)
