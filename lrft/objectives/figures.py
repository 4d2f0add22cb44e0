"""Figures of classifiers and regressors, from counts and values that add up over batches and processes.

F1 of a class is 2 tp / (2 tp + fp + fn), and 0 where nothing is of the class or called so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def means(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Of (sum, count) by name, without those that count nothing."""
    return {name: (total / count).item() for name, (total, count) in sums.items() if count}


def of_confusion(confusion: Tensor) -> dict[str, float]:
    """Accuracy, macro-F1 and Matthews correlation. confusion: float64 (classes, classes), rows by their true class.

    Macro-F1 is the mean over classes that are some row's, or some answer's. Matthews is that of several classes
    (Gorodkin, 2004, doi 10.1016/j.compbiolchem.2004.09.006, equation 8); 0 where all is of one class or called so.
    """
    total, right = confusion.sum(), confusion.diagonal()
    true, called = confusion.sum(dim=1), confusion.sum(dim=0)
    seen = (true + called) > 0
    f1 = 2 * right[seen] / (true + called)[seen]
    spread = (total**2 - called.square().sum()) * (total**2 - true.square().sum())
    matthews = (right.sum() * total - (true * called).sum()) / spread.sqrt() if spread > 0 else torch.zeros(())
    return {
        "accuracy": (right.sum() / total).item(),
        "macro-F1": f1.mean().item(),
        "Matthews": float(matthews),
    }


def of_labels(counts: Tensor) -> dict[str, float]:
    """Micro- and macro-F1 of rows with several labels. counts: float64 (3, labels): tp, fp, fn of each."""
    tp, fp, fn = counts
    both = 2 * tp + fp + fn
    f1 = torch.where(both > 0, 2 * tp / both.clamp_min(1), torch.zeros_like(tp))
    micro = 2 * tp.sum() / both.sum() if both.sum() > 0 else torch.zeros(())
    return {"micro-F1": float(micro), "macro-F1": f1.mean().item()}


def ranks(values: Tensor) -> Tensor:
    """Rank of each value from 1, equal values sharing the mean of theirs: float64 (n,)."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[which]


def spearman(one: Tensor, other: Tensor) -> float:
    """The correlation of the ranks of two (n,); NaN where one of them is constant."""
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    return ((a @ b) / (a.norm() * b.norm())).item()


def of_ranks(sums: Tensor) -> dict[str, float]:
    """Of searches: sums (4,) of rank 1, of ranks up to 10, of 1 / rank, and of all."""
    first, tenth, inverse, total = sums.tolist()
    return {"recall@1": first / total, "recall@10": tenth / total, "MRR": inverse / total}
