"""WeLore. Jaiswal et al., 2024, arXiv 2407.11239: which weights are of low rank, and training of those alone.

Singular values of all layers, each layer's scaled from 0 (its least) to 1 (its largest), are cut at one threshold for
all of them, so that a share `reduction` is below it. A layer that loses half of its values or more is a low-rank
component: it is trained as B A = U S^(1/2) S^(1/2) V' of the k values that it keeps. All other layers stay as they are.

The authors replace the weight by B A, which makes the model smaller and another one before the first step. Here the
base is never written to: what is cut off stays in it, and B A counts from its start. Their thresholds are a table for
Llama-2-7B; this is the threshold of the same meaning for any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters import svd
from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part

MOST_KEPT = 0.5001  # share of the values: the released code takes layers that lose more than 0.4999 of them


@dataclass(frozen=True)
class Welore(Part):
    """Trains the layers whose weights are of low rank, each at its own rank, from its leading singular vectors."""

    name: ClassVar[str] = "welore"
    kind: ClassVar[str] = "placement"
    paper: ClassVar[str] = "arXiv 2407.11239"
    equation: ClassVar[str] = "W + B A - B0 A0, B0 A0 the k singular values with (S - S_min) / (S_max - S_min) >= t"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = "ranks compared with the released rule; the base is not compressed, unlike in the paper"
    slots: ClassVar[tuple[str, ...]] = ("placement", "ranks", "init")
    requires: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    offset_from_init: ClassVar[bool] = True
    natural_scale: ClassVar[float | None] = 1.0

    reduction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of all singular values below the threshold. The authors: 0.1 to 0.7, most often 0.5."""
    ranks: Literal["spectrum", "recipe"] = "spectrum"
    """spectrum: a layer's rank is the number of values that it keeps; recipe: the recipe's rank for every one."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site how many values it "keeps" ()."""
        scaled = {site.name: normalised(torch.linalg.svdvals(context.weight(site)).cpu()) for site in context.sites}
        everything = torch.cat(list(scaled.values())).sort(descending=True).values
        threshold = everything[max(0, round((1 - self.reduction) * len(everything)) - 1)]
        found = {name: {"keeps": (values >= threshold).sum()} for name, values in scaled.items()}
        if not any(low_rank(site, found[site.name]) for site in context.sites):
            raise ValueError("no layer loses half of its singular values: raise reduction")
        return found

    def assign_ranks_from(self, sites: Sequence[Site], seen: CalibrationResult) -> list[Site]:
        chosen = [site for site in sites if low_rank(site, seen[site.name])]
        if self.ranks == "recipe":
            return chosen
        return [replace(site, rank=max(1, int(seen[site.name]["keeps"]))) for site in chosen]

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        U, S, V = svd.exact(W0, adapter.site.rank)
        root = (S / adapter.site.scale).sqrt()
        adapter.A.copy_(root[:, None] * V.T)
        adapter.B.copy_(U * root)


def normalised(values: Tensor) -> Tensor:
    """Singular values from 0, the least, to 1, the largest."""
    return (values - values.min()) / (values.max() - values.min()).clamp_min(1e-30)


def low_rank(site: Site, seen: Any) -> bool:
    return int(seen["keeps"]) < MOST_KEPT * min(site.d, site.k)
