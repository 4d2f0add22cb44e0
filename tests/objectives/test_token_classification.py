"""The loss of token classifiers against stock transformers' own, with gradients; figures against seqeval's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import classifiers
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification

import lrft
from lrft.data import DataReport, Row, Rows
from lrft.model.head import Head
from lrft.model.load import load_model
from lrft.objectives.base import Asked, added_up
from lrft.objectives.entities import are_entities, counts_of, entities, of_entities
from lrft.objectives.token_classification import TokenClassification

NAMES = ("B-X", "I-X", "O", "S-Y")
HEAD = Head("token", NAMES, pad_id=2)
# Tokens, the number of the word that each is of (-1: none), and the label of each word.
ROWS = [
    ([1, 4, 5, 6, 7, 2], [-1, 0, 0, 1, 2, -1], [0, 2, 3]),
    ([8, 9, 3], [0, 1, 1], [2, 0]),
    ([10, 11], [0, 2], [1, 3, 0]),  # the second word has no token
]


def rows() -> Rows:
    return Rows.of(
        [
            Row(
                np.array(tokens, dtype=np.int32),
                np.zeros(len(tokens), dtype=bool),
                0,
                "",
                "f#",
                k,
                numbers={"word": np.array(word, dtype=float), "label": np.array(labels, dtype=float)},
            )
            for k, (tokens, word, labels) in enumerate(ROWS)
        ]
    )


def stock_labels(every: bool) -> list[list[int]]:
    """As transformers' own scripts align them: -100 but for first tokens, or I- behind them."""
    made = []
    for _, word, labels in ROWS:
        out = []
        for k, n in enumerate(word):
            first = n >= 0 and (k == 0 or word[k - 1] != n)
            inside = 1 if n >= 0 and labels[n] == 0 else labels[n] if n >= 0 else -100
            out.append(labels[n] if first else inside if every and n >= 0 else -100)
        made.append(out)
    return made


def answered(model: Any, objective: TokenClassification, head: Head, micro: int) -> tuple[Tensor, dict[str, float]]:
    given, losses = rows(), objective.module(model)
    losses.head = head
    total, sums = torch.zeros(()), dict[str, Tensor]()
    for at in range(0, len(given), micro):
        ids = list(range(at, min(len(given), at + micro)))
        batch = objective.collate(given, ids, pad_id=2, form="padded")
        assert objective.batch_weight(batch) == objective.weight(given, ids)
        total = total + losses(batch)
        sums = added_up(sums, losses.sums, 1.0)
    return total / objective.weight(given, range(len(given))), objective.figures(sums)


@pytest.mark.parametrize("name", classifiers.BASES)
@pytest.mark.parametrize("tokens", ["first", "all"])
def test_loss_and_gradients_are_stock(name: str, tokens: Any, tmp_path: Path) -> None:
    """Whatever the micro-batch."""
    base = classifiers.save_base(tmp_path, name)
    model = load_model(base, dtype=torch.float64, head=HEAD)
    start = {n: p.clone() for n, p in model.state_dict().items()}
    attached = lrft.attach(model, {"method": "lora", "rank": 2}, seed=0)
    objective = TokenClassification(tokens=tokens)
    loss, figures = answered(model.eval(), objective, HEAD, micro=3)
    alone, same = answered(model, objective, HEAD, micro=1)
    assert torch.allclose(loss, alone, rtol=1e-12)
    assert figures == same
    trained = attached.trained()
    grads = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    other = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(NAMES)).double().eval()
    other.load_state_dict(start)
    width = max(len(tokens) for tokens, _, _ in ROWS)
    ids = torch.tensor([tokens + [2] * (width - len(tokens)) for tokens, _, _ in ROWS])
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens, _, _ in ROWS])
    labels = torch.tensor([each + [-100] * (width - len(each)) for each in stock_labels(tokens == "all")])
    answer = other(input_ids=ids, attention_mask=mask, labels=labels)
    # That of a decoder is made in float32.
    near = 1e-10 if answer.loss.dtype == loss.dtype else 1e-6
    assert loss.item() == pytest.approx(answer.loss.item(), rel=near)
    for full in attached.modules_to_save:
        for word, p in other.get_submodule(full).named_parameters():
            slope = torch.autograd.grad(answer.loss, p, retain_graph=True)[0]
            assert torch.allclose(grads[f"{full}.{word}"], slope, rtol=100 * near, atol=near)
    first = torch.tensor([each + [-100] * (width - len(each)) for each in stock_labels(False)]) != -100
    right = (answer.logits.argmax(-1) == labels)[first].double().mean().item()
    assert figures["accuracy"] == pytest.approx(right)


def test_class_weights_and_labels_that_are_no_entities(tmp_path: Path) -> None:
    model = load_model(classifiers.save_base(tmp_path, "llama"), dtype=torch.float64, head=HEAD).eval()
    report = DataReport(labels=dict.fromkeys(NAMES, 1))
    head = TokenClassification(class_weights="balanced").head_for(Asked(report, rows(), 2))
    assert head.weights == pytest.approx((8 / (4 * 3), 8 / 4, 8 / (4 * 2), 8 / (4 * 2)))
    weighted, _ = answered(model, TokenClassification(), head, 3)
    each = []
    for k in range(len(NAMES)):
        one = Head("token", NAMES, pad_id=2, weights=tuple(float(k == n) for n in range(len(NAMES))))
        each.append(answered(model, TokenClassification(), one, 3)[0].item())
    assert weighted.item() == pytest.approx(sum(w * e for w, e in zip(head.weights, each, strict=True)))
    with pytest.raises(ValueError, match="class_weights has 1 numbers; expected one, not negative, for each of 4"):
        TokenClassification(class_weights=(1.0,)).head_for(Asked(report, rows(), 2))
    words = Head("token", ("NOUN", "VERB", "ADJ", "X"), pad_id=2)
    assert list(answered(model, TokenClassification(), words, 3)[1]) == ["accuracy", "macro-F1", "Matthews"]


def test_entities_are_those_of_seqeval() -> None:
    """Figures made with seqeval 1.2.2 from the same lists."""
    true = ["O B-X I-X O B-Y I-X I-X", "B-X B-X I-Y O", "I-Y I-Y O S-X E-X"]
    called = ["O B-X I-X O B-Y I-X O", "B-X I-X I-Y O", "I-Y I-Y I-X S-X O"]
    assert entities(true[0].split()) == {("X", 1, 3), ("Y", 4, 5), ("X", 5, 7)}
    counts = counts_of((a.split(), b.split()) for a, b in zip(true, called, strict=True))
    expected = {"precision": 0.625, "recall": 0.5555555555555556, "F1": 0.5882352941176471}
    assert of_entities(torch.tensor(counts).double()) == pytest.approx(expected)
    assert of_entities(torch.zeros(3)) == {"F1": 0.0, "precision": 0.0, "recall": 0.0}
    assert are_entities(["O", "B-X", "E-new-york"])
    assert not are_entities(["O", "NOUN"])
