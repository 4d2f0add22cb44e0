"""PLoP. Hayou et al., 2025, arXiv 2506.20629: adapters where the weights are aligned least with the data.

    score of a layer = mean over inputs x of |W x| / |x|, over what random inputs give

The released code draws the random inputs; here it is |W|_F / sqrt(k), which is their quadratic mean. The code prints
the scores of the kinds of layers (queries, keys, ...) for the questions of a task, padding included; here whole rows
are looked at, padding is not, and the kinds with the lowest scores, the paper's choice, get the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear, normalize

from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part


@dataclass(frozen=True)
class Plop(Part):
    """Leaves adapters only on the kinds of layers whose weights are aligned least with the data."""

    name: ClassVar[str] = "plop"
    kind: ClassVar[str] = "placement"
    paper: ClassVar[str] = "arXiv 2506.20629"
    equation: ClassVar[str] = "layers with the lowest mean of |W x| / |x| sqrt(k) / |W|"
    evidence: ClassVar[str] = "scores compared with the released formula, its random baseline in closed form"
    slots: ClassVar[tuple[str, ...]] = ("placement",)

    kinds: Annotated[int, Field(ge=1)] = 3
    """Number of module types, among the target modules, that get adapters (not specified by the paper)."""
    rows: Annotated[int, Field(ge=1)] = 100
    """Calibration rows. The authors use 100."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site its "score" ()."""
        # One row says who is given the same inputs; these are then collected once for all of them.
        leaders = context.agree(context.inputs(1, lambda name, x: None))
        device = next(context.model.parameters()).device
        reached = [site for site in context.sites if site.name in leaders]
        sums = {site.name: torch.zeros(2, dtype=site.dtype, device=device) for site in reached}

        def add(name: str, x: Tensor) -> None:
            unit = normalize(x, dim=-1)
            for site in reached:
                if leaders[site.name] == name:
                    lengths = linear(unit, context.weight(site)).norm(dim=-1)
                    sums[site.name] += torch.stack([lengths.sum(), lengths.new_tensor(len(lengths))])

        context.inputs(self.rows, add)
        found = {}
        for site in reached:
            total, count = context.reduce(sums[site.name])
            found[site.name] = {"score": total / count * site.k**0.5 / context.weight(site).norm()}
        return found

    def assign_ranks_from(self, sites: Sequence[Site], seen: CalibrationResult) -> list[Site]:
        scores: dict[str, list[float]] = {}
        for site in sites:
            if site.name in seen:
                scores.setdefault(kind_of(site.name), []).append(seen[site.name]["score"].item())
        ordered = sorted(scores, key=lambda kind: sum(scores[kind]) / len(scores[kind]))
        return [site for site in sites if kind_of(site.name) in ordered[: self.kinds]]


def kind_of(name: str) -> str:
    """What the same layer of every block is called: "layers.3.mlp.up_proj" without its number."""
    return ".".join("*" if word.isdigit() else word for word in name.split("."))
