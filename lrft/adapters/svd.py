"""Singular vectors of a weight for SVD-based init: leading or trailing.

Every function takes W (d, k) in float32 or float64 on any device and returns (U, S, V) of the same dtype and device,
with W ~ U diag(S) V.T: U (d, r) and V (k, r) have orthonormal columns, S (r,) descends, and the largest entry of each
column of V is positive. All raise ValueError when r is larger than min(d, k).

`leading` is randomized: Halko, Martinsson, Tropp, 2011 (arXiv 0909.4061), with the block Krylov basis of Musco, Musco,
2015 (arXiv 1504.05477, algorithm 2) in place of power iteration. A weight's spectrum is nearly flat, the worst case of
both: to miss a share eps of the energy, power iteration needs about 1/eps iterations, Krylov's basis 1/sqrt(eps).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Over the largest: a smaller singular value's vectors are blurred by squaring, to a float32's rounding and more.
SMALLEST = 1e-4
Triplets = tuple[Tensor, Tensor, Tensor]


def exact(W: Tensor, r: int) -> Triplets:
    """The r leading singular triplets by the full decomposition."""
    refuse_beyond(W, r)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return signed(U[:, :r], S[:r], Vh[:r].T)


def squares(W: Tensor) -> Tensor:
    """The squared singular values of W in float64, ascending: of the smaller Gram matrix, without any vectors.

    Squaring in float64 keeps of float32 what its own decomposition would; of float64 it would lose half.
    """
    if W.dtype == torch.float64:
        return torch.linalg.svdvals(W).square().flip(0)
    wide = (W if len(W) <= W.shape[1] else W.T).double()
    return torch.linalg.eigvalsh(wide @ wide.T).clamp_min(0)


def at(W: Tensor, places: Tensor) -> Triplets:
    """The singular triplets at `places` (r,), 0 the first: by the eigenvectors of the smaller Gram matrix in float64.

    Float64 weights, and those of which a chosen one is too small to be told from rounding, are decomposed in full.
    """
    d, k = W.shape
    if d > k:
        V, S, U = at(W.T, places)
        return signed(U, S, V)
    if W.dtype != torch.float64:
        wide = W.double()
        values, vectors = torch.linalg.eigh(wide @ wide.T)
        U = vectors[:, d - 1 - places]
        image = U.T @ wide
        S = image.norm(dim=1)
        if S.min() > SMALLEST * values[-1].clamp_min(0).sqrt():
            return signed(*(part.to(W.dtype) for part in (U, S, (image / S[:, None]).T)))
    U, S, V = exact(W, d)
    return U[:, places], S[places], V[:, places]


def trailing(W: Tensor, r: int) -> Triplets:
    """The r smallest of the min(d, k) singular triplets, by the full decomposition: no cheaper way finds them."""
    refuse_beyond(W, r)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    first = len(S) - r
    return signed(U[:, first:], S[first:], Vh[first:].T)


def leading(W: Tensor, r: int, *, iterations: int = 6, oversample: int = 8) -> Triplets:
    """Nearly the r leading singular triplets: ||U.T W||^2 is within 2 % of the largest possible.

    That holds for the defaults and the flattest of spectra, Gaussian up to 4096 x 4096; real layers are within 0.5 %.
    The basis has (1 + iterations) (r + oversample) vectors. Where that comes to half of the smaller side, the whole
    space costs no more and is taken. Draws from the global generator of W's device: the caller seeds.
    """
    refuse_beyond(W, r)
    d, k = W.shape
    if d > k:  # the basis lies in the smaller space
        V, S, U = leading(W.T, r, iterations=iterations, oversample=oversample)
        return signed(U, S, V)
    width = r + oversample
    if 2 * (1 + iterations) * width >= d:
        return largest(W, r)
    # Vectors are rows here: thin times large is the faster of the two products.
    blocks = [orthonormal(torch.randn(width, k, dtype=W.dtype, device=W.device) @ W.T)]
    for _ in range(iterations):
        blocks.append(orthonormal(blocks[-1] @ W @ W.T))
    basis = orthonormal(torch.cat(blocks))
    U, S, V = largest(basis @ W, r)
    return signed(basis.T @ U, S, V)


def largest(image: Tensor, r: int) -> Triplets:
    """The r leading singular triplets of `image` (m, k): U (m, r), S (r,), V (k, r)."""
    # The eigenvectors of the small Gram matrix choose the directions: several times faster than a decomposition of
    # `image`. Squaring blurs only directions whose singular value is below sqrt(rounding) of the largest.
    chosen = torch.linalg.eigh(image @ image.T).eigenvectors[:, len(image) - r :]
    # What is seen of W from the chosen ones is decomposed as it is: U and V are orthonormal to rounding.
    Q, R = torch.linalg.qr((chosen.T @ image).T)
    U, S, Vh = torch.linalg.svd(R.T)
    return signed(chosen @ U, S, Q @ Vh.T)


def signed(U: Tensor, S: Tensor, V: Tensor) -> Triplets:
    """A pair of singular vectors has no sign of its own, and rounding may choose either: the largest of v is positive.

    Else two processes, or a run and its repetition, could go different ways.
    """
    sign = V.gather(0, V.abs().argmax(dim=0, keepdim=True)).sign()
    sign = torch.where(sign == 0, torch.ones_like(sign), sign)
    return U * sign, S, V * sign


def orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows, completed where these are dependent."""
    return torch.linalg.qr(rows.T).Q.T


def refuse_beyond(W: Tensor, r: int) -> None:
    if r > min(W.shape):
        raise ValueError(f"rank {r} is larger than the layer's smaller side, {min(W.shape)}")
