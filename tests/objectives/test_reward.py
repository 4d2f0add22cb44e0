"""Reward models: the loss against its formula on what stock transformers says of each answer alone; runs and merges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import classifiers
import numpy as np
import pytest
import runs
import torch
from runs import Place
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from lrft.data import Row, Rows
from lrft.errors import DataError, RecipeError
from lrft.export.merge import merge_adapter
from lrft.objectives.base import added_up
from lrft.objectives.reward import Reward

PAIRS = [([3, 4, 5, 6], [3, 4, 7], 0.5), ([8, 9], [8, 3, 4, 5, 6], None), ([5, 6, 7], [5, 6, 9, 9], -0.25)]


def rows() -> Rows:
    made = []
    for chosen, rejected, margin in PAIRS:
        tokens, trained = np.array(chosen + rejected), np.ones(len(chosen + rejected), dtype=bool)
        numbers = {} if margin is None else {"margin": np.array([margin])}
        made.append(Row(tokens, trained, 1, "", "f:", 1, parts=(len(chosen), len(rejected)), numbers=numbers))
    return Rows.of(made)


def answer_alone(model: Any, tokens: list[int]) -> Tensor:
    found: Tensor = model(input_ids=torch.tensor([tokens])).logits[0, 0]
    return found


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_loss_gradient_and_figures_are_those_of_the_formula(center: float) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).double()
    expected = torch.zeros((), dtype=torch.float64)
    for chosen, rejected, margin in PAIRS:
        a, b = answer_alone(model, chosen), answer_alone(model, rejected)
        expected = expected - (1 / (1 + (-(a - b - (margin or 0.0))).exp())).log() + center * (a + b) ** 2
    wanted = torch.autograd.grad(expected, list(model.parameters()))

    objective, given = Reward(center=center), rows()
    losses = objective.module(model)
    total, sums = torch.zeros((), dtype=torch.float64), {}
    for ids in ([0, 1], [2]):  # pairs of other lengths: the shorter answers are padded
        batch = objective.collate(given, ids, pad_id=0, form="padded")
        assert objective.batch_weight(batch) == objective.weight(given, ids) == len(ids)
        total = total + losses(batch)
        sums = added_up(sums, losses.sums, 1.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    for got, want in zip(torch.autograd.grad(total, list(model.parameters())), wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-12)
    found = objective.figures(sums)
    pairs = [(answer_alone(model, c).item(), answer_alone(model, r).item()) for c, r, _ in PAIRS]
    assert found["reward accuracy"] == pytest.approx(np.mean([a > b for a, b in pairs]))
    assert found["reward margin"] == pytest.approx(np.mean([a - b for a, b in pairs]))


def rated(n: int, seed: int = 0, **more: float) -> list[dict[str, Any]]:
    """Pairs whose chosen answer ends in one word and whose rejected one in another."""
    draw = np.random.default_rng(seed)
    words = ["time", "what", "world", "two"]
    asked = [" ".join(draw.choice(words, 4)) for _ in range(n)]
    return [{"prompt": text, "chosen": " hello", "rejected": " forty", **more} for text in asked]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = classifiers.place(tmp_path, "llama")
    runs.write_rows(tmp_path / "train.jsonl", rated(16))
    runs.write_rows(tmp_path / "validation.jsonl", rated(6, seed=1))
    return made


KEYS = ("training.objective=reward", "training.max_steps=8", "evaluation.every=4", "evaluation.at_start=true")


def test_a_reward_model_learns_resumes_and_loads_in_stock_transformers(place: Place) -> None:
    keys = (
        *KEYS,
        "training.learning_rate=0.01",
        "checkpoint.every=4",
        f"data.validation={place.root}/validation.jsonl",
    )
    straight = place.train(*keys, out="straight")
    first, *_, last = runs.records(straight, "eval")
    assert last["loss"] < 0.5 < first["loss"] == pytest.approx(math.log(2), abs=0.2)
    assert (last["figures"]["reward accuracy"], last["pairs"]) == (1.0, 6)
    place.train(*keys, out=runs.cut(straight, 4, place.root / "cut").name, resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(place.root / "cut")) == []
    merged = merge_adapter((straight / "last").resolve(), straight / "merged").out
    stock = AutoModelForSequenceClassification.from_pretrained(merged)
    assert stock.config.num_labels == 1


def test_margins_count_for_a_reward_model_alone(place: Place) -> None:
    plain = place.train(*KEYS, out="plain")
    runs.write_rows(place.root / "train.jsonl", rated(16, margin=2.0))
    wide = place.train(*KEYS, out="wide")
    assert runs.records(wide)[0]["loss"] > runs.records(plain)[0]["loss"] + 1.0
    with pytest.raises(DataError, match=r"rows have a column margin, which training\.objective: dpo does not count"):
        place.train("training.objective=dpo", "training.max_steps=1", out="dpo")
    runs.write_rows(place.root / "train.jsonl", [*rated(3), *rated(1, seed=5, margin=float("nan"))])
    with pytest.raises(DataError, match="margin"):
        place.train(*KEYS, out="bad")


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="center"):
        classifiers.place(tmp_path, "llama").train("training.objective={reward: {center: -1}}")
