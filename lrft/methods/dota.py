"""DoTA. Hu et al., 2024, arXiv 2412.20891: the weight's own matrix product operator, cut to rank r, is trained.

W (d, k) with d = i_1 ... i_n and k = j_1 ... j_n is a chain of cores T_m (R_{m-1}, i_m, j_m, R_m), R_0 = R_n = 1; inner
bonds are cut to the rank. It starts at T_0 from n - 1 decompositions of W (TT-SVD). W stays, and the update is counted
from there without cancellation, as one chain with bonds of 2 R: the sum over m of T ... T (T - T_0)_m T_0 ... T_0.

No code is published: the number of cores and the factors, as even as they can be, are a reconstruction. A side that is
a prime number stays whole in one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters import svd
from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class Dota(Method):
    """Trains a chain of small tensors that starts from the weight's own decomposition."""

    name: ClassVar[str] = "dota"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2412.20891"
    equation: ClassVar[str] = "W + MPO(T) - MPO(T_0), T_0 of W by TT-SVD with bonds of r"
    parameters: ClassVar[str] = "sum over cores of R_{m-1} i_m j_m R_m, R at most r"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = (
        "dense reference of the abstract's formula; number and sizes of the cores are a reconstruction"
    )
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA: the best of both on a tiny task is the same"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    cores: Annotated[int, Field(ge=2, le=8)] = 3
    """n, number of factors of each weight dimension."""

    def build(self, site: Site) -> Delta:
        return DotaAdapter(site, self.cores)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        cores = adapter.cores("T")
        n, sides = len(cores), [core.shape[1:3] for core in cores]
        paired = W0.reshape([i for i, _ in sides] + [j for _, j in sides])
        rest = paired.permute([axis for m in range(n) for axis in (m, n + m)])
        for core in cores[:-1]:
            U, S, V = svd.exact(rest.reshape(core.shape[:3].numel(), -1), core.shape[3])
            core.copy_(U.view(core.shape))
            rest = S[:, None] * V.T
        cores[-1].copy_(rest.view(cores[-1].shape))
        for core, begun in zip(cores, adapter.cores("S"), strict=True):
            begun.copy_(core)


class DotaAdapter(Delta):
    """T1 to Tn trained, S1 to Sn where they start, set from the weight."""

    def __init__(self, site: Site, n: int) -> None:
        super().__init__(site)
        self.n = n
        for word in ("T", "S"):
            for m, shape in enumerate(shapes(site.d, site.k, n, site.rank), start=1):
                core = nn.Parameter(torch.zeros(shape, dtype=site.dtype), requires_grad=word == "T")
                self.register_parameter(f"{word}{m}", core)

    def cores(self, word: str) -> list[Tensor]:
        return [getattr(self, f"{word}{m + 1}") for m in range(self.n)]

    def change(self) -> list[Tensor]:
        """The cores of MPO(T) - MPO(S)."""
        made = []
        for m, (T, S) in enumerate(zip(self.cores("T"), self.cores("S"), strict=True)):
            if m == self.n - 1:
                made.append(torch.cat([T - S, S]))
            else:
                above, below = torch.cat([T, T - S], dim=3), torch.cat([torch.zeros_like(S), S], dim=3)
                made.append(torch.cat([above, below]) if m else above)
        return made

    def delta_weight(self) -> Tensor:
        return dense(self.change())

    def sums_from(self) -> float:
        """By multiplications: dW x and its gradients are contracted four times; dW is made four times at about the rank
        for each of its numbers, and then costs one product."""
        d, k = self.site.d, self.site.k
        with torch.no_grad():
            saved = 4 * min(cost(self.change(), k), d * k) - d * k
        return 4 * self.site.rank * d * k / saved if saved > 0 else math.inf

    def delta(self, x: Tensor) -> Tensor:
        cores = self.change()
        if cost(cores, self.site.k) < self.site.d * self.site.k:
            return contracted(cores, x)
        with torch.autocast(x.device.type, enabled=False):
            dW = dense(cores)
        return linear(x, dW)


def dense(cores: list[Tensor]) -> Tensor:
    """The matrix (d, k) that the cores stand for."""
    whole, *rest = cores
    for core in rest:  # (1, i, j, R) with (R, i', j', R') to (1, i i', j j', R')
        joined = torch.tensordot(whole, core, dims=1).permute(0, 1, 3, 2, 4, 5)
        whole = joined.flatten(1, 2).flatten(2, 3)
    return whole[0, :, :, 0]


def cost(cores: list[Tensor], k: int) -> int:
    """Products for each row of an input (., k) that goes through core after core."""
    total, done, left = 0, 1, k
    for before, i, j, after in (core.shape for core in cores):
        total += done * left * before * i * after
        done, left = done * i, left // j
    return total


def contracted(cores: list[Tensor], x: Tensor) -> Tensor:
    """dense(cores) x for x (..., k): t is (rows, outputs made, bond, inputs left)."""
    t = x.reshape(-1, 1, 1, x.shape[-1])
    for core in cores:
        t = t.unflatten(3, (core.shape[2], -1))
        t = torch.einsum("nobjl,bijr->noirl", t, core).flatten(1, 2)
    return t.reshape(*x.shape[:-1], -1)


def shapes(d: int, k: int, n: int, rank: int) -> Iterator[tuple[int, int, int, int]]:
    """Shapes of the cores. A bond is no larger than what lies on either side of it."""
    pairs = list(zip(evenly(d, n), reversed(evenly(k, n)), strict=True))
    before = 1
    for m, (i, j) in enumerate(pairs):
        after = min(rank, before * i * j, math.prod(a * b for a, b in pairs[m + 1 :]))
        yield before, i, j, after
        before = after


def evenly(size: int, n: int) -> list[int]:
    """`size` as a product of n factors: the largest that is no larger than the n-th root, then so on with the rest."""
    if n == 1:
        return [size]
    root = int(size ** (1 / n) + 1e-9)
    first = max(f for f in range(1, root + 1) if size % f == 0)
    return [first, *evenly(size // first, n - 1)]
