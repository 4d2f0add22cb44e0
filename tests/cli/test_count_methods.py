"""`lrft methods --recipe`: what each method would train on a recipe's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from runs import Place

import lrft
from lrft import registry
from lrft.cli.main import run_command


def test_methods_counts_what_each_would_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(Place.make(tmp_path).root / "recipe.yaml")
    assert run_command(["methods", "--recipe", recipe, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(registry.methods())
    sites = lrft.attach(tiny.make("llama"), {"method": "lora", "rank": 4}).sites
    assert found["lora"] == sum(4 * (site.d + site.k) for site in sites)
    assert found["dora"] == found["lora"] + sum(site.d for site in sites)
    assert found["full"] == sum(site.d * site.k for site in sites)
    assert "set frequencies to fewer" in found["fourierft"]
    assert run_command(["methods", "--recipe", recipe, "--kind", "wrapper"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("dora ")
    assert run_command(["methods", "show", "--recipe", recipe]) == 2


def test_what_is_trained_beside_them_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place.make(tmp_path)
    new = ("model.add_tokens=[<a>, <b>]", "adapter.train_tokens=added", "adapter.norms=true")
    recipe = str(tmp_path / "beside.yaml")
    more = (
        "extends: recipe.yaml\nmodel: {name: %s, add_tokens: [<a>, <b>]}\nadapter: {train_tokens: added, norms: true}\n"
    )
    Path(recipe).write_text(more % (tmp_path / "base"))
    assert run_command(["methods", "--recipe", recipe, "--kind", "wrapper", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = place.train(*new, "adapter.method=dora", "training.max_steps=1")
    assert found["dora"] == json.loads((run / "run.json").read_text())["adapter"]["trainable parameters"]
    assert run_command(["methods", "--recipe", recipe, "--kind", "wrapper"]) == 0
    numbers = 2 * tiny.WIDTH + 5 * tiny.WIDTH
    said = [f"each with {numbers:,} beside the adapters", "trained: 5 norms", "trained: 2 rows of model.embed_tokens"]
    assert capsys.readouterr().out.splitlines()[-3:] == said
