"""The leading singular values and vectors of a large weight: as exact as a full decomposition, for a share of its work.

Block Lanczos on the Gram operator of the smaller side, with full orthogonalisation and a random first block, always the
same. What is returned has been checked by its residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.inspection.spectra import Decomposition

BLOCK = 16
LARGE = 1024  # smaller side, up to which a full decomposition is as fast
SHARE = 4  # no more than this part of the smaller side is spanned: a full decomposition would be as fast
VALUE = 1e-5  # residual over the eigenvalue of the Gram operator: the value's own error is about its square
VECTOR = 1e-7  # residual over the distance to the next eigenvalue: it bounds the sine of a vector's error
SAME = 1e-6  # relative distance of eigenvalues that count as one
USED_UP = 1e-13  # of the largest eigenvalue


def leading(W: Tensor, count: int, vectors: int) -> Decomposition | None:
    """The first `count` singular values of W (d, k), float64, and the left vectors that are known to VECTOR.

    The first `vectors` are among these. None where that is no less work than a full decomposition, or where more equal
    values than a block has rows show that others like them may have been missed.
    """
    n = min(W.shape)
    most = n // SHARE
    if n <= LARGE or most < 2 * count:
        return None
    tall = W.shape[0] > W.shape[1]
    basis = W.new_empty(most + BLOCK, n)  # of rows, with which thin products are faster than with columns
    seen = W.new_zeros(most, most)  # the Gram operator in this basis
    start = torch.randn(BLOCK, n, generator=torch.Generator().manual_seed(0), dtype=W.dtype)
    block = orthonormal(start.to(W.device))[0]
    width, look = 0, 2 * count
    while width + BLOCK <= most:
        first, width = width, width + BLOCK
        basis[first:width] = block
        known = basis[:width]
        image = (block @ W.T) @ W if tall else (block @ W) @ W.T
        along = image @ known.T
        image -= along @ known
        image -= (image @ known.T) @ known
        seen[first:width, :width], seen[:width, first:width] = along, along.T
        block, beyond = orthonormal(image)
        if beyond.diagonal().abs().min() <= USED_UP * seen.diagonal().max():
            return None
        if width < look and width + BLOCK <= most:
            continue
        look = width + width // 8
        squares, turned = torch.linalg.eigh(seen[:width, :width])
        squares, turned = squares.flip(0)[: count + 1], turned.flip(1)[:, :count]
        residuals = torch.linalg.vector_norm(beyond @ turned[-BLOCK:], dim=0)
        steps = -squares.diff()
        exact = residuals <= VECTOR * torch.minimum(steps, torch.cat([steps[:1], steps[:-1]]))
        squares = squares[:count]
        if (residuals <= VALUE * squares).all() and exact[:vectors].all():
            if (squares[: 1 - BLOCK] - squares[BLOCK - 1 :] <= SAME * squares[BLOCK - 1 :]).any():
                return None
            found = turned[:, exact].T @ known
            left = torch.nn.functional.normalize(found @ W.T, dim=1) if tall else found
            return Decomposition(left.T, squares.sqrt(), complete=False)
    return None


def orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the rows, as rows, and R (BLOCK, BLOCK) with rows = R.T @ basis."""
    Q, R = torch.linalg.qr(rows.T)
    return Q.T.contiguous(), R
