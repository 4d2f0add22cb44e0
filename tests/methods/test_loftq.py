"""LoftQ's start: the best product of a rank for what quantisation rounds away, over a base of real codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from peft.utils.loftq_utils import _low_rank_decomposition
from runs import Place

import lrft
from lrft.cli.main import run_command
from lrft.errors import RecipeError, UsageError
from lrft.export.merge import merge_adapter
from lrft.model import linear
from lrft.model.load import load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny.save(tiny.make(name), root / name) for name in ("llama", "gpt2")}


@pytest.mark.parametrize(("model_name", "kind"), [("llama", "nf4"), ("gpt2", "nf4"), ("llama", "int8")])
def test_no_pair_of_the_rank_is_nearer_to_what_was_rounded_away(
    model_name: str, kind: str, folders: dict[str, Path]
) -> None:
    plain = tiny.make(model_name)
    model: Any = load_model(folders[model_name], dtype=torch.float32, quantization=kind)
    attached = lrft.attach(model, {"method": "loftq", "rank": 3, "alpha": 7})
    for name, layer in attached.layers().items():
        rounded = linear.dense(plain.get_submodule(name)) - linear.dense(layer.base)
        left = torch.linalg.svdvals(rounded)[3:].norm()
        assert (rounded - attached.delta(name)).norm() == pytest.approx(left.item(), rel=1e-4)
        assert left < rounded.norm()


def test_the_start_is_that_of_stock_peft(folders: dict[str, Path]) -> None:
    """PEFT's own function asks for a GPU before it decomposes; what it does then is asked here."""
    model: Any = load_model(folders["llama"], dtype=torch.float32, quantization="nf4")
    attached = lrft.attach(model, {"method": "loftq", "rank": 3})
    for name, layer in attached.layers().items():
        rounded = tiny.make("llama").get_submodule(name).weight.detach() - linear.dense(layer.base)
        pair = _low_rank_decomposition(rounded, reduced_rank=3)
        torch.testing.assert_close(attached.delta(name), pair["L"] @ pair["R"], rtol=1e-3, atol=1e-5)


def test_without_files_or_codes_it_says_so(folders: dict[str, Path], place: Place, capsys: Any) -> None:
    model: Any = load_model(folders["llama"], dtype=torch.float32, quantization="nf4")
    model.name_or_path = model.config._name_or_path = ""
    with pytest.raises(RecipeError, match="the model does not say where they are"):
        lrft.attach(model, {"method": "loftq"})
    assert run_command(["check", str(place.root / "recipe.yaml"), "adapter.method=loftq"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "loftq: no layer of this base is quantised, so it starts as without it" in said


def test_a_run_begins_nearer_to_the_base_and_merges_into_what_was_trained_on(place: Place) -> None:
    keys = ("model.quantization=nf4", "training.max_steps=2", "checkpoint.every=1", "adapter.rank=8")
    run = place.train("adapter.method=loftq", *keys, out="loftq")
    with pytest.raises(UsageError, match="lrft merge --into dequantized"):
        merge_adapter(run / "last", place.root / "merged")
    merge_adapter(run / "last", place.root / "merged", into="dequantized")
    answers = load_model(place.root / "merged", dtype=torch.float32)
    trained: Any = load_model(place.root / "base", dtype=torch.float32, quantization="nf4")
    lrft.load_adapter(trained, run / "last")
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(tiny.logits(answers, ids), tiny.logits(trained, ids), rtol=1e-4, atol=1e-4)
    with pytest.raises(RecipeError, match=r"after\.merge: merging into this base is not possible: loftq"):
        place.train("adapter.method=loftq", *keys, "after.merge=true", out="merged-after")
    stopped = runs.cut(run, 1, place.root / "stopped")
    place.train("adapter.method=loftq", *keys, out="stopped", resume="last")
    assert runs.differing(runs.tensors(run), runs.tensors(stopped)) == []
