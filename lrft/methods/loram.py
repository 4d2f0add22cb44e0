"""LoRAM. Zhang et al., 2025, arXiv 2502.13533: train on a pruned base, use the factors on the whole one.

Heads and channels are cut out of the blocks in the middle, as in the released recipe, and the base trains without
them. A and B have the dimensions of the whole layers: rows of B and columns of A that belong to what was cut are zero
from the start, and no gradient reaches them, so that the released code's recovery, which fills in these zeros, has
nothing to do. Evaluation is on the whole base, whose weights wait in the host's memory: an accelerator holds the pruned
ones, and gets the others for one product at a time when the run evaluates.

With `quantize` the paper's QLoRAM: what is left of the blocks is quantised, all of it where nothing is cut, and the
whole base that evaluates and that is merged into stays as it is stored.

The authors cut by LLM-Pruner's estimate and then pretrain the pruned base on a general corpus before anyone trains on
it; here weights are cut by size, or at random as in the paper, and whoever wants that alignment trains it first. A
starts as LoRA's for the whole layer, a little smaller than the released code's for the pruned one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part
from lrft.model.pruned import PrunedLinear
from lrft.model.pruning import cut, drawn, highest, magnitudes, prune, units_of, weight_of


@dataclass(frozen=True)
class Loram(Part):
    """Trains on a base without some of its heads and channels; the adapter is one of the whole base."""

    name: ClassVar[str] = "loram"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2502.13533"
    equation: ClassVar[str] = "trained: P(W) + s P(B A), P without the cut rows and columns; used: W + s B A"
    evidence: ClassVar[str] = "outputs and gradients against a smaller plain model, zeros against the released recovery"
    slots: ClassVar[tuple[str, ...]] = ("base",)
    requires: ClassVar[tuple[str, ...]] = ("pair", "delta")
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "forward")
    no_reference: ClassVar[str] = "trains on a pruned base and answers on the whole one"
    quantization_conflict: ClassVar[str] = (
        "cuts rows and columns out of the base's weights, which are codes; its own {quantize: nf4} quantises the rest"
    )
    quantizes: ClassVar[tuple[str, ...]] = ("quantize", "nf4", "fp4", "int8", "fp8")

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the heads, and of the channels, that is cut out of a block. The released recipe for 70B: 0.85."""
    first: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the blocks, the first ones, that stay whole. The released recipe: 4 of 80."""
    last: Annotated[float, Field(ge=0, le=1)] = 0.025
    """The same of the last ones. The released recipe: 2 of 80."""
    select: Literal["magnitude", "random"] = "magnitude"
    """What is cut: that with the least sum of squares of its weights, or anything."""
    pruning_seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 0
    """Seed of a random choice."""
    quantize: Literal["none", "nf4", "fp4", "int8", "fp8"] = "none"
    """Quantisation of what is left of the blocks, in training; the whole base is not quantised. The paper's: nf4."""

    def prune_base(self, model: Any) -> None:
        units_of_all = units_of(model)
        blocks = 1 + max((units.depth for units in units_of_all), default=-1)
        inside = range(int(self.first * blocks), blocks - int(self.last * blocks))
        for units in units_of_all:
            gone = cut(units.count, self.ratio) if units.depth in inside else 0
            kept = None
            if gone:
                random = self.select == "random"
                scores = drawn(units, self.pruning_seed) if random else magnitudes(units, weight_of(model))
                kept = highest(scores, units.count - gone)
            if gone or self.quantize != "none":
                prune(model, units, kept, self.quantize)

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site that reads what was cut the "columns" (n,) of it that are left."""
        layers = {site.name: context.model.get_submodule(site.name) for site in context.sites}
        return {
            name: {"columns": layer.columns}
            for name, layer in layers.items()
            if isinstance(layer, PrunedLinear) and layer.columns is not None
        }

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Any) -> None:
        left = torch.zeros(adapter.site.k, dtype=torch.bool)
        left[seen["columns"].cpu()] = True
        for name, values in adapter.named_parameters():
            if name.rpartition(".")[2] == "A":
                values[:, ~left.to(values.device)] = 0
