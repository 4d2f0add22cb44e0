"""The loss of classifiers against stock transformers' own, with gradients; figures against scikit-learn and scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import classifiers
import numpy as np
import pytest
import torch
from torch import Tensor

import lrft
from lrft.data import DataReport, Rows
from lrft.data.dataset import Row
from lrft.model.head import Head
from lrft.model.load import load_model
from lrft.objectives.base import Asked
from lrft.objectives.classification import MULTI, NUMBER, SINGLE, Classification
from lrft.objectives.figures import of_confusion, of_labels, spearman

TEXTS = ([3, 4, 5, 6, 7, 9], [8, 9], [10, 11, 12, 13], [5, 6, 7])
NUMBERS = {SINGLE: [[2], [0], [1], [0]], MULTI: [[0, 2], [], [1], [0, 1, 2]], NUMBER: [[0.5], [-1.0], [2.0], [0.25]]}
HEADS = {
    SINGLE: classifiers.HEAD,
    MULTI: Head("sequence", classifiers.LABELS, MULTI, pad_id=2),
    NUMBER: Head("sequence", (), NUMBER, pad_id=2),
}


def rows_of(numbers: list[list[float]]) -> Rows:
    return Rows.of(
        [
            Row(
                np.array(t, dtype=np.int32),
                np.zeros(len(t), dtype=bool),
                0,
                "",
                "f#",
                k,
                numbers={"label": np.array(n)},
            )
            for k, (t, n) in enumerate(zip(TEXTS, numbers, strict=True))
        ]
    )


def stock_labels(problem: str) -> Tensor:
    if problem == MULTI:
        return torch.stack([torch.tensor([float(k in n) for k in range(3)]) for n in NUMBERS[MULTI]])
    return torch.tensor([n[0] for n in NUMBERS[problem]], dtype=torch.long if problem == SINGLE else torch.float32)


def answered(model: Any, rows: Rows, head: Head, micro: int, weights: Any = "none") -> tuple[Tensor, Any]:
    """The mean loss over all rows in micro-batches of `micro`, and the objective's figures."""
    objective = Classification(class_weights=weights)
    losses = objective.module(model)
    losses.head = head
    sums: dict[str, Tensor] = {}
    total = torch.zeros(())
    for at in range(0, len(rows), micro):
        batch = objective.collate(rows, range(len(rows))[at : at + micro], pad_id=2, form="padded")
        total = total + losses(batch)
        sums = {name: sums.get(name, 0) + value for name, value in losses.sums.items()}
    return total / len(rows), objective.figures(sums)


@pytest.mark.parametrize(
    ("name", "problem", "precise"),
    [(name, SINGLE, torch.float32) for name in classifiers.BASES]
    + [(name, problem, torch.float64) for name in ("llama", "bert", "modernbert") for problem in HEADS],
)
def test_loss_and_gradients_are_stock(name: str, problem: str, precise: torch.dtype, tmp_path: Path) -> None:
    """Trust 18."""
    base, head = classifiers.save_base(tmp_path, name), HEADS[problem]
    model = load_model(base, dtype=precise, head=head)
    start = {n: p.clone() for n, p in model.state_dict().items()}
    attached = lrft.attach(model, {"method": "lora", "rank": 2}, seed=0)
    model.train()
    loss, _ = answered(model, rows_of(NUMBERS[problem]), head, micro=4)
    trained = attached.trained()
    grads = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    other = classifiers.stock(base, head).to(precise).train()
    other.load_state_dict(start)
    width = max(map(len, TEXTS))
    # Padded on the left: a decoder finds its last token whatever the side. An encoder's positions count from the left.
    left = name == "llama"
    fill = [[2] * (width - len(t)) for t in TEXTS]
    ids = torch.tensor([f + t if left else t + f for t, f in zip(TEXTS, fill, strict=True)])
    mask = (ids != 2).long()
    labels = stock_labels(problem)
    labels = labels.to(precise) if labels.is_floating_point() else labels
    position = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if left else {}
    expected = other(input_ids=ids, attention_mask=mask, labels=labels, **position).loss
    assert torch.allclose(loss, expected, rtol=1e-5)
    for full in attached.modules_to_save:
        for word, p in other.get_submodule(full).named_parameters():
            slope = torch.autograd.grad(expected, p, retain_graph=True)[0]
            assert torch.allclose(grads[f"{full}.{word}"], slope, rtol=1e-5, atol=1e-5 * slope.abs().max().item())
    # B is zero: its gradient is s dL/dW A^T.
    site = attached.sites[0]
    slope = torch.autograd.grad(expected, other.get_submodule(site.name).weight)[0]
    wanted = site.scale * slope @ attached.modules[site.name].A.T
    assert torch.allclose(grads[f"{site.name}.B"], wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_rows_alone_and_together_and_class_weights(tmp_path: Path) -> None:
    model = load_model(classifiers.save_base(tmp_path, "llama"), dtype=torch.float64, head=classifiers.HEAD)
    rows = rows_of(NUMBERS[SINGLE])
    (together, figures), (alone, same) = (answered(model, rows, classifiers.HEAD, micro) for micro in (4, 1))
    assert torch.allclose(together, alone, rtol=1e-12)
    assert figures == same
    report = DataReport(labels={"bad": 2, "good": 1, "so so": 1})
    for weights, expected in (("balanced", (4 / 6, 4 / 3, 4 / 3)), ((0.5, 2.0, 0.0), (0.5, 2.0, 0.0))):
        head = Classification(class_weights=weights).head_for(Asked(report, rows, 2))
        assert head.weights == pytest.approx(expected)
        loss, _ = answered(model, rows, head, micro=2, weights=weights)
        each = [answered(model, rows.slice([k]), classifiers.HEAD, 1)[0] for k in range(4)]
        factors = [expected[int(n[0])] for n in NUMBERS[SINGLE]]
        assert loss.item() == pytest.approx(sum(f * e.item() for f, e in zip(factors, each, strict=True)) / 4)
    with pytest.raises(
        ValueError, match="class_weights has 1 numbers; expected one, not negative, for each of 3 labels"
    ):
        Classification(class_weights=(1.0,)).head_for(Asked(report, rows, 2))
    several = DataReport(labels={"a": 1}, several=True)
    with pytest.raises(ValueError, match="labels are lists: expected multi-label"):
        Classification(problem="single-label").head_for(Asked(several, rows, 2))


def test_figures_are_those_of_scikit_learn_and_scipy() -> None:
    """Made with scikit-learn 1.9.1 and scipy 1.17.1 from the same lists."""
    true, called = [0, 2, 1, 1, 0, 2, 2, 3, 0, 1, 1, 2], [0, 2, 1, 0, 0, 1, 2, 1, 2, 1, 1, 2]
    confusion = torch.zeros(5, 5, dtype=torch.float64)  # nothing is of the fifth class, or called so
    for pair in zip(true, called, strict=True):
        confusion[pair] += 1
    expected = {"accuracy": 0.6666666666666666, "macro-F1": 0.5208333333333333, "Matthews": 0.5208421985061126}
    assert of_confusion(confusion) == pytest.approx(expected)
    assert of_confusion(torch.tensor([[3.0, 0], [1, 0]]))["Matthews"] == 0  # all called the same
    Y = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]])
    P = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    counts = torch.stack([(Y * P).sum(0), ((1 - Y) * P).sum(0), (Y * (1 - P)).sum(0)]).double()
    assert of_labels(counts) == pytest.approx({"micro-F1": 0.6, "macro-F1": 0.43333333333333335})
    one = torch.tensor([0.1, 2.0, 2.0, -1.0, 3.5, 2.0, 0.1])
    other = torch.tensor([1.0, 2.5, 0.3, -2.0, 2.5, 4.0, 1.0])
    assert spearman(one, other) == pytest.approx(0.6669389422208677)


def test_spearman_is_over_all_rows_and_not_of_training(tmp_path: Path) -> None:
    model = load_model(classifiers.save_base(tmp_path, "bert"), dtype=torch.float64, head=HEADS[NUMBER])
    rows = rows_of(NUMBERS[NUMBER])
    figures = [answered(model.eval(), rows, HEADS[NUMBER], micro) for micro in (4, 1)]
    losses = Classification(problem="regression").module(model).eval()
    losses.head = HEADS[NUMBER]
    batch = Classification(problem="regression").collate(rows, range(4), pad_id=2, form="padded")
    losses(batch)
    found, target = losses.sums["pairs"]
    assert target.tolist() == [n[0] for n in NUMBERS[NUMBER]]
    rank = [sorted(found.tolist()).index(v) for v in found.tolist()]
    true = [sorted(target.tolist()).index(v) for v in target.tolist()]
    assert spearman(found, target) == pytest.approx(np.corrcoef(rank, true)[0, 1])
    assert figures[0][1] == pytest.approx(figures[1][1])
    assert "Spearman" not in figures[0][1]
