"""Pruning of the base's heads and channels by masks, during a run.

The mask of a unit (`lrft.model.pruning`) lies on the inputs of the layer that reads it: nothing else of the block
depends on what is masked there, so the block without the unit computes the same. `lrft.export.shrink` cuts it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part, Run
from lrft.model import linear
from lrft.model.pruning import READERS, Units, units_of


class Masked(Adapter):
    """`inner` with some of the layer's inputs taken as zero. kept (k,): 1, or 0 where they are."""

    def __init__(self, inner: Adapter) -> None:
        super().__init__(inner.site)
        self.inner = inner
        self.kept = nn.Parameter(torch.ones(inner.site.k, dtype=inner.site.dtype), requires_grad=False)

    def weight(self, W0: Tensor) -> Tensor:
        return self.inner.weight(W0) * self.kept

    def forward(self, x: Tensor, base: Any) -> Tensor:
        out: Tensor = self.inner(x * self.kept.to(x.dtype), base)
        return out


class MaskingPart(Part):
    """Abstract: a part that masks units. Those are pruned whose reader has an adapter, which carries the mask."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """Sees nothing, and raises ValueError for a model that has no units, and for targets without their readers."""
        targeted = {site.name for site in context.sites}
        if not any(units.reader in targeted for units in units_of(context.model)):
            raise ValueError(f"needs {' or '.join(READERS)} among adapter.target_modules: their inputs are masked")
        return {}

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        return Masked(adapter) if adapter.site.name.rpartition(".")[2] in READERS else adapter

    def units(self, run: Run) -> list[Units]:
        """Those that can be masked in this run."""
        if "units" not in self.found:
            self.found["units"] = [units for units in units_of(run.model) if units.reader in run.adapters]
        return self.found["units"]

    @cached_property
    def found(self) -> dict[str, list[Units]]:
        return {}

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """What a run carries from step to step, by the units' name."""
        return {}

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.clear()
        self.memory.update({key: value.clone() for key, value in state.items()})


def masks(adapters: Iterable[Adapter]) -> list[Masked]:
    return [module for adapter in adapters for module in adapter.modules() if isinstance(module, Masked)]


def mask_of(run: Run, units: Units) -> Masked:
    """The one on the reader of `units`."""
    return masks([run.adapters[units.reader]])[0]


def kept(run: Run, units: Units) -> Tensor:
    """(count,) bool: which units are not masked."""
    return mask_of(run, units).kept.reshape(units.count, units.width)[:, 0] > 0


@torch.no_grad()
def keep(run: Run, units: Units, mask: Tensor) -> None:
    """Mask all but the units where `mask` (count,) is true."""
    own = mask_of(run, units).kept
    own.copy_(mask.to(own.device).repeat_interleave(units.width))


def unmasked_weight(run: Run, layer: str) -> Tensor:
    """The weight (d, k) of a linear layer with its adapter, if it has one, and without the mask. Differentiable."""
    module: Any = run.model.get_submodule(layer)
    if layer not in run.adapters:
        return linear.dense(module)
    adapter = run.adapters[layer]
    below = masks([adapter])
    return (below[0].inner if below else adapter).weight(linear.dense(module.base).to(adapter.site.dtype))
