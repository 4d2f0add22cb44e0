"""LoRA ensembles. Wang, Aitchison, Rudolph, 2023, arXiv 2310.00035.

Members start from different random A; the answer is the mean of their probabilities, for the loss and for each
generated token. All members see the same rows in the same step (in the paper each has an order of its own). They train
and answer together: rows go through the base in copies, one for each member, which costs what separate runs would cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, PeftForm, Site
from lrft.adapters.ensemble import by_copy
from lrft.adapters.part import Method


@dataclass(frozen=True)
class LoraEnsemble(Method):
    """Several LoRAs trained side by side, whose probabilities are averaged: better calibrated, and slower to answer."""

    name: ClassVar[str] = "lora-ensemble"
    kind: ClassVar[str] = "group"
    paper: ClassVar[str] = "arXiv 2310.00035"
    equation: ClassVar[str] = "mean over m of softmax(model with W + (alpha / r) B_m A_m)"
    parameters: ClassVar[str] = "members r (d + k)"
    exports: ClassVar[str] = "one PEFT LoRA per member; not mergeable"
    evidence: ClassVar[str] = "each member compared with a single LoRA, the mean with separate models"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "lora, as for a single member"
    slots: ClassVar[tuple[str, ...]] = ("update", "copies")
    provides: ClassVar[tuple[str, ...]] = ("scale",)

    members: Annotated[int, Field(ge=2)] = 5
    """Number of members; the paper uses 5."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return EnsembleAdapter(site, self.members)


class EnsembleAdapter(Delta):
    """A (members, r, k) as in LoRA, B (members, d, r) zero. Rows not in copies meet the mean of the updates."""

    mergeable: ClassVar[bool] = False

    def __init__(self, site: Site, members: int) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(members, site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(members, site.d, site.rank, dtype=site.dtype))
        for A in self.A:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))

    @property
    def copies(self) -> int:
        return len(self.A)

    def factors(self) -> Factors | None:
        if self.in_copies:
            return None
        return Factors(torch.cat(list(self.B), dim=1), self.A.flatten(0, 1), self.site.scale / len(self.A))

    def delta_weight(self) -> Tensor:
        """The mean of the updates."""
        return self.site.scale * (self.B @ self.A).mean(dim=0)

    def delta(self, x: Tensor) -> Tensor:
        if not self.in_copies:
            return linear(x, self.delta_weight())
        thin = by_copy(x, len(self.A)) @ self.A.transpose(1, 2)
        return self.site.scale * (thin @ self.B.transpose(1, 2)).view(*x.shape[:-1], self.site.d)

    def peft(self) -> None:
        return None

    def members(self) -> list[PeftForm]:
        return [PeftForm(A, B, self.site.scale) for A, B in zip(self.A, self.B, strict=True)]
