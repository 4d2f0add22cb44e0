"""OSF, fine-tuning beside the weight's leading singular directions. Nayak et al., 2025, arXiv 2504.07097; as in PEFT.

    W' = W - U0 S0 V0 + U S V,    U0, S0, V0 the r smallest singular triplets of W, where U, S, V start

Gradients of U and V are rid of their part in the directions of the other, larger triplets, where what was learned
before is taken to lie. Only those of a layer's longer side have to be kept for that: the other side's are what U0 or V0
leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, FactoredDelta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model import linear as layers


@dataclass(frozen=True)
class Osf(Method):
    """Trains the weight's smallest singular triplets, and moves them only across its larger singular directions."""

    name: ClassVar[str] = "osf"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2504.07097"
    equation: ClassVar[str] = (
        "W - U0 S0 V0 + U S V, from the r smallest triplets; gradients without the larger directions"
    )
    parameters: ClassVar[str] = "r (d + k + 1)"
    exports: ClassVar[str] = "PEFT LoRA of rank 2 r, PEFT OSF, or merged model"
    evidence: ClassVar[str] = "forward, projected gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "by analogy: sorsa has 3e-5 for singular triplets that are larger"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "OSF"

    @classmethod
    def in_peft(cls) -> PeftType:
        return OsfType(
            "OSF",
            OsfAdapter,
            {
                "U": Named("osf_svd_params.U_low", "dr"),
                "S": Named("osf_svd_params.S_low", "r"),
                "V": Named("osf_svd_params.V_low", "rk"),
            },
            rank="",
            training=("effective_rank", "rank_pattern", "target_svd_config"),
            whole=False,
        )

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular values: lower rank {site.rank}")
        return OsfAdapter(site)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        U, S, V, adapter.high = parted(W0, adapter.site.rank)
        for name, value in {"U": U, "S": S, "V": V}.items():
            getattr(adapter, name).copy_(value)
            getattr(adapter, f"{name}0").copy_(value)

    def kept_numbers(self, d: int, k: int, rank: int) -> int:
        return 0 if d == k else max(d, k) * (min(d, k) - rank)


def parted(W: Tensor, r: int, *, checked: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """U (d, r), S (r,), V (r, k) of the r smallest singular triplets of W (d, k); of the others the vectors of the
    longer side, as columns, or None where there is none.

    checked: raise ValueError where two singular values are the same at the cut. This reads values.
    """
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    cut, (d, k) = len(S) - r, W.shape
    if checked and cut and S[cut - 1] - S[cut] < 1e-6 * S[0]:
        raise ValueError(f"its singular values {cut} and {cut + 1} are the same: no {r} triplets are the smallest")
    others = None if d == k else (U[:, :cut] if d > k else Vh[:cut].T).contiguous()
    return U[:, cut:], S[cut:], Vh[cut:], others


class OsfAdapter(FactoredDelta):
    """U (d, r), S (r,), V (r, k), and U0, S0, V0 frozen, where they started; all are set from the weight."""

    high: Tensor | None

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        d, k, r = site.d, site.k, site.rank
        self.U, self.U0 = both(torch.zeros(d, r, dtype=site.dtype))
        self.S, self.S0 = both(torch.zeros(r, dtype=site.dtype))
        self.V, self.V0 = both(torch.zeros(r, k, dtype=site.dtype))
        self.register_buffer("high", None, persistent=False)

    def factors(self) -> Factors:
        """U S V - U0 S0 V0 as one product, exactly zero at the start."""
        with torch.autocast(self.U.device.type, enabled=False):
            d, k = self.site.d, self.site.k
            U = self.across(self.U, self.U0, d > k)
            V = self.across(self.V.T, self.V0.T, k > d).T
            B, B0 = U * self.S, self.U0 * self.S0
            return Factors(torch.cat([B, B - B0], dim=1), torch.cat([V - self.V0, self.V0]), 1.0)

    def across(self, factor: Tensor, start: Tensor, longer: bool) -> Tensor:
        """`factor` (n, r), with a gradient that lies across the larger directions."""
        if not (torch.is_grad_enabled() and factor.requires_grad) or (longer and self.high is None):
            return factor  # a saved adapter that nobody trains; a forward pass for training knows `high`
        fixed = factor.detach()
        change = factor - fixed  # zero: what it is multiplied with acts on the gradient alone
        if self.high is None or not longer:
            return fixed + start @ (start.T @ change)
        return fixed + change - self.high @ (self.high.T @ change)

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        if self.high is None and self.site.d != self.site.k and torch.is_grad_enabled() and self.U.requires_grad:
            *_, self.high = parted(layers.dense(base).to(self.site.dtype), self.site.rank, checked=False)
        return super().forward(x, base)


def both(value: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """A trained tensor, and a frozen one of its own memory."""
    return nn.Parameter(value), nn.Parameter(value.clone(), requires_grad=False)


@dataclass(frozen=True)
class OsfType(PeftType):
    """A file has the trained triplets. Where they started is counted from the base again: their product has no sign."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        kept = {name: min(a.site.d, a.site.k) - a.site.rank for name, a in adapters.items()}
        if whole := next((name for name, rank in kept.items() if rank == 0), None):
            raise ValueError(f"PEFT's OSF leaves a singular direction as it is, and {whole} trains all of them")
        first = next(iter(kept.values()))
        patterns = {f"^{re.escape(name)}$": rank for name, rank in kept.items() if rank != first}
        return {"effective_rank": first, "rank_pattern": patterns}

    def unfit(self, adapters: Mapping[str, Any], weight: Callable[[Site], Tensor]) -> str:
        for name, own in adapters.items():
            U, S, V, _ = parted(weight(own.site), own.site.rank)
            ours, theirs = (own.U0.cpu() * own.S0.cpu()) @ own.V0.cpu(), (U * S) @ V
            if (ours - theirs).abs().max() > 1e-3 * theirs.abs().max():
                return f"the smallest triplets of {name} are not those that PEFT counts"
        return ""

    def completed(
        self,
        method: Any,
        tensors: Mapping[str, Mapping[str, Tensor]],
        shared: Mapping[str, Tensor],
        sites: Sequence[Site],
        weight: Callable[[Site], Tensor],
    ) -> dict[str, dict[str, Tensor]]:
        made = {}
        for site in sites:
            try:
                U, S, V, _ = parted(weight(site), site.rank)
            except ValueError as error:
                raise ValueError(f"{site.name}: {error}") from None
            made[site.name] = {**tensors[site.name], "U0": U, "S0": S, "V0": V}
        return made
