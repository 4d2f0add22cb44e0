"""PEANuT, an update that a small network makes of the weight. Zhong et al., 2024, arXiv 2410.01870; residual blocks and
first values as in PEFT.

    dW = s B h(f(A W)),    h(x): x_0 = x, x_i = f(E_i x_{i-1}) for i = 1 ... n, then f(D_i x) + x_{n-i} for i = 1 ... n

A W has a column for each input, on which the network works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.initial import kaiming
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model import linear as layers

DEEPEST = 8
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class Peanut(Method):
    """The update is made of the weight itself by a small network: of rank r, but aware of what it changes."""

    name: ClassVar[str] = "peanut"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2410.01870"
    equation: ClassVar[str] = "W + s B f(A W), with residual blocks of r x r between A and B where depth is not 0"
    parameters: ClassVar[str] = "2 r d + 2 depth r^2"
    exports: ClassVar[str] = "PEFT PEANUT where all ranks are one, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge and spread of the first values compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA, whose B is the same"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "PEANUT"

    depth: Annotated[int, Field(ge=0, le=8)] = 0
    """Pairs of encoder and decoder between A and B."""
    act_fn: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    """f."""
    scaling: float = 1.0
    """s."""

    @classmethod
    def in_peft(cls) -> PeftType:
        levels = {
            f"{word}_{level}": Named(f"peanut_{word}s.{level}.weight", "rs")
            for word in ("encoder", "decoder")
            for level in range(DEEPEST)
        }
        return PeftType(
            "PEANUT",
            PeanutAdapter,
            {"A": Named("peanut_A.weight", "rd"), "B": Named("peanut_B.weight", "dr"), **levels},
            options={"depth": "depth", "act_fn": "act_fn", "scaling": "scaling"},
        )

    def build(self, site: Site) -> Adapter:
        return PeanutAdapter(site, self.depth, ACTIVATIONS[self.act_fn], self.scaling)


class PeanutAdapter(Adapter):
    """A (r, d), encoder_i and decoder_i (r, r) uniform in +-1/sqrt of their columns; B (d, r) zero."""

    def __init__(self, site: Site, depth: int, f: Callable[[Tensor], Tensor], scaling: float) -> None:
        super().__init__(site)
        self.depth, self.f, self.scaling = depth, f, scaling
        self.A = nn.Parameter(kaiming(site.rank, site.d, site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        for level in range(depth):
            for word in ("encoder", "decoder"):
                self.register_parameter(f"{word}_{level}", nn.Parameter(kaiming(site.rank, site.rank, site.dtype)))

    def hidden(self, W0: Tensor) -> Tensor:
        """(r, k) from W (d, k)."""
        h = self.f(self.A @ W0)
        passed = []
        for level in range(self.depth):
            passed.append(h)
            h = self.f(self.get_parameter(f"encoder_{level}") @ h)
        for level in range(self.depth):
            h = self.f(self.get_parameter(f"decoder_{level}") @ h) + passed.pop()
        return h

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + self.scaling * self.B @ self.hidden(W0)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        y = base(x)
        dropped = functional.dropout(x, self.dropout) if self.dropout and self.training else x
        with torch.autocast(x.device.type, enabled=False):
            hidden = self.hidden(layers.dense(base).to(self.site.dtype))
        return y + self.scaling * linear(linear(self.cast(dropped), hidden), self.B).to(y.dtype)
