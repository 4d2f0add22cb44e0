"""GOAT. Fan et al., 2025, arXiv 2502.16894, section 3: low-rank experts behind a router, started from parts of the SVD.

    y = W x + s sum_i w_i(x) (B_i A_i - B0_i A0_i) x,    i over the chosen `top` of E experts of rank r / E

Probabilities are softmax(R x), of x without dropout; the chosen ones over their sum are w. Expert i starts from the
first r / E triplets of the i-th of E segments of the singular values, which are divided by 10 s. Released code takes
the start out of W with the weights 1 / E of a router without preference (`offset: expected`), which no token has: its
model does not start as the base. Here each token's own weights take it out: exactly the base. Of two versions of the
code one has eta = 1, the paper's factor, and one the factor alpha E / r.

The penalty of a layer is E sum_i f_i P_i over the tokens of a micro-batch, prompts and padding as well (as released):
f_i chosen as a share of the tokens, P_i the mean probability. It is `top` for a router without preference.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters import svd
from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method, Outputs, Run

RHO = 10.0


@dataclass(frozen=True)
class Goat(Method):
    """Experts of low rank, a few of them chosen for each token by a router. No weight can say this."""

    name: ClassVar[str] = "goat"
    kind: ClassVar[str] = "group"
    paper: ClassVar[str] = "arXiv 2502.16894"
    equation: ClassVar[str] = "W x + s sum_i w_i(x) (B_i A_i - their start) x, w = top of softmax(R x)"
    parameters: ClassVar[str] = "r (d + k) + E k"
    exports: ClassVar[str] = "not mergeable: use as an adapter"
    evidence: ClassVar[str] = (
        "output compared with loops over tokens and experts by the released formulas, in float64; init: exact is by "
        "lrft"
    )
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "the released recipe for GLUE; that for Llama-2-7B has 2e-5"
    slots: ClassVar[tuple[str, ...]] = ("update", "scale")
    provides: ClassVar[tuple[str, ...]] = ("scale",)

    experts: Annotated[int, Field(ge=1)] = 8
    """E, number of experts; must divide the rank."""
    top: Annotated[int, Field(ge=1)] = 2
    """Active experts per token."""
    init: Literal["svd", "lora"] = "svd"
    """svd: segments of the weight's singular vectors; lora: A random and B zero."""
    offset: Literal["routed", "expected"] = "routed"
    """What of the svd start is subtracted; routed: all of it, token by token; expected: its mean, as released."""
    eta: Annotated[float, Field(gt=0)] | None = None
    """The paper's factor sqrt(3 eta k E / r) in place of alpha E / r; eta: the full learning rate over this one."""
    balance: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the penalty, summed over layers, that keeps the experts equally busy."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha * self.experts / rank

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        if self.eta is None:
            return list(sites)
        return [replace(site, scale=math.sqrt(3 * self.eta * site.k * self.experts / site.rank)) for site in sites]

    def build(self, site: Site) -> Delta:
        E, most = self.experts, min(site.d, site.k)
        if site.rank % E:
            raise ValueError(f"goat's {E} experts do not divide rank {site.rank}: change either")
        if self.top > E:
            raise ValueError(f"goat's tokens cannot choose {self.top} of {E} experts: lower top")
        if self.top == 1 < E and not self.balance:
            raise ValueError("goat's router learns nothing with top 1 and balance 0: the one weight is always 1")
        if self.init == "svd" and site.rank // E > most // E:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular vectors: lower rank {site.rank}")
        return GoatAdapter(site, self)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        if self.init == "lora":
            return
        per, length = adapter.site.rank // self.experts, min(W0.shape) // self.experts
        chosen = torch.cat([torch.arange(per) + i * length for i in range(self.experts)]).to(W0.device)
        U, S, V = svd.at(W0, chosen)
        root = (S / (RHO * adapter.site.scale)).sqrt()
        adapter.A.copy_(root[:, None] * V.T)
        adapter.B.copy_(U * root)
        adapter.A0.copy_(adapter.A)
        adapter.B0.copy_(adapter.B)

    def output_loss(self, run: Run, outputs: Outputs) -> Tensor | None:
        found = [m for adapter in run.adapters.values() for m in adapter.modules() if isinstance(m, GoatAdapter)]
        terms = [term for m in found if (term := m.taken()) is not None] if self.balance else []
        return self.balance * torch.stack(terms).sum() if terms else None


def nothing() -> None:
    return None


class GoatAdapter(Delta):
    """A (r, k), B (d, r): the experts' one below another, side by side. A0, B0 what they start from. router (E, k)."""

    mergeable: ClassVar[bool] = False

    def __init__(self, site: Site, method: Goat) -> None:
        super().__init__(site)
        self.method, self.per = method, site.rank // method.experts
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        # The only expert is always chosen.
        router = torch.empty(method.experts, site.k, dtype=site.dtype)
        self.router = nn.Parameter(router, requires_grad=method.experts > 1)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.router, a=math.sqrt(5))
        if method.init == "svd":
            self.A0 = nn.Parameter(self.A.detach().clone(), requires_grad=False)
            self.B0 = nn.Parameter(self.B.detach().clone(), requires_grad=False)
        self.note: Callable[[], Tensor | None] = nothing
        """the penalty of the last pass, while its graph lives"""

    def delta_weight(self) -> Tensor:
        raise TypeError(f"{self.site.name}: not mergeable: experts are selected per token by a router")

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (..., E), and of which the chosen ones are kept, 0 and 1 (..., E), for x (..., k)."""
        slopes = linear(x, self.router)
        p = slopes.softmax(-1, dtype=torch.promote_types(slopes.dtype, torch.float32))
        return p, torch.zeros_like(p).scatter(-1, p.topk(self.method.top, dim=-1).indices, 1.0)

    def delta(self, x: Tensor) -> Tensor:
        return self.routed(x, x)

    def routed(self, x: Tensor, dropped: Tensor) -> Tensor:
        """The experts' part for `dropped`, chosen by x."""
        p, kept = self.route(x)
        w = (p * kept / (p * kept).sum(-1, keepdim=True)).repeat_interleave(self.per, -1)
        A: Tensor = self.A
        B: Tensor = self.B
        if self.method.init == "svd" and self.method.offset == "routed":  # without cancellation, as in Anchored
            A, B, w = torch.cat([A - self.A0, self.A0]), torch.cat([B, B - self.B0], 1), torch.cat([w, w], -1)
        elif self.method.init == "svd":
            mean = torch.full_like(w, -1 / self.method.experts)
            A, B, w = torch.cat([A, self.A0]), torch.cat([B, self.B0], 1), torch.cat([w, mean], -1)
        h = linear(dropped, A)
        return self.site.scale * linear(h * w.to(h.dtype), B)

    def eager(self, x: Tensor, dropped: Tensor, base: nn.Module) -> Tensor:
        y = base(x)
        return y + self.routed(self.cast(x), self.cast(dropped)).to(y.dtype)

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        y = super().forward(x, base)
        if self.training and self.method.balance and y.requires_grad:
            self.take_note(self.cast(x), y)
        return y

    @torch.compiler.disable
    def take_note(self, x: Tensor, y: Tensor) -> None:
        """Keep the penalty for as long as the graph of y lives.

        A pass that checkpointing repeats makes its own, which is gone with it: else it would hold all layers' inputs.
        """
        p, kept = (each.flatten(0, -2) for each in self.route(x))
        penalty = self.method.experts * (kept.mean(0) * p.mean(0)).sum()
        node: Any = y.grad_fn
        node.metadata["penalty"] = penalty
        self.note = weakref.ref(penalty)

    def taken(self) -> Tensor | None:
        """The note, once: a layer that takes no part in the next pass has none."""
        penalty, self.note = self.note(), nothing
        return penalty
