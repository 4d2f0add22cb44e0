"""ReLoRA, merge and restart. Lialin et al., 2023, arXiv 2307.05695; COLA: Xia et al., 2024, arXiv 2401.04151.

After each of `restarts` + 1 equal parts of the run the update is frozen and a fresh one is begun. The base is not
written to: the frozen updates are kept as they are, which is exact in every precision.

Where the released code differs: its first cycle trains nothing (A starts at zero as well as B), and processes draw
their new A each for itself. After a restart the learning rate rises from zero to where the schedule then is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta
from lrft.adapters.part import Part, Run
from lrft.adapters.restarts import Folded


@dataclass(frozen=True)
class Relora(Part):
    """Freezes the update and begins a fresh one, several times in a run: the sum reaches a higher rank."""

    name: ClassVar[str] = "relora"
    kind: ClassVar[str] = "restart"
    paper: ClassVar[str] = "arXiv 2307.05695"
    equation: ClassVar[str] = "W + dW_1 + ... + dW_n + dW"
    exports: ClassVar[str] = "PEFT LoRA of rank (restarts + 1) r over a LoRA, or merged model"
    evidence: ClassVar[str] = (
        "restart schedule compared with the released code; its no-op first cycle is not reproduced"
    )
    edits_moments: ClassVar[bool] = True
    slots: ClassVar[tuple[str, ...]] = ("restart",)
    requires: ClassVar[tuple[str, ...]] = ("delta", "redrawable")
    conflicts: ClassVar[tuple[str, ...]] = ("init", "ranks", "entries")

    restarts: Annotated[int, Field(ge=0)] = 3
    """Number of restarts. The paper restarts every 1000 to 5000 steps."""
    moments: Literal["zero", "prune", "forget"] = "zero"
    """Adam's moments at a restart: zero; zero for the smallest 90 %; or zero with the step count reset, as in COLA."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of each part of the run in which the learning rate rises again from zero."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta):
            raise TypeError(f"{adapter.site.name}: relora requires an additive update")
        return Folded(adapter, self.restarts)

    def period(self, run: Run) -> int:
        """Steps between restarts."""
        return max(1, run.total_steps // (self.restarts + 1))

    def since(self, run: Run) -> int | None:
        """Steps since the last restart, None before the first."""
        number = min(run.step // self.period(run), self.restarts)
        return run.step - number * self.period(run) if number else None

    def rate(self, run: Run, site: str) -> float:
        steps, length = self.since(run), round(self.warmup * self.period(run))
        return 1.0 if steps is None or steps >= length else steps / length

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        if self.since(run) != 0:
            return
        for adapter in run.adapters.values():
            for module in adapter.modules():
                if isinstance(module, Folded):
                    fresh = run.fresh(module.site, len(module.terms()))
                    if not isinstance(fresh, Delta):
                        raise TypeError("a fresh update must be zero")
                    module.fold(fresh)
                    for parameter in module.inner.parameters():
                        self.forget(run, parameter)

    def forget(self, run: Run, parameter: Tensor) -> None:
        if self.moments == "forget":
            run.forget(parameter)
            return
        for name, moment in run.optimizer.state[parameter].items():
            if name == "step":
                continue
            if self.moments == "prune":
                small = moment.abs().float().flatten().sort().values[int(0.9 * (moment.numel() - 1))]
                moment.masked_fill_(moment.abs() <= small, 0)
            else:
                moment.zero_()
