"""LoRA-GGPO. arXiv 2502.14538, version 1. A reconstruction after a third party's code: the authors' is not available.

    in training  W + s B A + E,  row i of E from N(0, c_i^2 / d),  c_i = sigma |(W + s B A)_i| + beta |G_i|^2

with G = s (B a + b A) for the gradients a, b of A and B in the step before: a stand-in for the weight's. E is drawn
anew for each pass and is a constant to the gradient; in evaluation there is none. The third party estimates the norms
of the rows by some of them; here they are exact, from products with thin matrices. E is as large as the weight, and is
made twice for each pass. Version 2 of the paper (LoRA-MGPO) perturbs along the optimiser's momentum and is not this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Factors, PeftForm
from lrft.adapters.part import Part, Run
from lrft.methods.norm_loss import row_squares
from lrft.methods.nuclear_norm import factors_of
from lrft.model.linear import dense


@dataclass(frozen=True)
class LoraGgpo(Part):
    """Adds noise to the adapted weight in training, by row as large as its norm and its gradient say."""

    name: ClassVar[str] = "lora-ggpo"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2502.14538"
    equation: ClassVar[str] = (
        "W + dW + E in training, E_i from N(0, c_i^2 / d), c_i = sigma |(W + dW)_i| + beta |G_i|^2"
    )
    evidence: ClassVar[str] = "reconstruction based on third-party code"
    slots: ClassVar[tuple[str, ...]] = ("forward",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)

    sigma: Annotated[float, Field(ge=0)] = 0.03
    """Coefficient of the row norms of the weight."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Coefficient of the squared row norms of the gradient."""

    @cached_property
    def slopes(self) -> dict[str, Tensor]:
        """Squared norms (d,) of the rows of the last step's gradient, by site."""
        return {}

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        return Noisy(adapter)

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        layer: Any
        for name, adapter in run.adapters.items():
            layer = run.model.get_submodule(name)
            rows = row_squares(dense(layer.base).to(adapter.site.dtype), factors_of(adapter)).clamp_min(0).sqrt()
            sizes = self.sigma * rows + self.beta * self.slopes.get(name, torch.zeros_like(rows)).to(rows)
            for module in adapter.modules():
                if isinstance(module, Noisy):
                    module.sizes = sizes / math.sqrt(adapter.site.d)

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for name, adapter in run.adapters.items():
            A, B = (adapter.tensors()[word] for word in ("A", "B"))
            if A.grad is not None and B.grad is not None:
                both = Factors(torch.cat([B, B.grad], 1), torch.cat([A.grad, A]), adapter.site.scale)
                self.slopes[name] = row_squares(None, both)

    def state(self) -> dict[str, Tensor]:
        return dict(self.slopes)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.slopes.update({name: tensor.clone() for name, tensor in state.items()})


class Noisy(Adapter):
    """`inner`, and noise in training. sizes (d,) are those of its rows, None before the first step."""

    def __init__(self, inner: Adapter) -> None:
        super().__init__(inner.site)
        self.inner = inner
        self.sizes: Tensor | None = None

    def weight(self, W0: Tensor) -> Tensor:
        return self.inner.weight(W0)

    def peft(self) -> PeftForm | None:
        return self.inner.peft()

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        y: Tensor = self.inner(x, base)
        if not self.training or self.sizes is None:
            return y
        # From the global generator: recomputation restores it.
        seed = int(torch.randint(2**62, ()))
        return y + Noise.apply(x, self.sizes, seed).to(y.dtype)


class Noise(torch.autograd.Function):
    """E x for x (..., k), E (d, k) made from `seed` in both passes and kept in none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Tensor, seed: int) -> Tensor:
        ctx.made_of = sizes, seed, x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, noise(x, *ctx.made_of))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return slope @ noise(slope, *ctx.made_of), None, None


def noise(like: Tensor, sizes: Tensor, seed: int, k: int) -> Tensor:
    """E (d, k) in the dtype of `like`."""
    generator = torch.Generator(like.device).manual_seed(seed)
    drawn = torch.randn(len(sizes), k, generator=generator, dtype=torch.float32, device=like.device)
    return (sizes[:, None] * drawn).to(like.dtype)
