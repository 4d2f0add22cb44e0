"""NOLA. Koohpayegani et al., 2023, arXiv 2310.02556.

    A = A_0 + sum_i a_i A_i (r, k),    B = sum_i b_i B_i (d, r),    dW = s B A

The A_i and B_i are random, uniform in +-1/sqrt(n), frozen. They are a function of (seed, the layer's name, i, entry),
a hash in integers: the same on every machine and device. So nothing of them is saved or kept: both passes make them
again, one block at a time, and peak memory is A, B and one block. The released code reseeds the global generator in
every forward pass, which also repeats its dropout; here no generator is touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.utils.seeds import seed_of

BLOCK = 2**22  # entries of the basis that exist at one time


@dataclass(frozen=True)
class Nola(Method):
    """Trains only coefficients of random matrices, the same few numbers for a layer of any size and rank."""

    name: ClassVar[str] = "nola"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2310.02556"
    equation: ClassVar[str] = "W + (alpha / r) (sum b_i B_i) (A_0 + sum a_i A_i)"
    parameters: ClassVar[str] = "2 n"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "dense reference of the paper's formula"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "docs/benchmark.md: 10 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    basis: Annotated[int, Field(ge=1, le=65536)] = 512
    """n, the random matrices for each of A and B. 512 as for GPT-2 in the paper; the authors' LLaMA code has 128. Each
    step costs n r (d + k) products per layer, twice."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random matrices, independent of training.seed; saved with the adapter."""

    def alpha(self, rank: int) -> float:
        return float(rank)

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return NolaAdapter(site, self.basis, self.seed)


class NolaAdapter(Delta):
    """a (n,) and b (n,) zero; A_0 uniform in +-1/sqrt(k), Kaiming's rule with a = sqrt(5), from the same hash."""

    def __init__(self, site: Site, n: int, seed: int) -> None:
        super().__init__(site)
        self.a = nn.Parameter(torch.zeros(n, dtype=site.dtype))
        self.b = nn.Parameter(torch.zeros(n, dtype=site.dtype))
        self.keys = [seed_of(seed, site.name, word) % 2**32 for word in ("A0", "A", "B")]

    def factors(self) -> Factors:
        site, (of_start, of_A, of_B) = self.site, self.keys
        first = uniform(0, 1, site.rank * site.k, of_start, like=self.a)[0] / math.sqrt(site.k)
        A = first + Combined.apply(self.a, site.rank * site.k, of_A)
        B = Combined.apply(self.b, site.d * site.rank, of_B)
        return Factors(B.view(site.d, site.rank), A.view(site.rank, site.k), site.scale)

    def delta_weight(self) -> Tensor:
        B, A, s = self.factors()
        return s * B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, s = self.factors()
        return s * nn.functional.linear(nn.functional.linear(x, A), B)


class Combined(torch.autograd.Function):
    """sum_i c_i M_i (size,) for c (n,); the matrices M_i are made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, size: int, key: int) -> Tensor:
        ctx.save_for_backward(c)
        ctx.size, ctx.key = size, key
        total = c.new_zeros(size)
        for first, last in blocks(len(c), size):
            total += plain_product(c[first:last], uniform(first, last, size, key, like=c))
        return total / math.sqrt(len(c))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (c,) = ctx.saved_tensors
        parts = [
            plain_product(uniform(first, last, ctx.size, ctx.key, like=c), slope)
            for first, last in blocks(len(c), ctx.size)
        ]
        return torch.cat(parts) / math.sqrt(len(c)), None, None


def plain_product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    at_once = max(1, BLOCK // size)
    return [(first, min(first + at_once, n)) for first in range(0, n, at_once)]


def uniform(first: int, last: int, size: int, key: int, *, like: Tensor) -> Tensor:
    """Rows `first` to `last` of an endless random matrix (., size), uniform in [-1, 1), in the dtype of `like`."""
    rows = mixed(torch.arange(first, last, device=like.device) + key)
    columns = mixed(torch.arange(size, device=like.device))  # else two rows could be shifted copies of one another
    return (mixed(rows[:, None] + columns) >> 8).to(like.dtype).mul_(2.0**-23).sub_(1)


def mixed(x: Tensor) -> Tensor:
    """The low 32 bits of x, int64 and written to, permuted without visible pattern (C. Wellons, `lowbias32`)."""
    x &= 0xFFFFFFFF
    x ^= x >> 16
    x.mul_(0x7FEB352D).bitwise_and_(0xFFFFFFFF)
    x ^= x >> 15
    x.mul_(0x846CA68B - 2**32).bitwise_and_(0xFFFFFFFF)  # negative: the product stays within 63 bits
    x ^= x >> 16
    return x
