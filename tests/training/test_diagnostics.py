"""What the log says about the adapters, against dense arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import runs
import tiny
import torch

import lrft
from lrft.model import linear
from lrft.training import diagnostics

METHODS: list[Any] = ["lora", "pissa", "mora", "dora", ["mora", "dora"]]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
def test_update_over_weight_is_that_of_the_dense_matrices(method: Any, model_name: str) -> None:
    attached = lrft.attach(tiny.make(model_name), {"method": method, "rank": 4})
    tiny.disturb(list(attached.trained().values()))
    shares = diagnostics.update_shares(attached, diagnostics.weight_squares(attached))
    for group, share in shares.items():
        names = [name for name in attached.modules if name.endswith(f".{group}")]
        update = math.hypot(*(attached.delta(name).norm().item() for name in names))
        weight = math.hypot(*(linear.dense(attached.layers()[name].base).norm().item() for name in names))
        assert share == pytest.approx(update / weight, rel=1e-4)


def test_gradient_norms_by_role() -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": "dora", "rank": 4})
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [(name, p.grad) for name, p in attached.trained().items() if p.grad is not None]
    norms = diagnostics.gradient_norms(gradients)
    assert norms.keys() == {"A", "B", "magnitude"}
    assert norms["A"] == 0.0, "B is zero at the start"
    whole = torch.nn.utils.get_total_norm([p.grad for p in attached.trained().values()])
    assert math.hypot(*norms.values()) == pytest.approx(whole.item(), rel=1e-5)
    assert diagnostics.gradient_norms(gradients, scaled=2.0)["B"] == norms["B"] / 2


def test_what_looks_wrong_is_said_with_the_reason() -> None:
    said = diagnostics.warnings({"q": 0.1, "k": 0.2}, {"q": 0.1, "k": 0.3, "v": 1.5, "o": math.inf})
    assert ["q" in said[0], "not moved" in said[0]] == [True, True]
    assert ["v" in said[1], "larger than its weight" in said[1]] == [True, True]
    assert "not finite" in said[2]
    assert len(said) == 3


def test_a_run_logs_them_and_warns_of_an_exploding_update(place: runs.Place) -> None:
    run = place.train("logging.every=2", "training.learning_rate=5", "training.max_grad_norm=none", "training.epochs=1")
    records = runs.records(run)
    logged = [record for record in records if "update" in record]
    assert [record["step"] for record in logged] == [1, 2, 3]
    assert logged[0]["gradient"].keys() == {"A", "B"}
    assert logged[-1]["update"].keys() >= {"q_proj", "down_proj"}
    assert "larger than its weight" in (run / "log.txt").read_text()


def test_a_start_that_is_not_the_base_is_said(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrft.methods.lora import LoraAdapter

    plain = LoraAdapter.__init__

    def disturbed(self: LoraAdapter, site: Any) -> None:
        plain(self, site)
        torch.nn.init.normal_(self.B)

    warning = "the initialised adapter changes the model's output"
    assert warning not in (place.train(out="plain") / "log.txt").read_text()
    monkeypatch.setattr(LoraAdapter, "__init__", disturbed)
    assert warning in (place.train(out="odd") / "log.txt").read_text()
