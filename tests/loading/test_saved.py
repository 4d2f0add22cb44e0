"""The base as a run was trained on it: one way to load it, for every command that asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from runs import Place

from lrft.adapters.storage import read_adapter
from lrft.compare.forgetting import before_and_after
from lrft.evaluation.loss import loss_of
from lrft.loading.from_recipe import load_data
from lrft.loading.saved import answering, load_as_trained, load_target
from lrft.model.load import load_model
from lrft.model.quantized import QuantizedLinear
from lrft.verification.run import adapted

KEYS = ("training.max_steps=2", "model.quantization=nf4", "model.precision=bfloat16", "model.attention=eager")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place.make(tmp_path_factory.mktemp("saved"))
    made.train(*KEYS, out="nf4")
    return made


def quantized(model: Any) -> int:
    return sum(isinstance(module, QuantizedLinear) for module in model.modules())


@pytest.mark.parametrize("widen", [False, True])
def test_dtype_quantization_and_attention_are_those_of_the_run(place: Place, widen: bool) -> None:
    saved = read_adapter(place.root / "nf4" / "best")
    model = load_as_trained(saved, place.root / "base", widen=widen)
    assert quantized(model) == 14
    assert model.config._attn_implementation == "eager"
    assert model.dtype == (torch.float32 if widen else torch.bfloat16)
    # The codes are made of the weights in the dtype of the run, however the model computes now.
    trained = load_model(place.root / "base", dtype=torch.bfloat16, quantization="nf4")
    for name, module in trained.named_modules():
        if isinstance(module, QuantizedLinear):
            assert torch.equal(module.codes, model.get_submodule(name).codes), name


def test_every_command_loads_it_so(place: Place) -> None:
    run = place.root / "nf4"
    target = load_target(str(run), None, False)
    checked, _ = adapted(place.recipe(*KEYS, out="nf4"), place.root / "base", run / "best")
    for model in (target.model, checked):
        assert quantized(model) == 14
        assert model.config._attn_implementation == "eager"


def test_forgetting_is_measured_on_the_base_that_was_trained_on(place: Place, tmp_path: Path) -> None:
    text = runs.write_rows(tmp_path / "text.jsonl", runs.rows(6, seed=5))
    found = before_and_after(place.root / "nf4", text)["before"]

    def loss(quantization: str) -> float:
        recipe = place.recipe(*KEYS, f"data.train={text}", "data.validation=none", "evaluation.samples=0")
        _, prepared = load_data(recipe, place.root / "base")
        model = load_model(place.root / "base", dtype=torch.bfloat16, quantization=quantization, attention="eager")
        losses, layout = answering(model, prepared.train)
        return loss_of(losses, prepared.train, micro=8, pad_id=0, form=layout.form)["loss"]

    assert found == pytest.approx(loss("nf4"), rel=1e-5)
    assert abs(found - loss("none")) > 1e-3 * found
