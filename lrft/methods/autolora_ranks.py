"""The ranks of a finished search of AutoLoRA (arXiv 2403.09113) for another method, which trains on all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part
from lrft.adapters.storage import read_adapter
from lrft.methods.autolora import selected


@dataclass(frozen=True)
class AutoloraRanks(Part):
    """Gives each layer the rank that a run of autolora has found."""

    name: ClassVar[str] = "autolora-ranks"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2403.09113"
    equation: ClassVar[str] = "rank of a layer: its components with softmax(selection) >= 1 / r"
    evidence: ClassVar[str] = "counts by the rule of the released bio-NLP script"
    slots: ClassVar[tuple[str, ...]] = ("ranks",)

    search: str = ""
    """The folder of the search: a run of autolora, whose last state counts, or an adapter."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site its "rank" ()."""
        found = context.agree(ranks(self.search))
        missing = [site.name for site in context.sites if site.name not in found]
        if missing:
            raise ValueError(f"{self.search} has no rank for {missing[0]}: it was searched with other target_modules")
        return {name: {"rank": torch.tensor(rank)} for name, rank in found.items()}

    def assign_ranks_from(self, sites: Sequence[Site], seen: CalibrationResult) -> list[Site]:
        return [replace(site, rank=int(seen[site.name]["rank"])) for site in sites]


def ranks(search: str) -> dict[str, int]:
    """The rank of each site. Raises ValueError for what is no search."""
    if not search:
        raise ValueError("needs a finished run of autolora: name its folder, {autolora-ranks: {search: FOLDER}}")
    folder = next((f for f in (Path(search), Path(search) / "last") if (f / "lrft.json").is_file()), None)
    if folder is None:
        raise ValueError(f"{search} is neither a run nor an adapter folder")
    tensors = read_adapter(folder).tensors
    if not all("selection" in named for named in tensors.values()):
        raise ValueError(f"{search} is no run of autolora")
    return {site: selected(named["selection"]) for site, named in tensors.items()}
