"""EVA. Paischer et al., 2024, arXiv 2410.07170: A from the principal components of the inputs, ranks by their variance.

The paper speaks of the singular vectors of the inputs X (n, k); its code and PEFT subtract the mean first, as here.
They feed batches to an incremental decomposition until its directions stand still. Here the covariance (k, k), which
is never made, is multiplied again and again with a thin matrix over the same rows, sum_x (x - mean) (x - mean)' Q: a
sum that does not depend on the order of the rows nor on who holds them. A layer that no row reaches keeps LoRA's start,
or, where ranks are shared out, goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Eva(Part):
    """Starts A from the principal components of a layer's inputs; layers whose inputs vary more get a higher rank."""

    name: ClassVar[str] = "eva"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2410.07170"
    equation: ClassVar[str] = "A0 = the components of x - mean(x), B0 = 0; ranks: the largest explained shares of all"
    evidence: ClassVar[str] = "directions and ranks compared with PEFT 0.21"
    slots: ClassVar[tuple[str, ...]] = ("init", "ranks")
    conflicts: ClassVar[tuple[str, ...]] = ("placement",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    rho: Annotated[float, Field(ge=1)] = 2.0
    """A layer may get up to rho times its rank, or no adapter at all; 1 leaves the ranks as they are."""
    tokens: Literal["trained", "all"] = "trained"
    """Calibration tokens: those trained in the loss, as in PEFT, or all but padding."""
    rows: Annotated[int, Field(ge=1)] = 256
    """Calibration rows (chosen by lrft; the authors iterate until the directions converge)."""
    passes: Annotated[int, Field(ge=1)] = 3
    """Passes over the calibration rows for the directions, after one for the mean (chosen by lrft)."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site "directions" (m, k), orthonormal rows, and "shares" (m,) of the variance that they explain."""
        device = next(context.model.parameters()).device
        sums = {site.name: torch.zeros(site.k + 1, dtype=site.dtype, device=device) for site in context.sites}
        trained = self.tokens == "trained"
        leaders = context.agree(
            context.inputs(self.rows, lambda name, x: add_mean(sums[name], x), trained_only=trained)
        )
        sums = {name: context.reduce(sums[name]) for name in dict.fromkeys(leaders.values())}
        means = {name: total[:-1] / total[-1] for name, total in sums.items()}
        followers = {name: [site for site in context.sites if leaders.get(site.name) == name] for name in means}
        Q = {name: self.first(sites, context.seed).to(device) for name, sites in followers.items()}
        shares: dict[str, Tensor] = {}
        for _ in range(self.passes):
            # One row more than Q has: in its first place comes the whole variance.
            Y = {name: rows.new_zeros(len(rows) + 1, rows.shape[1]) for name, rows in Q.items()}
            self.add_products(context, means, Q, Y)
            for name in Y:
                total = context.reduce(Y[name])
                _, S, V = torch.linalg.svd(total[1:], full_matrices=False)
                Q[name] = V * V.gather(1, V.abs().argmax(dim=1, keepdim=True)).sign()  # else rounding may turn one
                shares[name] = S / total[0, 0].clamp_min(torch.finfo(S.dtype).tiny)
        return {
            site.name: {"directions": Q[name][: self.most(site)], "shares": shares[name][: self.most(site)]}
            for name, sites in followers.items()
            for site in sites
        }

    def add_products(
        self, context: CalibrationContext, means: Mapping[str, Tensor], Q: Mapping[str, Tensor], Y: Mapping[str, Tensor]
    ) -> None:
        def add(name: str, x: Tensor) -> None:
            if name in Y:  # else a layer that only rows of another process than the first reach
                x = x - means[name]
                Y[name][0, 0] += x.square().sum()
                Y[name][1:] += (x @ Q[name].T).T @ x

        context.inputs(self.rows, add, trained_only=self.tokens == "trained")

    def most(self, site: Site) -> int:
        """The highest rank that a site can get."""
        return site.rank if self.rho == 1 else min(site.d, site.k, round(self.rho * site.rank))

    def first(self, sites: Sequence[Site], seed: int) -> Tensor:
        """Random rows (p, k), more than will be kept: what is kept converges faster the more there are."""
        p = min(sites[0].k, 2 * max(map(self.most, sites)) + 8)
        generator = torch.Generator().manual_seed(seed_of(seed, "eva", sites[0].name))
        return torch.randn(p, sites[0].k, generator=generator, dtype=sites[0].dtype)

    def assign_ranks_from(self, sites: Sequence[Site], seen: CalibrationResult) -> list[Site]:
        if self.rho == 1:
            return list(sites)
        # Each entry is a component. Of equal ones, as layers with the same inputs have, the first site's is taken.
        known = [site.name for site in sites if site.name in seen]
        shares = [(share, name) for name in known for share in seen[name]["shares"].tolist()]
        shares.sort(key=lambda entry: -entry[0])
        taken = [name for _, name in shares[: sum(site.rank for site in sites)]]
        ranked = [replace(site, rank=taken.count(site.name)) for site in sites]
        return [site for site in ranked if site.rank]

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        directions, rank = seen["directions"], adapter.site.rank
        if rank > len(directions):
            raise ValueError(
                f"eva: rank {rank} of a layer with {adapter.site.k} inputs, of which {len(directions)} components "
                "are known: lower the rank"
            )
        adapter.A.copy_(directions[:rank])


def add_mean(total: Tensor, x: Tensor) -> None:
    """The sum of x (n, k) and, in the last place, n."""
    total[:-1] += x.sum(dim=0)
    total[-1] += len(x)
