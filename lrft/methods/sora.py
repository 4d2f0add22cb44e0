"""SoRA. Ding et al., 2023, arXiv 2311.11696, equations 5 to 8. The gradient part of the step is AdamW's.

The authors' code takes a threshold that does not follow the learning rate, and its three statements in place make all
of |g| < 2 xi zero; the rule "released" is that. Its further penalty, the mean of |g|, is the option `l1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.gated import GatedPair
from lrft.adapters.part import Method, Run


@dataclass(frozen=True)
class Sora(Method):
    """A gate on each component, which a threshold after every step pulls towards zero: ranks follow from the data."""

    name: ClassVar[str] = "sora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2311.11696"
    equation: ClassVar[str] = "W + (alpha / r) B diag(g) A; g <- sign(g) max(|g| - lr strength, 0)"
    parameters: ClassVar[str] = "r (d + k + 1)"
    exports: ClassVar[str] = "PEFT LoRA of the remaining components, or merged model"
    evidence: ClassVar[str] = "gates, thresholds and gradients compared with the released formulas, in float64"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    rule: Literal["soft", "released"] = "soft"
    """soft: the paper's threshold, strength times the learning rate; released: that of the authors' code."""
    strength: Annotated[float, Field(ge=0)] | None = None
    """Strength of the threshold; none is 0.375 for soft and 3e-4 for released, one threshold at the authors' rate of
    8e-4. Gates start near 1: a run of few steps at a low rate reaches zero only with a higher gate_ratio."""
    gate_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the gates relative to A and B; also scales the threshold of rule: soft."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean of |g| in the loss. Not in the paper; the authors' scripts have 10."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def lr_factors(self) -> dict[str, float]:
        return {"gate": self.gate_ratio}

    def build(self, site: Site) -> Delta:
        adapter = GatedPair(site, trains_gate=True)
        nn.init.kaiming_uniform_(adapter.A, a=math.sqrt(5))
        nn.init.normal_(adapter.gate)
        return adapter

    def loss(self, run: Run) -> Tensor | None:
        gates = [adapter.tensors()["gate"].abs() for adapter in run.adapters.values()]
        return self.l1 * torch.cat(gates).mean() if self.l1 else None

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        rates = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
        for adapter in run.adapters.values():
            gate = adapter.tensors()["gate"]
            gate.copy_(self.shrunk(gate, rates[id(gate)]))

    def shrunk(self, gate: Tensor, rate: float) -> Tensor:
        """The gate after the threshold, at a learning rate."""
        if self.rule == "soft":
            return soft_threshold(gate, rate * (0.375 if self.strength is None else self.strength))
        xi = 3e-4 if self.strength is None else self.strength
        shrunk = soft_threshold(gate, xi)
        return torch.where(shrunk.abs() < xi, 0.0, shrunk)


def soft_threshold(x: Tensor, xi: float) -> Tensor:
    """x moved towards zero by xi, no further than zero."""
    return x.sign() * (x.abs() - xi).clamp_min(0)
