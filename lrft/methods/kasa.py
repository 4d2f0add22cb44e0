"""KaSA. Wang et al., 2024, arXiv 2412.06071, sections 3.1 to 3.3.

    W - U_r S_r V_r' + s B diag(d) A,    the last r singular triplets of W are left out

What is left out is made of W again wherever the adapter is: it is not saved, as in PEFT, which cuts the base itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters import svd
from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method, Run
from lrft.adapters.peft_lora import LoraType, lora_type
from lrft.adapters.peft_type import Named


@dataclass(frozen=True)
class Kasa(Method):
    """A LoRA with a trained diagonal, on the weight without its smallest singular components."""

    name: ClassVar[str] = "kasa"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2412.06071"
    equation: ClassVar[str] = "W - U_r S_r V_r' + (alpha / r) B diag(d) A; loss + b |d|^2 + g (|B'B - I| + |A A' - I|)"
    parameters: ClassVar[str] = "r (d + k + 1)"
    exports: ClassVar[str] = "PEFT LoRA with kasa_config, or merged model"
    evidence: ClassVar[str] = "logits, gradients, merge and penalty compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as lora"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    init_changes_output: ClassVar[bool] = True
    peft_type: ClassVar[str] = "LORA"

    beta: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the squares of the diagonal in the loss."""
    gamma: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the distances of A and B from orthonormal ones."""

    @classmethod
    def in_peft(cls) -> LoraType:
        tensors = {
            "A": Named("lora_A.weight", "rk"),
            "B": Named("lora_B.weight", "dr"),
            "diagonal": Named("lora_diag", "r"),
        }
        plain = lora_type(KasaAdapter, asks="kasa_config", tensors=tensors)
        return KasaType(**vars(plain))

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Adapter:
        return KasaAdapter(site)

    def wrap(self, adapter: Any, W0: Tensor | None) -> Adapter:
        if W0 is not None:
            with torch.no_grad():
                adapter.left_U, adapter.left_V = left_out(W0, adapter.site.rank)
            adapter.knows_base = True
        return adapter

    def loss(self, run: Run) -> Tensor | None:
        terms = [self.term(adapter) for adapter in run.adapters.values()]
        return torch.stack(terms).sum()

    def term(self, adapter: Any) -> Tensor:
        eye = torch.eye(adapter.site.rank, dtype=adapter.A.dtype, device=adapter.A.device)
        apart = torch.linalg.norm(adapter.B.T @ adapter.B - eye) + torch.linalg.norm(adapter.A @ adapter.A.T - eye)
        return self.beta * adapter.diagonal.square().sum() + self.gamma * apart


class KasaAdapter(Adapter):
    """A (r, k) as LoRA's, B (d, r) zero, diagonal (r,) normal.

    left_U (d, r) and left_V (r, k): what is left out of W is their product. Zero where only the structure was built.
    """

    left_U: Tensor
    left_V: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        d, k, r = site.d, site.k, site.rank
        if r >= min(d, k):
            raise ValueError(f"kasa leaves {r} singular components out, and the weight has {min(d, k)}: lower the rank")
        self.A = nn.Parameter(torch.empty(r, k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(d, r, dtype=site.dtype))
        self.diagonal = nn.Parameter(torch.randn(r, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.knows_base = False
        self.register_buffer("left_U", torch.zeros(d, r, dtype=site.dtype), persistent=False)
        self.register_buffer("left_V", torch.zeros(r, k, dtype=site.dtype), persistent=False)

    def weight(self, W0: Tensor) -> Tensor:
        U, V = (self.left_U, self.left_V) if self.knows_base else left_out(W0, self.site.rank)
        return W0 - U @ V + self.site.scale * (self.B * self.diagonal) @ self.A

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        y = base(x)
        dropped = x if not self.dropout or not self.training else nn.functional.dropout(x, self.dropout)
        thin = linear(self.cast(dropped), self.A) * self.diagonal
        change = self.site.scale * linear(thin, self.B) - linear(linear(self.cast(x), self.left_V), self.left_U)
        return y + change.to(y.dtype)


@torch.no_grad()
def left_out(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """(d, r) and (r, k): the part of W of its r smallest singular values as a product."""
    U, S, V = svd.trailing(W, r)
    return U * S, V.T.contiguous()


@dataclass(frozen=True)
class KasaType(LoraType):
    """The two weights of the loss stand in a dictionary of the configuration."""

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: config["kasa_config"][key] for key in ("beta", "gamma") if key in config["kasa_config"]}

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Any) -> dict[str, Any]:
        return super().config(method, adapters, modules) | {"kasa_config": {"beta": method.beta, "gamma": method.gamma}}
