"""A method: what the mean of each group of inputs adds to each output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class GroupMean(Method):
    """Averages r groups of neighbouring inputs and trains what each mean adds to each output."""

    name: ClassVar[str] = "group-mean"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "-"
    equation: ClassVar[str] = "W + (alpha / r) B P, P (r, k) the means of r groups of neighbouring inputs"
    parameters: ClassVar[str] = "r d"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged"
    evidence: ClassVar[str] = "an example"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        if site.rank > site.k:
            raise ValueError(f"{site.k} inputs make no {site.rank} groups: lower the rank")
        return GroupMeanAdapter(site)


class GroupMeanAdapter(Delta):
    """B (d, r) is trained from zero. P (r, k) follows from the shape: a buffer that no file holds."""

    P: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        group = torch.arange(site.k) * site.rank // site.k
        P = (group == torch.arange(site.rank)[:, None]).to(site.dtype)
        self.register_buffer("P", P / P.sum(1, keepdim=True), persistent=False)

    def factors(self) -> Factors:
        return Factors(self.B, self.P, self.site.scale)

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.B @ self.P
