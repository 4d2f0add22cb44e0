"""CURLoRA. Fawi, 2024, arXiv 2408.14572; and, with `selection: pivots`, PMSS, Wang et al., 2024, arXiv 2409.16722.

Both train U between r columns C and r rows R of the weight itself. CURLoRA draws those of small norm, with
probabilities proportional to 1 / p, p a column's share of |W|^2. Its released code draws with replacement and by
1 / (p + 0.001), which is nearly uniform for large layers: options here. PMSS wants informative ones; its rule is not
published: pivoted QR of W for the columns and of W' for the rows is a reconstruction. C and R are saved as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.methods.lora_xs import LoraXsAdapter


@dataclass(frozen=True)
class Curlora(Method):
    """A small square matrix between columns and rows of the weight itself, which stay frozen."""

    name: ClassVar[str] = "curlora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2408.14572"
    equation: ClassVar[str] = "W + alpha C U R, C columns and R rows of W of small norm"
    parameters: ClassVar[str] = "r^2"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = (
        "update and probabilities compared with the released code; init: pivots is a reconstruction"
    )
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "ours, from the size of its update; the paper has 2.5e-4"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    selection: Literal["small", "pivots"] = "small"
    """small: sample columns and rows, preferring small norms; pivots: take the first pivots of QR."""
    damping: Annotated[float, Field(ge=0)] = 0.0
    """Added to p before 1 / p; 0.001 as in the released code."""
    replace: bool = False
    """Draw with replacement, as the released code does: a column may then be taken twice."""

    def alpha(self, rank: int) -> float:
        return 1.0

    def scale(self, alpha: float, rank: int) -> float:
        return alpha

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has no {site.rank} columns and rows: rank {most} at most")
        return LoraXsAdapter(site)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        r = adapter.site.rank
        choose = pivots if self.selection == "pivots" else self.drawn
        adapter.B.copy_(W0[:, choose(W0, r)])
        adapter.A.copy_(W0[choose(W0.T, r)])

    def drawn(self, W: Tensor, r: int) -> Tensor:
        """r column indices. Columns of zeros come last: they would do nothing."""
        p = W.double().square().sum(dim=0).cpu()  # on the CPU: the same draw for every device
        p = p / p.sum().clamp_min(torch.finfo(p.dtype).tiny)
        weights = torch.where(p > 0, 1 / (p + self.damping), 0)
        lowest = 1e-12 * weights.max().clamp_min(1)
        return torch.multinomial(weights.clamp_min(lowest), r, replacement=self.replace).to(W.device)


def pivots(W: Tensor, r: int) -> Tensor:
    """The first r columns of pivoted QR: each the one farthest from the span of those before it."""
    rest = W.clone()
    chosen: list[int] = []
    for _ in range(r):
        squares = rest.square().sum(dim=0)
        squares[chosen] = -1
        chosen.append(int(squares.argmax()))
        q = rest[:, chosen[-1]] / rest[:, chosen[-1]].norm().clamp_min(torch.finfo(W.dtype).tiny)
        rest -= torch.outer(q, q @ rest)
    return torch.tensor(chosen, device=W.device)
