"""Updates of several adapters in one layer made into one. Names and formulas as PEFT's `add_weighted_adapter`.

    cat               sum of w_i dW_i, exact, as a pair whose rank is the sum of the ranks
    svd               the same sum, cut to a rank
    linear            A and B averaged apart, A = sum of sqrt(w_i s_i) A_i and B alike: no sum of the updates. For
                      adapters of one start, as those of one run
    magnitude-prune   svd of the largest numbers of each update
    dare              svd of a random part of each update, divided by its share. Yu et al., 2023, arXiv 2311.03099
    ties              the largest numbers of each update; in each place the mean of those with the sign of their sum.
                      Yadav et al., 2023, arXiv 2306.01708
    dare-ties         the same of random parts

The last four work on the dense updates, as the papers do on weights (PEFT's names end in _svd).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.adapters.adapter import Factors
from lrft.adapters.updates import dense, thin
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Options:
    """How updates are combined. weights: one for each adapter. rank: of what is cut. density: share of the numbers of
    an update that are kept. seed: of the random parts."""

    weights: tuple[float, ...]
    rank: int
    density: float = 0.5
    seed: int = 0


Combined = tuple[Tensor, Tensor, float]
"""(B (d, r), A (r, k), relative error of their product)"""


def cat(name: str, updates: Sequence[Factors | Tensor], how: Options) -> Combined:
    pairs = [pair_of(update) for update in updates]
    B = torch.cat([w * pair.scale * pair.B for w, pair in zip(how.weights, pairs, strict=True)], dim=1)
    return B, torch.cat([pair.A for pair in pairs]), 0.0


def linear(name: str, updates: Sequence[Factors | Tensor], how: Options) -> Combined:
    pairs = [pair_of(update) for update in updates]
    if len({pair.A.shape for pair in pairs}) > 1:
        raise ValueError(f"{name} has ranks {', '.join(str(len(pair.A)) for pair in pairs)}: use svd or cat")
    shares = [w * pair.scale for w, pair in zip(how.weights, pairs, strict=True)]
    roots = [(abs(share) ** 0.5, pair, math.copysign(1, share)) for share, pair in zip(shares, pairs, strict=True)]
    A = sum_of([sign * root * pair.A for root, pair, sign in roots])
    B = sum_of([root * pair.B for root, pair, _ in roots])
    return B, A, 0.0


def svd(name: str, updates: Sequence[Factors | Tensor], how: Options) -> Combined:
    return thin(sum_of(weighted([dense(update) for update in updates], how)), how.rank, name)


def magnitude_prune(name: str, updates: Sequence[Factors | Tensor], how: Options) -> Combined:
    return thin(sum_of(weighted([largest(dense(u), how.density) for u in updates], how)), how.rank, name)


def dare(name: str, updates: Sequence[Factors | Tensor], how: Options) -> Combined:
    return thin(sum_of(weighted(random_parts(name, updates, how), how)), how.rank, name)


def ties(name: str, updates: Sequence[Factors | Tensor], how: Options) -> Combined:
    return thin(elected([largest(dense(update), how.density) for update in updates], how), how.rank, name)


def dare_ties(name: str, updates: Sequence[Factors | Tensor], how: Options) -> Combined:
    return thin(elected(random_parts(name, updates, how), how), how.rank, name)


WAYS: dict[str, Callable[[str, Sequence[Factors | Tensor], Options], Combined]] = {
    "cat": cat,
    "svd": svd,
    "linear": linear,
    "magnitude-prune": magnitude_prune,
    "dare": dare,
    "ties": ties,
    "dare-ties": dare_ties,
}
AVERAGING = ("ties", "dare-ties")
"""ways that divide by the number of updates which take part: their weights are 1 by default, those of sums 1/n"""
SPARSE = ("magnitude-prune", "dare", "ties", "dare-ties")
"""ways with a density"""


def pair_of(update: Factors | Tensor) -> Factors:
    """Raises ValueError for an update that is no product of thin factors."""
    if not isinstance(update, Factors):
        raise ValueError("its update is no product of two thin factors: use svd")
    return update


def weighted(updates: Sequence[Tensor], how: Options) -> list[Tensor]:
    return [w * update for w, update in zip(how.weights, updates, strict=True)]


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def largest(update: Tensor, density: float) -> Tensor:
    """The share `density` of its numbers that is largest in absolute value; zero in the place of others."""
    kept = update.abs().flatten().topk(int(density * update.numel())).indices
    out = torch.zeros_like(update).flatten()
    out[kept] = update.flatten()[kept]
    return out.view_as(update)


def random_parts(name: str, updates: Sequence[Factors | Tensor], how: Options) -> list[Tensor]:
    """Each number kept with probability `density` and divided by it, else zero. Drawn from seed, layer and place."""
    parts = []
    for number, update in enumerate(map(dense, updates)):
        draw = torch.Generator().manual_seed(seed_of(how.seed, name, number))
        kept = torch.rand(update.shape, generator=draw) < how.density
        parts.append(update * kept.to(update.device) / how.density)
    return parts


def elected(updates: Sequence[Tensor], how: Options) -> Tensor:
    """In each place the mean of the weighted numbers that have the sign of the unweighted sum; where it is zero, the
    positive ones."""
    stacked = torch.stack(list(updates))
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == sign
    return (torch.stack(weighted(updates, how)) * agrees).sum(0) / agrees.sum(0).clamp(min=1)
