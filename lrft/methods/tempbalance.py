"""TempBalance. Liu et al., 2024, arXiv 2410.12178: learning rates by the tails of the weights' spectra.

The released code leaves the factor s out of W + s B A; here it is the adapted weight itself, of any method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters import svd
from lrft.adapters.part import Part, Run
from lrft.model import linear


@dataclass(frozen=True)
class TempBalance(Part):
    """Gives layers whose spectrum has a light tail, which are trained less well, a larger learning rate than others."""

    name: ClassVar[str] = "tempbalance"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2410.12178"
    equation: ClassVar[str] = "lr by alpha = 1 + n / sum ln(x_i / x_min) over the n largest eigenvalues x of W' W"
    evidence: ClassVar[str] = (
        "exponents compared with the released formulas, in float64, and with matrices of known exponents"
    )

    form: Literal["linear", "sigmoid", "sqrt"] = "linear"
    """linear: from lowest to highest between the extreme alphas; sigmoid: 10^(strength (sigmoid - 1/2)) of alpha less
    its mean; sqrt: sqrt(alpha) over its mean."""
    lowest: Annotated[float, Field(gt=0, le=1)] = 0.5
    """linear: smallest learning rate of a layer over the scheduled one. The other forms have no such bound."""
    highest: Annotated[float, Field(ge=1)] = 1.5
    """linear: largest learning rate of a layer over the scheduled one."""
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Slope of the sigmoid, whose rates lie within 10^(-strength/2) and 10^(strength/2). Searched per task."""
    tail: Annotated[float, Field(gt=1)] = 2.0
    """The eigenvalues above the share 1/tail of all are the tail: 2 is above the median. The authors take 1.5 to 2."""
    every: Annotated[float, Field(ge=0)] = 0.0
    """Steps from one look at the spectra to the next, or a share of the run when below 1; 0 is at the start only."""
    by_block: bool = False
    """One rate per block of the model, from the mean of its alphas."""

    @cached_property
    def known(self) -> dict[int, dict[str, float]]:
        """The latest look: its step -> site -> learning rate over the scheduled one."""
        return {}

    def rate(self, run: Run, site: str) -> float:
        every = run.steps(self.every)
        context = run.step // every * every if self.every else 0
        if context not in self.known:
            self.known.clear()
            self.known[context] = self.rates(run)
        return self.known[context].get(site, 1.0)

    @torch.no_grad()
    def rates(self, run: Run) -> dict[str, float]:
        alphas = torch.tensor([exponent(weight(run, site), self.tail) for site in run.adapters], dtype=torch.float64)
        device = next(run.model.parameters()).device
        # The mean over processes, which all get bit for bit: a decomposition may differ between them.
        alphas = (run.reduce(alphas.to(device)) / run.reduce(torch.ones_like(alphas, device=device))).cpu()
        alphas = alphas.where(alphas.isfinite(), alphas.nanmean().nan_to_num(1.0))
        if self.by_block:
            blocks = [adapter.site.depth for adapter in run.adapters.values()]
            for block in {block for block in blocks if block is not None}:
                mine = torch.tensor([other == block for other in blocks])
                alphas[mine] = alphas[mine].mean()
        return dict(zip(run.adapters, self.factors(alphas).tolist(), strict=True))

    def factors(self, alphas: Tensor) -> Tensor:
        if self.form == "sigmoid":
            return 10 ** (self.strength * (torch.sigmoid(alphas - alphas.mean()) - 0.5))
        if self.form == "sqrt":
            return alphas.sqrt() / alphas.sqrt().mean()
        width = (alphas.max() - alphas.min()).item()
        if width == 0:
            return torch.ones_like(alphas)
        factors = self.lowest + (alphas - alphas.min()) / width * (self.highest - self.lowest)
        return factors.clamp(self.lowest, self.highest)  # against rounding

    def state(self) -> dict[str, Tensor]:
        return {
            f"{step}/{site}": torch.tensor(rate, dtype=torch.float64)
            for step, rates in self.known.items()
            for site, rate in rates.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.known.clear()
        for key, rate in state.items():
            step, _, site = key.partition("/")
            self.known.setdefault(int(step), {})[site] = rate.item()


def weight(run: Run, site: str) -> Tensor:
    """The adapted weight (d, k) of a site; the base's where the adapter is no weight."""
    layer: Any = run.model.get_submodule(site)
    adapter = run.adapters[site]
    W0 = linear.dense(layer.base).to(adapter.site.dtype)
    return adapter.weight(W0) if adapter.mergeable else W0


def exponent(W: Tensor, tail: float) -> float:
    """Hill's estimate for the density of the squared singular values, above one of them; NaN where none differ."""
    values = svd.squares(W)
    logs = values[values > values[-1] * torch.finfo(W.dtype).eps].log()
    kept = logs[int(len(logs) / tail) :]
    excess = (kept - kept[:1]).sum().item()
    return 1 + len(kept) / excess if excess > 0 else math.nan
