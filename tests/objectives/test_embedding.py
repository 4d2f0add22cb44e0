"""The contrastive loss against its formula on embeddings that stock transformers makes of each text alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import classifiers
import numpy as np
import pytest
import torch
from torch import Tensor

import lrft
from lrft.data import Row, Rows
from lrft.model.embedder import Embedder
from lrft.model.head import Head
from lrft.model.load import load_model
from lrft.objectives.base import added_up, look_ahead
from lrft.objectives.embedding import Embedding, places_of, pooled
from lrft.objectives.figures import of_ranks

# Query, document, negatives. The last two rows have equal queries; the third's negative is the first's document.
TEXTS: list[list[list[int]]] = [
    [[3, 4, 5], [6, 7, 8, 9, 10]],
    [[8, 9], [3, 4], [5, 6, 7], [11]],
    [[10, 11, 12, 13], [12], [6, 7, 8, 9, 10]],
    [[5, 6, 7, 8, 9, 3], [13, 3]],
    [[5, 6, 7, 8, 9, 3], [4, 9, 9, 3]],
]


def rows_of(texts: list[list[list[int]]]) -> Rows:
    made = []
    for k, row in enumerate(texts):
        flat = np.array([t for text in row for t in text], dtype=np.int32)
        made.append(Row(flat, np.zeros(len(flat), dtype=bool), 0, "", "f#", k, parts=tuple(map(len, row))))
    return Rows.of(made)


def embed(model: Any, text: list[int], embedder: Embedder) -> Tensor:
    """Of a text alone, without padding."""
    hidden = model(input_ids=torch.tensor([text])).last_hidden_state[0]
    found = {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[embedder.pooling]
    return found / found.norm() if embedder.normalize else found


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def formula(
    made: list[list[Tensor]], temperature: float, dot: bool, symmetric: bool, width: int
) -> tuple[list[Tensor], list[int]]:
    """The loss of each row, and the rank of its document: written out, pair by pair."""

    def score(a: Tensor, b: Tensor) -> Tensor:
        return (a[:width] @ b[:width] if dot else cosine(a[:width], b[:width])) / temperature

    found, ranks = [], []
    for i, (text, row) in enumerate(zip(TEXTS, made, strict=True)):
        right = score(row[0], row[1])
        against = [right]
        for j, (other, theirs) in enumerate(zip(TEXTS, made, strict=True)):
            for k in range(1, len(theirs)):
                equal_query = k == 1 and other[0] == text[0]
                if (i, 1) != (j, k) and other[k] != text[1] and not equal_query:
                    against.append(score(row[0], theirs[k]))
        loss = torch.stack(against).logsumexp(0) - right
        ranks.append(1 + sum(bool(each > right) for each in against))
        if symmetric:
            queries = [score(theirs[0], row[1]) for other, theirs in zip(TEXTS, made, strict=True)
                       if other is text or (other[0] != text[0] and other[1] != text[1])]  # fmt: skip
            loss = (loss + torch.stack(queries).logsumexp(0) - right) / 2
        found.append(loss)
    return found, ranks


CASES: dict[str, tuple[str, Embedder, dict[str, Any]]] = {
    "mean": ("bert", Embedder("mean", True, classifiers.WIDTH), {}),
    "cls, symmetric": ("bert", Embedder("cls", False, classifiers.WIDTH), {"symmetric": True, "temperature": 0.3}),
    "last, dot": ("llama", Embedder("last", False, classifiers.WIDTH), {"similarity": "dot", "temperature": 5.0}),
    "matryoshka": (
        "bert",
        Embedder("mean", True, classifiers.WIDTH),
        {"matryoshka": (24, 10, 4), "matryoshka_weights": (1.0, 0.5, 2.0), "symmetric": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_figures_are_those_of_the_formula(case: str, tmp_path: Path) -> None:
    """Whatever the micro-batch: the negatives are those of the whole step."""
    name, embedder, options = CASES[case]
    head = Head("embedding", embedder=embedder)
    model = load_model(classifiers.save_base(tmp_path, name), dtype=torch.float64, head=head)
    attached = lrft.attach(model, {"method": "lora", "rank": 2}, seed=0)
    torch.manual_seed(1)
    for p in attached.trained().values():
        p.data = 0.3 * torch.randn_like(p)
    trained = list(attached.trained().values())

    made = [[embed(model, text, embedder) for text in row] for row in TEXTS]
    objective = Embedding(**options)
    widths = objective.matryoshka or (classifiers.WIDTH,)
    weights = objective.matryoshka_weights or (1.0,) * len(widths)
    dot = objective.similarity == "dot"
    found = [formula(made, objective.temperature, dot, objective.symmetric, width) for width in widths]
    losses, (ranks, *_) = [each for each, _ in found], [each for _, each in found]
    expected = torch.stack([w * torch.stack(each).sum() for w, each in zip(weights, losses, strict=True)]).sum()
    wanted = torch.autograd.grad(expected, trained)

    rows, loss = rows_of(TEXTS), objective.module(model)
    loss.head = head
    for micro, training in itertools.product((5, 2, 1), (True, False)):
        loss.train(training)
        ids = [list(range(at, min(5, at + micro))) for at in range(0, 5, micro)]
        batches = [objective.collate(rows, some, pad_id=2, form="padded") for some in ids]
        assert sum(map(objective.batch_weight, batches)) == objective.weight(rows, range(5)) == 5
        look_ahead(loss, ((batch, True) for batch in batches), lambda t: t)
        total, sums = torch.zeros((), dtype=torch.float64), dict[str, Tensor]()
        for batch in batches:
            total = total + loss(batch)
            sums = added_up(sums, loss.sums, 1.0)
        assert total.item() == pytest.approx(expected.item(), rel=1e-10)
        figures = objective.figures(sums)
        if training:
            for got, want in zip(torch.autograd.grad(total, trained), wanted, strict=True):
                assert torch.allclose(got, want, rtol=1e-8, atol=1e-10)
            assert figures == {"in-batch accuracy": ranks.count(1) / 5}
        else:
            inverse = sum(1 / rank for rank in ranks) / 5
            assert figures == pytest.approx({"recall@1": ranks.count(1) / 5, "recall@10": 1.0, "MRR": inverse})


def test_figures_of_ranks() -> None:
    ranks = torch.tensor([1, 1, 2, 11, 10], dtype=torch.float64)
    sums = torch.stack([(ranks == 1).sum(), (ranks <= 10).sum(), (1 / ranks).sum(), torch.tensor(5.0)])
    assert of_ranks(sums) == pytest.approx({"recall@1": 0.4, "recall@10": 0.8, "MRR": (2 + 0.5 + 1 / 11 + 0.1) / 5})


def test_a_row_that_comes_twice_is_found_in_both_places() -> None:
    whole = torch.tensor([7, 3, 7, 5])
    assert places_of(torch.tensor([7, 7]), whole).tolist() == [0, 2]
    assert places_of(torch.tensor([5, 3]), whole).tolist() == [3, 1]


def test_poolings_pass_over_padding() -> None:
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.allclose(pooled(hidden, mask, "mean")[1], hidden[1, :2].mean(0))
    assert torch.equal(pooled(hidden, mask, "last"), torch.stack([hidden[0, 3], hidden[1, 1]]))
    assert torch.equal(pooled(hidden, mask, "cls"), hidden[:, 0])
