"""HRA, Householder reflection adaptation. Yuan et al., 2024, arXiv 2405.17484.

    W' = W H,    H = H_1 H_2 ... H_r,    H_i = I - 2 u_i u_i' / |u_i|^2,    u_i = column i of U (k, r)

Reflections are hard, started in equal pairs and on the input side, as in PEFT and the authors' code for language
understanding; their code for LLaMA softens them and acts on the outputs. Without the penalty on U (lambda = 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model import fused_linear
from lrft.model.linear import dtype, product


@dataclass(frozen=True)
class Hra(Method):
    """Turns the weight by a chain of reflections: its singular values stay as they are."""

    name: ClassVar[str] = "hra"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2405.17484"
    equation: ClassVar[str] = "W (I - 2 u_1 u_1') ... (I - 2 u_r u_r'), u_i normalised"
    parameters: ClassVar[str] = "r k"
    exports: ClassVar[str] = "PEFT HRA where all ranks are one, or merged model"
    evidence: ClassVar[str] = "forward, merge, gradients and init compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: 3 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "HRA"
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)

    @classmethod
    def in_peft(cls) -> PeftType:
        return PeftType("HRA", HraAdapter, {"U": Named("hra_u", "kr")}, fixed={"apply_GS": (False,)})

    def build(self, site: Site) -> Adapter:
        if site.rank % 2:
            raise ValueError(
                f"hra's reflections cancel in pairs at the start: rank {site.rank} is odd, take {site.rank + 1}"
            )
        return HraAdapter(site)


class HraAdapter(Adapter):
    """U (k, r): r / 2 columns by Kaiming's rule with a = sqrt(5), each twice. Two equal reflections are none."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        half = torch.empty(site.k, site.rank // 2, dtype=site.dtype)
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.U = nn.Parameter(half.repeat_interleave(2, dim=1))

    def weight(self, W0: Tensor) -> Tensor:
        W = W0
        for u in (self.U / self.U.norm(dim=0)).T:
            W = W - 2 * torch.outer(W @ u, u)
        return W

    def forward(self, x: Tensor, base: Any) -> Tensor:
        """W' x as W x + B A x. (W times the turned x, rounded to bfloat16, would lose a turn that is small.)"""
        with torch.autocast(x.device.type, enabled=False):
            V, M = self.chain()
            B = -product(base, V.T.to(dtype(base))).T.to(M.dtype) @ M
        if fused_linear.is_plain(base) and (
            torch.is_autocast_enabled(x.device.type) or x.dtype == base.weight.dtype == B.dtype
        ):
            return fused_linear.linear_plus_pair(x, x, *fused_linear.parts_of(base), B, V.T, 1.0)
        y = base(x)
        return y + linear(linear(self.cast(x), V.T), B).to(y.dtype)

    def chain(self) -> tuple[Tensor, Tensor]:
        """V (k, r), M (r, r) with H = I - V M V'.

        The compact WY form is H = I - U T U' with the inverse of T = the upper triangle of U'U, half its diagonal
        (Joffrain et al., 2006). For nearly equal pairs it is a difference of large terms; with the second column of
        each pair replaced by its difference from the first, no large terms are left: M takes the change into T.
        """
        U = self.U / self.U.norm(dim=0)
        r = U.shape[1]
        eye = torch.eye(r, dtype=U.dtype, device=U.device)
        T = torch.linalg.solve_triangular((U.T @ U).triu(1) + eye / 2, eye, upper=True)
        first, second = U.unflatten(1, (r // 2, 2)).unbind(2)
        V = torch.stack([first, second - first], dim=2).flatten(1)
        # U = V back: blocks [[1, 1], [0, 1]] along the diagonal.
        even = (torch.arange(r - 1, device=U.device) % 2 == 0).to(U.dtype)
        back = eye + torch.diag(even, 1)
        return V, back @ T @ back.T
