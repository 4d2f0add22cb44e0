"""Optimisers of whole weights in real runs: galore, fira, frugal and flora keep the same promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place

import lrft
from lrft import registry
from lrft.adapters import compose
from lrft.adapters.part import Making
from lrft.errors import RecipeError
from lrft.methods.fira import Fira
from lrft.methods.galore import Galore
from lrft.optim.named_state import grouped

WORDS = ("galore", "fira", "frugal", "flora")
EVERY_WORD = pytest.mark.parametrize("word", WORDS)
MAKING = Making((0.9, 0.999), 1e-8, 0, lambda t: t)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("galore"))


def optimizer_of(attached: Any, **changes: Any) -> Any:
    composition = compose.compose((e["name"], e["options"]) for e in attached.methods)
    groups = grouped(attached.trained(), {}, 0.01, 0.0, owners=attached.owners())
    ranks = {site.name: site.rank for site in attached.sites}
    owner = composition.optimizer_owner
    assert owner is not None
    return owner.make_optimizer([{**g, "rank": ranks[g["site"]], **changes} for g in groups], MAKING)


@EVERY_WORD
def test_it_trains_whole_weights_and_the_loss_falls(word: str) -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": word, "rank": 4})
    assert [entry["name"] for entry in attached.methods] == ["full", word]
    optimizer = optimizer_of(attached, period=5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@EVERY_WORD
def test_the_whole_update_gets_a_higher_rank_than_one_step(word: str, place: Place) -> None:
    options = "density: 0.2" if word == "frugal" else "every: 2"
    method = f"adapter.method=[{{{word}: {{{options}}}}}]"
    run = place.train(method, "adapter.rank=1", "training.max_steps=4", out=f"rank-{word}")
    D = [t for name, t in runs.tensors(run).items() if name.endswith(".D")]
    assert D
    assert max(int(torch.linalg.matrix_rank(t)) for t in D) > 1


# Every other change of the projection lies between two checkpoints.
METHODS = {
    "dct-adamw": "dct-adamw",
    **{f"galore-{p}": f"{{galore: {{projection: {p}, every: 2}}}}" for p in ("svd", "randomized", "random", "dct")},
    "galore-rotate": "{galore: {projection: coordinate, every: 2, moments: rotate}}",
    "fira": "{fira: {every: 0.5, moments: reset}}",
    "frugal": "{frugal: {every: 2, density: 0.5}}",
    "frugal-svd": "{frugal: {every: 2, projection: svd, inactive_scale: 0.1}}",
    "flora": "{flora: {every: 2}}",
}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_anywhere_in_a_period_it_ends_in_the_same_bits(method: str, place: Place) -> None:
    keys = (f"adapter.method=[{METHODS[method]}]", "checkpoint.every=1", "checkpoint.keep=9")
    straight = place.train(*keys, out=method)
    for step in (1, 2, 3):
        cut = runs.cut(straight, step, place.root / f"{method}-{step}")
        resumed = place.train(*keys, out=cut.name, resume="last")
        assert runs.differing(runs.tensors(straight), runs.tensors(resumed)) == []


@EVERY_WORD
def test_what_it_remembers_is_small(word: str, place: Place) -> None:
    run = place.train(f"adapter.method={word}", "adapter.rank=2", "training.max_steps=2", out=f"small-{word}")
    found = runs.tensors(run)
    state = sum(t.numel() for name, t in found.items() if "optimizer" in name)
    weights = sum(t.numel() for name, t in found.items() if name.endswith(".D"))
    assert 0 < state < weights  # Adam's would be twice the weights


@EVERY_WORD
def test_the_merged_model_is_the_trained_one(word: str, place: Place, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = place.train(f"adapter.method={word}", "training.max_steps=2", out=f"merge-{word}")
    lrft.merge(run / "last", tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(place.root / "base")
    ids = torch.arange(3, 12)[None]
    untouched = tiny.logits(base, ids)
    lrft.load_adapter(base, run / "last")
    adapted = tiny.logits(base, ids)
    merged = tiny.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids)
    assert (adapted - untouched).abs().max() > 1e-3
    assert (adapted - merged).abs().max() <= 1e-4 * adapted.abs().max()


@EVERY_WORD
@pytest.mark.parametrize("other", ["lora", "dora", "lora+", "relora", "pissa", "rslora", "fast-forward", "other"])
def test_what_it_cannot_be_combined_with_is_refused(word: str, other: str) -> None:
    if other == "other":
        other = WORDS[WORDS.index(word) - 1]
    with pytest.raises(RecipeError, match=r"keep one|requires|conflicts with"):
        lrft.attach(tiny.make("llama"), {"method": [word, other], "rank": 4})


@EVERY_WORD
def test_what_it_can_be_combined_with_is_not(word: str) -> None:
    for other in ("full", "tempbalance", "ba-lora"):
        assert registry.conflicts([word, other], dropout=0, alpha_given=False) == []


def test_options_reach_the_optimiser() -> None:
    part = Galore(projection="dct", factor=0.5, moments="rotate")
    assert (part.grid().projection, part.grid().scale, part.grid().moments) == ("dct", 0.5, "rotate")
    grid = Fira(growth=0.5, factor=0.3).grid()
    assert (grid.growth, grid.scale, grid.residual, grid.residual_scale) == (1.5, 0.3, "fira", 1.0)


def test_a_share_of_the_run_is_a_period(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    context = runs.At("after_backward", 1, lambda run: said.extend(g["period"] for g in run.optimizer.param_groups))
    runs.add_parts(monkeypatch, context)
    place.train("adapter.method=[{galore: {every: 0.5}}]", "training.max_steps=6", out="share")
    assert set(said) == {3}
    assert len(said) > 1
