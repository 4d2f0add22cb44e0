"""Spectra of a weight and of its update, and what is read off them. Everything is computed in float64.

Intruder dimensions are those of arXiv 2410.21228: among the leading left singular vectors of the changed weight, those
that are near none of the base's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.adapters.adapter import Factors

TOP = 10
EPSILON = 0.5
USED = 0.01  # of the largest singular value: an update's smaller ones are not counted as rank
NOTHING = 1e-7  # of the largest singular value: below it a Gram matrix in float64 cannot tell a direction from none


@dataclass(frozen=True)
class Decomposition:
    """Left singular vectors (d, n) and singular values of a weight, descending.

    Complete: all min(d, k) values, and the vectors of those that are not zero: where a weight does nothing it has no
    direction of its own. Else the leading values, and the vectors of those of them whose vectors are known exactly.
    """

    vectors: Tensor
    values: Tensor
    complete: bool


def decomposed(W: Tensor) -> Decomposition:
    """Complete, of W (d, k). From the Gram matrix of the smaller side, a fifth of the work of a full SVD."""
    W = W.double()
    d, k = W.shape
    squares, vectors = torch.linalg.eigh(W @ W.T if d <= k else W.T @ W)
    values = squares.flip(0).clamp_min(0).sqrt()
    kept = int((values > NOTHING * values[0]).sum())
    vectors = vectors.flip(1)[:, :kept]
    return Decomposition(vectors if d <= k else torch.nn.functional.normalize(W @ vectors, dim=0), values, True)


def singular_values(W: Tensor) -> Tensor:
    """All min(d, k) singular values of W (d, k), descending."""
    W = W.double()
    squares: Tensor = torch.linalg.eigvalsh(W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W)
    return squares.flip(0).clamp_min(0).sqrt()


def values_of_product(factors: Factors) -> Tensor:
    """The singular values of scale B A, descending, from the thin factors: no (d, k) matrix is made."""
    left = torch.linalg.qr(factors.B.double()).R
    right = torch.linalg.qr(factors.A.double().T).R
    return abs(factors.scale) * torch.linalg.svdvals(left @ right.T)


def norm(values: Tensor) -> float:
    """The Frobenius norm of a matrix with these singular values."""
    return torch.linalg.vector_norm(values).item()


def stable_rank(norm: float, largest: float) -> float:
    """||W||_F^2 / ||W||_2^2, of the Frobenius norm and the largest singular value; 0 for a matrix of zeros."""
    return (norm / largest) ** 2 if largest > 0 else 0.0


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (Roy, Vetterli, 2007); 0 for a matrix of zeros."""
    if not values[0] > 0:
        return 0.0
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def used_rank(values: Tensor, noise: float = 0.0) -> int:
    """How many singular values are above USED of the largest, and above `noise`."""
    return int((values > max(USED * values[0].item(), noise)).sum())


def cosines(base: Tensor, changed: Tensor) -> Tensor:
    """Largest |cosine| of each column of `changed` (d, m) with a column of `base` (d, n): (m,)."""
    if not base.shape[1]:
        return changed.new_zeros(changed.shape[1])
    return (base.T @ changed).abs().amax(dim=0)
