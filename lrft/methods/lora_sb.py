"""LoRA-SB. Ponkshe et al., 2024, arXiv 2411.19557, section 3. The released code rounds factors to bfloat16: not here.

R starts at eta diag(S), eta the learning rate of the run's first step, which is learning rate over warm-up steps as in
the paper, and without warm-up the learning rate itself. It is set when that step begins; until then the model is the
base.

Each trained token counts the same in G, as in training; the released code adds up the batches' mean losses, in which a
token of a short row counts more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Method, Run
from lrft.adapters.svd import exact, leading
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class LoraSb(Method):
    """A small square matrix between the leading directions of full fine-tuning's first step, which stay frozen.

    The run begins with that step, as far as these directions can say it.
    """

    name: ClassVar[str] = "lora-sb"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2411.19557"
    equation: ClassVar[str] = "W + B R A, -eta sign(G) = U S V', B = U, A = V', R0 = S"
    parameters: ClassVar[str] = "r^2"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "init compared with the SVD of the full gradients' signs by the released formula"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "arXiv 2411.19557: 1e-4 at rank 96, step size grows with rank"
    slots: ClassVar[tuple[str, ...]] = ("update", "init")
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)

    rows: Annotated[int, Field(ge=1)] = 50
    """Calibration rows for the gradient. 50 as in the released recipe for mathematics."""
    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: within 2 % of the leading energy; exact: the full decomposition, slow for large layers."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        decompose = exact if self.svd == "exact" else leading
        found = {}
        for site, G in context.gradients(self.rows):  # the sign of a sum over all processes: each has the same
            with torch.random.fork_rng(devices=[G.device] if G.is_cuda else []):
                torch.manual_seed(seed_of(context.seed, self.name, site.name))
                U, S, V = decompose(-G.sign(), min(site.rank, *G.shape))
            found[site.name] = {"U": U, "S": S, "V": V}
        return found

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular vectors: lower rank {site.rank}")
        return LoraSbAdapter(site)

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        adapter.A.copy_(seen["V"].T)
        adapter.B.copy_(seen["U"])
        adapter.S.copy_(seen["S"])

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        if run.step > 0:
            return
        rates = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
        for adapter in run.adapters.values():
            for module in adapter.modules():  # a wrapper may hold it
                if isinstance(module, LoraSbAdapter):
                    module.R.copy_(rates[id(module.R)] * module.S.diag())


class LoraSbAdapter(Delta):
    """A (r, k), B (d, r) orthonormal and S (r,), frozen, set from the gradient; R (r, r) zero until the first step."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype), requires_grad=False)
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype), requires_grad=False)
        self.S = nn.Parameter(torch.zeros(site.rank, dtype=site.dtype), requires_grad=False)
        self.R = nn.Parameter(torch.zeros(site.rank, site.rank, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.B @ self.R @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return linear(linear(linear(x, self.A), self.R), self.B)

    def factors(self) -> Factors:
        return Factors(self.B @ self.R, self.A, 1.0)
