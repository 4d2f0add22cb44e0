"""(IA)^3. Liu et al., 2022, arXiv 2205.05638, section 3.3; which layers scale their inputs as in PEFT.

    W' = diag(l) W,    and W' = W diag(l) for the layers of `inputs_of`, the second of a feed-forward block

Activations are scaled in the paper; here the weight is, which is the same for layers without a bias. (PEFT scales the
bias of a layer too.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model import linear as layers


@dataclass(frozen=True)
class Ia3(Method):
    """Scales each output of a layer, or each input, by a trained number: the fewest parameters of all."""

    name: ClassVar[str] = "ia3"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2205.05638"
    equation: ClassVar[str] = "diag(l) W, or W diag(l) in layers that scale their inputs"
    parameters: ClassVar[str] = "d, or k; the rank is not used"
    exports: ClassVar[str] = "PEFT IA3 where layers have no bias, or merged model"
    evidence: ClassVar[str] = "forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 6e-3
    rate_source: ClassVar[str] = "ours: thirty times LoRA's best on a tiny task; the paper has 3e-3 with Adafactor"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "IA3"
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)

    inputs_of: tuple[str, ...] = ("down_proj", "fc2", "mlp.c_proj", "wo", "w2", "dense_4h_to_h", "output.dense")
    """Ends of the names of layers whose inputs are scaled."""

    @classmethod
    def in_peft(cls) -> Ia3Type:
        return Ia3Type(
            "IA3",
            Ia3Adapter,
            {"change": Named("ia3_l", "ab")},
            rank="",
            training=("init_ia3_weights",),
            conv1d=True,
            scales_bias=True,
        )

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


@dataclass(frozen=True)
class Ia3Type(PeftType):
    """PEFT keeps l itself, as a column (d, 1) or, for inputs, as a row (1, k)."""

    def written(self, adapter: Any) -> dict[str, Tensor]:
        scale = adapter.change + 1
        return {"ia3_l": scale[None] if adapter.inputs else scale[:, None]}

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        kinds: dict[str, set[bool]] = {module: set() for module in modules}
        for name, adapter in adapters.items():
            for module in modules:
                if f".{name}".endswith(f".{module}"):
                    kinds[module].add(adapter.inputs)
        if mixed := [module for module, found in kinds.items() if len(found) > 1]:
            raise ValueError(f"PEFT has one word, {mixed[0]}, for layers that scale inputs and others that do not")
        inputs = [module for module, found in kinds.items() if True in found]
        return super().config(method, adapters, modules) | {"feedforward_modules": inputs}

    def known(self) -> set[str]:
        return super().known() | {"feedforward_modules"}

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The layers that scale their inputs are those with a row."""
        return [(method, {"inputs_of": tuple(name for name, own in found.items() if own["change"].shape[0] == 1)})]

    def site(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], depth: int | None) -> Site:
        rows, columns = tensors["change"].shape
        d, k = (0, columns) if rows == 1 else (rows, 0)
        return Site(name, d, k, 1, 1.0, depth)

    def read(self, tensors: Mapping[str, Tensor], site: Site) -> dict[str, Tensor]:
        return {"change": tensors["change"].flatten() - 1}
