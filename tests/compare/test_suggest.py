"""`lrft compare --suggest`: the figures are those of the pages, and what is printed is a comparison file."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from docgen import evidence

from lrft import registry
from lrft.cli.main import run_command
from lrft.compare import config, suggest
from lrft.utils import files

ROOT = Path(__file__).parents[2]


def test_the_evidence_is_that_of_the_pages() -> None:
    assert (ROOT / "lrft/compare/evidence.json").read_text() == evidence.text(ROOT), "scripts/docs writes it"
    benchmark = files.read_json(ROOT / "docs/benchmark/arithmetic.json")
    rows = {row["run"]: row for row in benchmark["methods"]}
    found = json.loads((ROOT / "lrft/compare/evidence.json").read_text())
    for name in ("bone", "dora", "full"):
        changes = [rows[name]["values"][seed] / rows["lora"]["values"][seed] - 1 for seed in ("2", "3")]
        assert found[name]["loss"]["arithmetic"] == pytest.approx(changes, abs=1e-4)
    assert set(found["lora"]["loss"]["instructions"]) == {0.0}
    assert found["lora"]["step"] == found["lora"]["memory"] == found["lora"]["forgotten"] == 1


@pytest.mark.parametrize("goal", suggest.GOALS)
def test_lora_comes_first_and_the_best_behind_it(goal: str) -> None:
    baseline, *others = suggest.suggest(goal)
    wanted = suggest.GOALS[goal]
    assert baseline.name == "lora"
    assert 1 <= len(others) <= suggest.SHOWN
    values = [wanted.figure(found) for found in others]
    assert values == sorted(values), "the best first"
    assert all(wanted.among(found) for found in others)
    left = [f for f in suggest.measured() if wanted.among(f) and f.name not in {"lora", *(o.name for o in others)}]
    assert all((value := wanted.figure(f)) is None or value >= values[-1] for f in left)


def test_goals_ask_for_what_they_say() -> None:
    assert all(found.parameters is not None and found.parameters <= 1.25 for found in suggest.suggest("quality")[1:])
    for goal in ("memory", "speed"):
        assert all(statistics.fmean(found.losses) <= 0.05 for found in suggest.suggest(goal)[1:])
    assert all(found.exports.startswith("PEFT LoRA") for found in suggest.suggest("serving"))
    assert "full" not in {found.name for goal in suggest.GOALS for found in suggest.suggest(goal)}


def test_every_method_of_the_evidence_is_one_of_this_version() -> None:
    names = {
        word for row in json.loads((ROOT / "lrft/compare/evidence.json").read_text()).values() for word in row["method"]
    }
    assert names <= {*registry.methods(), *registry.PRESETS}


@pytest.mark.parametrize("goal", suggest.GOALS)
def test_what_is_printed_is_a_comparison_file(goal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: base\nadapter: lora\ndata: rows.jsonl\noutput_dir: out\n")
    assert run_command(["compare", "--suggest", goal, str(recipe)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 120
    file = tmp_path / "compare.yaml"
    file.write_text(said.partition("# compare.yaml\n")[2])
    read = config.read(file)
    assert read.variants[0].name == "lora"
    assert len(read.variants) == len(suggest.suggest(goal))
    assert run_command(["compare", "--suggest", goal, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["methods"]] == [found.name for found in suggest.suggest(goal)]


def test_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compare", "--suggest", "qualty"]) == 2
    assert "--suggest must be one of quality, memory, speed" in capsys.readouterr().err
    assert run_command(["compare"]) == 2
    assert "requires a comparison file" in capsys.readouterr().err
