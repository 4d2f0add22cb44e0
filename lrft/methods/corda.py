"""CorDA. Yang et al., 2024, arXiv 2406.05223, section 3: the singular vectors of W C, C = X' X of the inputs X (n, k).

    W C = U S V';  A0 = sqrt(S / s) V' C^-1 (r, k),  B0 = U sqrt(S / s) (d, r)

for the first r triplets (ipm) or the last (kpm). The diagonal of C is raised as in the released code. The size of C
shifts length from A to B and leaves B A alone. The paper has X' X as it is; the code divides each sample by its largest
entry and by their number, which depends on the batches; here the mean of the diagonal is set to 1, unless asked for the
code's. A layer that no row reaches keeps LoRA's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part
from lrft.adapters.svd import Triplets, exact, leading, trailing
from lrft.utils.seeds import seed_of

# Numbers of covariances held at once: there is one pass over the rows for each few layers.
COVARIANCES_AT_ONCE = 2**29


@dataclass(frozen=True)
class Corda(Part):
    """Starts A and B from the directions of the weight that the data use most, or least."""

    name: ClassVar[str] = "corda"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2406.05223"
    equation: ClassVar[str] = "W C = U S V'; A0 = sqrt(S/s) V' C^-1, B0 = U sqrt(S/s); W + s (B A - B0 A0)"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = "init and forward compared with PEFT 0.21, both modes"
    learning_rate: ClassVar[float] = 5e-5
    rate_source: ClassVar[str] = "arXiv 2406.05223: 2e-5 for LLaMA-2-7B at rank 128, step size grows with rank"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    offset_from_init: ClassVar[bool] = True
    natural_scale: ClassVar[float | None] = 1.0

    mode: Literal["ipm", "kpm"] = "ipm"
    """ipm: the first r, which the rows ask most of; kpm: the last r, which leaves what the rows ask for as it is (the
    authors look at data whose knowledge shall survive; a run looks at the rows it trains on)."""
    rows: Annotated[int, Field(ge=1)] = 256
    """Calibration rows; they need more tokens than a layer has inputs. The authors use 256 rows of 2048 tokens."""
    normalise: Literal["rms", "max"] = "rms"
    """rms: inputs over their root mean square (ours); max: over the largest entry of each micro-batch, as the code."""
    svd: Literal["randomized", "exact"] = "randomized"
    """How ipm decomposes. randomized: within 2 % of the leading energy; exact: in full, as kpm always needs."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site "A" (r, k) and "B" (d, r) of the factor s = 1."""
        return {
            name: found
            for few in portions(context.sites)
            for name, found in self.decompose(replace(context, sites=few))
        }

    def decompose(self, context: CalibrationContext) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        grams: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def add(name: str, x: Tensor) -> None:
            if self.normalise == "max":
                x = x / x.max().abs()
            if name not in grams:
                grams[name] = x.new_zeros(x.shape[1], x.shape[1])
            grams[name].addmm_(x.T, x)
            counts[name] = counts.get(name, 0) + 1

        leaders = context.agree(context.inputs(self.rows, add))
        for leader in dict.fromkeys(leaders.values()):
            sites = [site for site in context.sites if leaders.get(site.name) == leader]
            if leader not in grams:  # a process may have no row at all
                k, dtype = sites[0].k, sites[0].dtype
                grams[leader] = torch.zeros(k, k, dtype=dtype, device=next(context.model.parameters()).device)
            gram = context.reduce(grams.pop(leader))
            size = context.reduce(gram.new_tensor([counts.get(leader, 0)]))
            size = size if self.normalise == "max" else gram.diagonal().mean()
            C, inverse = invertible(gram / size, leader)
            for site in sites:
                U, S, V = self.triplets(context.weight(site) @ C, site, context.seed)
                yield site.name, {"A": S.sqrt()[:, None] * (V.T @ inverse), "B": U * S.sqrt()}

    def triplets(self, WC: Tensor, site: Site, seed: int) -> Triplets:
        r = min(site.rank, site.d, site.k)
        if self.mode == "kpm":
            return trailing(WC, r)
        if self.svd == "exact":
            return exact(WC, r)
        with torch.random.fork_rng(devices=[WC.device] if WC.is_cuda else []):
            torch.manual_seed(seed_of(seed, "corda", site.name))
            return leading(WC, r)

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        A, B, rank, root = seen["A"], seen["B"], adapter.site.rank, adapter.site.scale**-0.5
        if rank > len(A):
            raise ValueError(
                f"corda: rank {rank} where {len(A)} directions of a layer {tuple(W0.shape)} were decomposed: "
                "lower the rank"
            )
        kept = slice(rank) if self.mode == "ipm" else slice(len(A) - rank, None)
        adapter.A.copy_(A[kept] * root)
        adapter.B.copy_(B[:, kept] * root)


def portions(sites: Sequence[Site]) -> Iterator[list[Site]]:
    """The sites in runs whose covariances fit in together."""
    few: list[Site] = []
    for site in sites:
        if few and sum(s.k**2 for s in (*few, site)) > COVARIANCES_AT_ONCE:
            yield few
            few = []
        few.append(site)
    yield few


def invertible(C: Tensor, place: str) -> tuple[Tensor, Tensor]:
    """C (k, k) with a share of its mean diagonal added, as small as lets it be inverted, and its inverse."""
    one, mean = torch.eye(len(C), dtype=C.dtype, device=C.device), C.diagonal().mean()
    if not (mean.isfinite() and mean > 0):
        raise ValueError(f"{place}: its calibration inputs are zero or not finite")
    share = 0.01
    while True:
        raised = C + share * mean * one
        inverse = torch.linalg.inv(raised)
        if torch.dist(raised @ inverse, one) < 0.05:
            return raised, inverse
        share *= 2
