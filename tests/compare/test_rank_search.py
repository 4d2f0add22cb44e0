"""Maps of ranks that a predictor proposes: which may be proposed, and how they get into the file and are trained."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import runs
import torch
from typer.testing import CliRunner

from lrft.adapters.storage import read_adapter
from lrft.cli.main import app
from lrft.compare.config import read
from lrft.compare.rank_search import Map, Measured, blocks_of, next_map, own_keys, predicted, write
from lrft.errors import UsageError
from lrft.recipe.nodes import from_python

RANKS = (2, 4, 6, 8)


def worth(ranks: Map) -> float:
    """Late blocks want high ranks, early ones low ones."""
    return -sum(place * rank for place, rank in enumerate(ranks)) / 100


def measured(*maps: Map, limit: int = 16, constant: bool = False) -> Measured:
    blocks = tuple(f"model.layers.{n}" for n in range(4))
    return Measured({one: 0.0 if constant else worth(one) for one in maps}, blocks, (1, 1, 1, 1), limit)


START = ((4, 4, 4, 4), (2, 2, 6, 6), (6, 6, 2, 2), (8, 4, 2, 2), (2, 4, 4, 6))


def test_the_network_predicts_what_it_was_fitted_to_and_the_order_of_others() -> None:
    draw = Random(1)
    maps = list(dict.fromkeys(tuple(draw.choices(RANKS, k=4)) for _ in range(40)))
    known, others = {one: worth(one) for one in maps[:25]}, maps[25:]
    fitted = predicted(known, list(known), seed=0)
    assert torch.allclose(fitted, torch.tensor(list(known.values())), atol=0.02)
    guessed, real = predicted(known, others, seed=0), torch.tensor([worth(one) for one in others])
    assert torch.corrcoef(torch.stack([guessed, real]))[0, 1] > 0.9


def test_a_search_by_it_finds_the_best_map_and_keeps_to_the_budget() -> None:
    found = measured(*START)
    for _ in range(3):
        ranks = next_map(found, seed=3)
        assert ranks is not None
        assert sum(ranks) <= 16
        assert ranks not in found.results
        found = measured(*found.results, ranks)
    assert (2, 2, 4, 8) in found.results, "the best of all that cost 16"


def test_it_is_the_same_for_a_seed_and_valid_when_nothing_matters() -> None:
    assert next_map(measured(*START), seed=1) == next_map(measured(*START), seed=1)
    flat = next_map(measured(*START, constant=True), seed=1)
    assert flat is not None
    assert set(flat) <= set(RANKS)
    assert next_map(measured((2, 2, 2, 2), (4, 2, 2, 2), limit=8), seed=1) is None, "only the smallest costs as little"


@pytest.mark.parametrize(
    ("name", "run", "keys"),
    [
        ("lora", None, {"adapter.method": "lora"}),
        ("even", ["pissa", "rslora"], {"adapter.method": ["pissa", "rslora"]}),
        ("even", {"mora": {"type": 6}}, {"adapter.method": {"mora": {"type": 6}}}),
        ("even", {}, {}),
        ("lora", {"adapter.rank": 8}, {"adapter.method": "lora", "adapter.rank": 8}),
        ("even", {"adapter": {"rank": 4}, "training.epochs": 1}, {"adapter.rank": 4, "training.epochs": 1}),
    ],
)
def test_a_proposed_run_has_the_keys_of_the_baseline(name: str, run: object, keys: dict[str, object]) -> None:
    assert own_keys(name, from_python(run, "runs")) == keys


def test_maps_are_proposed_trained_and_kept_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs.Place.make(tmp_path)
    text = """\
recipe: {extends: recipe.yaml, training: {max_steps: 2, warmup_steps: 1}, evaluation: {every: 2}}
runs:  # by hand
  even: {adapter: {method: lora, rank: 3}}
  rising: {adapter: {method: lora, rank: 3, overrides: {"model.layers.0.*": {rank: 2}, "model.layers.1.*": {rank: 4}}}}
budget: none
seeds: [1]
output_dir: out
"""
    (tmp_path / "compare.yaml").write_text(text)
    done = CliRunner().invoke(app, ["compare", "compare.yaml", "--propose", "1"])
    assert done.exit_code == 0, done.output
    after = (tmp_path / "compare.yaml").read_text()
    assert [line for line in after.splitlines() if line in text.splitlines()] == text.splitlines(), "all of it is kept"
    comparison = read(tmp_path / "compare.yaml")
    assert (comparison.baseline, len(comparison.variants)) == ("even", 3)
    rows = {row["run"]: row for row in json.loads((tmp_path / "out/compare.json").read_text())["methods"]}
    ranks = blocks_of(read_adapter(Path(rows["proposed-1"]["best_folder"]) / "last"))
    assert list(ranks) == ["model.layers.0", "model.layers.1"]
    assert sum(ranks.values()) <= 6
    assert tuple(ranks.values()) not in ((3, 3), (2, 4))
    refused = CliRunner().invoke(app, ["compare", "compare.yaml", "--propose", "1", "--dry-run"])
    assert "leave one of them out" in str(refused.exception)


def test_what_is_no_comparison_of_maps_is_refused(tmp_path: Path) -> None:
    runs.Place.make(tmp_path)
    path = tmp_path / "compare.yaml"
    path.write_text("recipe: recipe.yaml\nruns: [lora, dora]\noutput_dir: out\n")
    with pytest.raises(UsageError, match="runs is a list"):
        write(read(path), "proposed-1", {})
    path.write_text('recipe: recipe.yaml\nruns:\n  a: {adapter: {overrides: {"*.0.*": {rank: 2}}}}\noutput_dir: out\n')
    with pytest.raises(UsageError, match=r"the baseline a has adapter\.overrides"):
        write(read(path), "proposed-1", {})
