"""(IA)^3. Liu et al., 2022, arXiv 2205.05638, section 3.3; which layers scale their inputs as in PEFT.

    W' = diag(l) W,    and W' = W diag(l) for the layers of `inputs_of`, the second of a feed-forward block

Activations are scaled in the paper; here the weight is, which is the same for layers without a bias. (PEFT scales the
bias of a layer too.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.model import linear as layers


@dataclass(frozen=True)
class Ia3(Method):
    """Scales each output of a layer, or each input, by a trained number: the fewest parameters of all."""

    name: ClassVar[str] = "ia3"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2205.05638"
    equation: ClassVar[str] = "diag(l) W, or W diag(l) in layers that scale their inputs"
    parameters: ClassVar[str] = "d, or k; the rank is not used"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 6e-3
    rate_source: ClassVar[str] = "ours: thirty times LoRA's best on a tiny task; the paper has 3e-3 with Adafactor"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)

    inputs_of: tuple[str, ...] = ("down_proj", "fc2", "mlp.c_proj", "wo", "w2", "dense_4h_to_h", "output.dense")
    """Ends of the names of layers whose inputs are scaled."""

    def build(self, site: Site) -> Adapter:
        return Ia3Adapter(site, any(f".{site.name}".endswith(f".{end}") for end in self.inputs_of))


class Ia3Adapter(Adapter):
    """l - 1 (d,) or (k,), zero: near 1 a narrow number format would lose what is learnt."""

    def __init__(self, site: Site, inputs: bool) -> None:
        super().__init__(site)
        self.inputs = inputs
        self.change = nn.Parameter(torch.zeros(site.k if inputs else site.d, dtype=site.dtype))

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + W0 * (self.change if self.inputs else self.change[:, None])

    def forward(self, x: Tensor, base: Any) -> Tensor:
        y = base(x)
        if self.inputs:
            return y + layers.product(base, (self.cast(x) * self.change).to(layers.dtype(base))).to(y.dtype)
        bias = base.bias
        plain = y if bias is None else y - bias
        return y + (plain * self.change).to(y.dtype)
