"""How near a direction comes to any left singular vector of the base, without decomposing the base as a whole.

The cosines with the base's leading vectors are known. Of what lies outside these, z, some Lanczos steps with W W^T give
a Gauss rule of z's spectral measure, whose atoms are the squared cosines with the other vectors. By the inequalities of
Chebyshev, Markov and Stieltjes no atom is larger than two neighbouring weights of the rule together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.inspection.spectra import NOTHING, Decomposition, cosines, decomposed

LOOKS = (16, 32, 64, 128)  # Lanczos steps after which the bound is looked at; more cost as much as a decomposition
NULL = 1e-3 * NOTHING  # image of a direction, over the largest singular value, of which W makes nothing


def nearest(W: Tensor, known: Decomposition, directions: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Bounds, lower and upper, of each `directions` column's (d, t) largest |cosine| with any left vector of W.

    The two are equal, or else on the same side of epsilon. What cannot be told so takes a full decomposition of W.
    """
    low = cosines(known.vectors, directions)
    if known.complete:
        return low, low
    rest = (directions - known.vectors @ (known.vectors.T @ directions)).T
    high = torch.maximum(low, torch.linalg.vector_norm(rest, dim=1))
    open_ = undecided(low, high, epsilon)
    if open_.any():
        high[open_] = torch.maximum(low[open_], bounds(W, known.values[0].item(), rest[open_], low[open_], epsilon))
    if undecided(low, high, epsilon).any():
        low = high = cosines(decomposed(W).vectors, directions)
    return low, high


def undecided(low: Tensor, high: Tensor, epsilon: float) -> Tensor:
    return (low < high) & (low < epsilon) & (high >= epsilon)


def bounds(W: Tensor, largest: float, rest: Tensor, low: Tensor, epsilon: float) -> Tensor:
    """No |<z, u>| with a left singular vector u of W is larger; of each row z of `rest` (t, d). May be above 1.

    largest   singular value of W
    Stops when each bound is at most `low` (t,) or below epsilon.
    """
    lengths = torch.linalg.vector_norm(rest, dim=1)
    count, d = rest.shape
    basis = rest.new_empty(count, LOOKS[-1] + 1, d)
    basis[:, 0] = rest / lengths[:, None]
    T = rest.new_zeros(count, LOOKS[-1] + 1, LOOKS[-1] + 1)
    found = lengths
    for step in range(1, LOOKS[-1] + 1):
        last, known = basis[:, step - 1], basis[:, :step]
        image = (last @ W) @ W.T
        T[:, step - 1, step - 1] = (last * image).sum(dim=1)
        for _ in range(2):
            along = torch.einsum("tsd,td->ts", known, image)
            image -= torch.einsum("ts,tsd->td", along, known)
        beyond = torch.linalg.vector_norm(image, dim=1)
        if step in LOOKS:
            found = bounds_by(T[:, :step, :step], known, W, largest) * lengths
            if not undecided(low, torch.maximum(low, found), epsilon).any():
                break
        if (beyond <= NULL**2 * largest**2).any():
            break
        T[:, step - 1, step] = T[:, step, step - 1] = beyond
        basis[:, step] = image / beyond[:, None]
    return found


def bounds_by(T: Tensor, basis: Tensor, W: Tensor, largest: float) -> Tensor:
    """Bounds for unit vectors z (t, d), from T (t, s, s) and basis (t, s, d) of s Lanczos steps from each."""
    vectors = torch.linalg.eigh(T).eigenvectors
    weights = vectors[:, 0] ** 2
    lowest = torch.einsum("ts,tsd->td", vectors[:, :, 0], basis)
    image = torch.linalg.vector_norm(lowest @ W, dim=1) / largest
    # A direction of which W makes nothing is no singular vector of its own: the rest is the rule of z without it.
    null = image <= NULL
    weights[:, 0] = weights[:, 0].masked_fill(null, 0.0)
    atoms = (weights[:, :-1] + weights[:, 1:]).amax(dim=1)
    return atoms.sqrt() + torch.where(null, image / NOTHING, 0.0)
