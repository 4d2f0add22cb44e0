"""LoftQ. Li et al., 2023, arXiv 2310.08659, algorithm 1 with one step of its alternation.

    Q = q(W),    s B0 A0 = the part of W - Q of rank r,    adapted: Q + s B A

Further steps of the paper would quantise W - s B0 A0 in the place of W, and so change the base's codes. Here they stay
those of the base, as in PEFT's `replace_lora_weights_loftq`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part
from lrft.adapters.updates import thin
from lrft.model.originals import Originals
from lrft.model.quantized import QuantizedLinear


@dataclass(frozen=True)
class Loftq(Part):
    """Starts A and B from what the quantisation of the base has rounded away."""

    name: ClassVar[str] = "loftq"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2310.08659"
    equation: ClassVar[str] = "s B0 A0 = (W - Q)_r, Q = q(W); Q + s B A"
    exports: ClassVar[str] = "PEFT LoRA on the quantised base, or merged with the dequantised one"
    evidence: ClassVar[str] = "init compared with the decomposition of PEFT 0.21's replace_lora_weights_loftq"
    learning_rate: ClassVar[float] = 3e-4
    rate_source: ClassVar[str] = "the authors' scripts for LLaMA-2 (github.com/yxli2123/LoftQ)"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    init_changes_output: ClassVar[bool] = True
    keeps_dequantized: ClassVar[str] = (
        "loftq corrects the rounding of the quantised base, which the stored one does not have: lrft merge --into "
        "dequantized merges into what was trained on"
    )

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site of a quantised layer the "B" (d, r) and "A" (r, k) with B A nearest to W - Q."""
        quantised = [site for site in context.sites if is_quantised(context.model, site.name)]
        if not quantised:
            return {}
        originals = Originals(context.model, context.folder)
        found = {}
        for site in quantised:
            Q = context.weight(site)
            W = originals.weight(site.name).to(Q)
            B, A, _ = thin(W - Q, site.rank, site.name)
            found[site.name] = {"B": B, "A": A}
        agreed: CalibrationResult = context.agree(found)
        return agreed

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Any) -> None:
        adapter.A.copy_(seen["A"])
        adapter.B.copy_(seen["B"] / adapter.site.scale)

    def base_advice(self, model: nn.Module) -> list[str]:
        if any(isinstance(module, QuantizedLinear) for module in model.modules()):
            return []
        return ["loftq: no layer of this base is quantised, so it starts as without it; set model.quantization: nf4"]


def is_quantised(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), QuantizedLinear)
