"""Dropout for a part of the run. Liu et al., 2023, arXiv 2303.01500, section 4: here the adapters' own dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Part, Run


@dataclass(frozen=True)
class EarlyLateDropout(Part):
    """Drops the adapters' inputs early in the run only, against underfitting, or late only, against overfitting."""

    name: ClassVar[str] = "early-late-dropout"
    kind: ClassVar[str] = "schedule"
    paper: ClassVar[str] = "arXiv 2303.01500"
    equation: ClassVar[str] = "p before the cutoff and 0 after it, or 0 before it and p after it"
    evidence: ClassVar[str] = "dropout probability of every step compared with the released code"
    requires: ClassVar[tuple[str, ...]] = ("delta",)

    mode: Literal["early", "late", "standard"] = "early"
    """When adapter.dropout acts: before the cutoff, from the cutoff on, or always."""
    cutoff: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Fraction of the run. The authors drop in the first 50 of 300 to 600 epochs."""
    schedule: Literal["constant", "linear"] = "linear"
    """linear, the authors' choice: early dropout falls from p at the first step to 0 at the last before the cutoff.
    late and standard stay constant."""

    @property
    def acts_between_passes(self) -> bool:
        return False  # it sets what the next passes drop

    def before_step(self, run: Run) -> None:
        share = self.share(run.step, self.cutoff * run.total_steps)
        for adapter in run.adapters.values():
            for module in adapter.modules():
                if isinstance(module, Adapter):
                    module.dropout = share * module.site.dropout

    def share(self, step: int, cutoff: float) -> float:
        """p(step) / p, with `step` counted from 0 and the cutoff in steps."""
        if self.mode == "standard":
            return 1.0
        early = step < cutoff
        if early and self.mode == "early" and self.schedule == "linear":
            return 1 - step / max(1, math.ceil(cutoff) - 1)
        return float(early == (self.mode == "early"))

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        if any(site.dropout for site in sites):
            return []
        return [
            "early-late-dropout: adapter.dropout is 0, so there is nothing to schedule; set it, for example to 0.1."
        ]
