"""`lrft tune` with real runs: what it finds, what it says, and how it is broken off and goes on."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import runs
from parsed import sound

import lrft
from lrft import recipe as recipes
from lrft.errors import LrftError, UsageError
from lrft.judging.data_files import data_files
from lrft.judging.side_by_side import Settings, compare
from lrft.training.run import train
from lrft.training.state import Options
from lrft.tuning.candidates import Candidate, Space
from lrft.tuning.page import render
from lrft.tuning.rungs import Cost, Rung
from lrft.tuning.search import Asked, Search, affordable, refuse_other_search

RECIPE = """\
# Mine.
model: base
adapter: lora  # the method
data:
  train: train.jsonl
  validation: validation.jsonl
training:
  epochs: 12  # 36 steps
  global_batch_size: 4
  micro_batch_size: 2
  warmup_steps: 9
  precision: fp32
output_dir: out
"""
RATES = (1e-3, 1e-2, 1e-1, 1e9)
FULL, SHORT = 36, 4


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lrft", "tune", "r.yaml", "--rates", ",".join(map(str, RATES)), *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(Path(lrft.__file__).parents[1]), "LRFT_CACHE": str(root / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tune(root: Path, *arguments: str) -> tuple[int, str]:
    process = start(root, *arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out + err


def facts(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "out-tune/tune.json").read_text())
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search over four rates, one of which diverges, in more time than it needs: (its folder, what was printed)."""
    root = tmp_path_factory.mktemp("tune")
    runs.Place.make(root)
    (root / "r.yaml").write_text(RECIPE)
    code, said = tune(root, "--budget", "9h")
    assert code == 0, said
    return root, said


@pytest.mark.all
def test_the_rate_that_is_found_is_the_best_of_a_grid_of_full_runs(
    tuned: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that went on are `lrft train`'s own runs, and the others are no better when they are trained in full."""
    root, _ = tuned
    monkeypatch.chdir(root)
    last = {one["rate"]: one["loss"] for one in facts(root)["tried"] if one["steps"] == FULL}
    assert len(last) == 2
    grid = {}
    for rate in RATES[:3]:
        keys = (f"training.learning_rate={rate}", "evaluation={every: 0.5, at_start: false}", f"output_dir=grid/{rate}")
        run = train(recipes.load("r.yaml", keys), Options(quiet=True, source=Path("r.yaml")))
        grid[rate] = min(record["loss"] for record in runs.records(run, "eval"))
    assert {rate: grid[rate] for rate in last} == pytest.approx(last, rel=1e-6)
    assert facts(root)["best"]["training.learning_rate"] == min(grid, key=lambda rate: grid[rate])


def test_a_rate_that_diverges_does_not_stop_it(tuned: tuple[Path, str]) -> None:
    root, said = tuned
    broken = [one for one in facts(root)["tried"] if one["rate"] == 1e9]
    assert [(one["loss"], one["state"]) for one in broken] == [(None, "diverged")]
    assert "diverged" in said
    assert facts(root)["rungs"] == [
        {"steps": SHORT, "candidates": 4},
        {"steps": 12, "candidates": 2},
        {"steps": FULL, "candidates": 2},
    ]


def test_the_result_is_the_users_recipe_with_the_rate(tuned: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = tuned
    monkeypatch.chdir(root)
    rate = facts(root)["best"]["training.learning_rate"]
    text = (root / "r-tuned.yaml").read_text()
    assert text == RECIPE.replace("training:\n", f"training:\n  learning_rate: {rate}\n")
    changed = recipes.differences(recipes.load("r.yaml"), recipes.load("r-tuned.yaml"))
    assert [(key, now) for key, _, now in changed] == [("training.learning_rate", rate)]


def test_what_is_said_of_the_best(tuned: tuple[Path, str]) -> None:
    """Its neighbours' intervals are those of `lrft eval --compare`, and the page shows curve and choice."""
    root, said = tuned
    found = facts(root)
    assert [one["rate"] for one in found["neighbours"]] == [1e-3, 1e-1]
    assert [one["steps"] for one in found["neighbours"]] == [SHORT, FULL]
    one = found["neighbours"][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        other = next(t["run"] for t in found["tried"] if (t["rate"], t["steps"]) == (1e-1, FULL))
        told = compare(found["best"]["run"], other, data_files([], {}), Settings(0, 4), lambda *_: lambda _: None)
    loss = told["data"]["validation"]["figures"]["loss"]
    assert (one["difference"], one["low"]) == pytest.approx((loss["difference"], loss["low"]))
    assert found["validation_rows"] == 5
    assert not found["on_border"]
    assert "5 validation rows" in " ".join(said.split())
    page = sound((root / "out-tune/tune.html").read_text())
    assert len(page.all("svg")) == 1
    assert [text for text in page.texts("title") if text.startswith("chosen: learning_rate 0.01: ")]
    assert [circle["class"] for circle in page.all("circle")].count("ring") == 1
    assert len(page.tables[0]) == 1 + len(found["tried"])


def test_the_same_command_trains_only_what_is_missing(tuned: tuple[Path, str], tmp_path: Path) -> None:
    """A search that was broken off in its last rung ends as it would have."""
    root = tmp_path / "again"
    shutil.copytree(tuned[0], root, symlinks=True)
    folder = root / "out-tune/runs/36-steps/learning_rate-0.01"
    shutil.rmtree(folder)
    folder.with_name("learning_rate-0.01.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in root.glob("out-tune/runs/*/*/run.json")}
    code, said = tune(root, "--budget", "9h")
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert said.count("validation loss") == 1
    assert facts(root)["best"] == facts(tuned[0])["best"]
    code, said = tune(root, "--budget", "8h")
    assert (code, "other budget" in said) == (2, True)


@pytest.mark.all
def test_a_signal_ends_the_search_and_the_same_command_goes_on(tuned: tuple[Path, str], tmp_path: Path) -> None:
    for name in ("base", "train.jsonl", "validation.jsonl", "r.yaml"):
        source = tuned[0] / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    process = start(tmp_path)
    while not list(tmp_path.glob("out-tune/runs/12-steps/*/run.json")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, "Run the same command again" in err) == (143, True)
    code, said = tune(tmp_path)
    assert code == 0, said
    assert facts(tmp_path)["best"]["loss"] == pytest.approx(facts(tuned[0])["best"]["loss"], rel=1e-6)


def space(root: Path, text: str = RECIPE) -> Space:
    (root / "s.yaml").write_text(text)
    return Space(root / "s.yaml")


class Known(Search):
    """A search whose runs' losses are told beforehand."""

    def loss(self, candidate: Candidate, steps: int) -> float:
        return abs(math.log10(candidate.rate / 3e-6))


def test_the_range_grows_while_the_best_is_on_its_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrft.tuning import search as module

    candidates = tuple(Candidate(rate) for rate in (1e-4, 1e-3))
    search = Known(space(tmp_path), Asked(candidates, None, 1), tmp_path / "out", FULL, None, [Rung(4, 2)])
    trained: list[float] = []

    def train_rung(search: Search, more: Any, steps: int, *_: Any) -> None:
        trained.extend(search.job(one, steps).recipe.training.learning_rate for one in more)

    monkeypatch.setattr(module, "train_rung", train_rung)
    train_rung(search, candidates, 4)
    with module.Reporter(None, quiet=True) as reporter:
        module.extend(search, 4, None, None, reporter)  # type: ignore[arg-type]
    assert trained == [1e-4, 1e-3, 3.2e-5, 1e-5]  # as many as time is kept for
    assert module.best_of(search)[0].rate == 1e-5


def test_runs_of_a_rung_are_the_recipe_but_for_their_length(tmp_path: Path) -> None:
    found = space(tmp_path)
    job = found.job(Candidate(1e-3, 4, "dora"), 12, FULL, tmp_path / "out")
    own = job.recipe.training
    assert (own.max_steps, own.warmup_steps, own.learning_rate) == (12, 3, 1e-3)
    assert (job.recipe.adapter.rank, job.recipe.adapter.method[0].name) == (4, "dora")
    whole = found.job(Candidate(1e-3), FULL, FULL, tmp_path / "out").recipe.training
    assert whole == found.of(Candidate(1e-3)).training


def test_a_rung_that_does_not_fit_any_more_is_left_out(tmp_path: Path) -> None:
    """By what the runs have taken: twice as long as planned here."""
    asked = Asked((Candidate(1e-3), Candidate(1e-2)), 100.0, 1)
    search = Search(space(tmp_path), asked, tmp_path / "out", FULL, Cost(1.0, 1.0))
    for candidate in asked.candidates:
        job = search.job(candidate, 4)
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        job.note(seconds=10.0)
    assert affordable(search, Rung(19, 2))  # 2 x (19 + 1) x 2 = 80 of the 80 that are left
    assert not affordable(search, Rung(20, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RECIPE.replace("validation: validation.jsonl", "validation: none"), "leaves no rows"),
        (RECIPE.replace("epochs", "epoch"), "epoch"),
    ],
)
def test_recipes_that_cannot_be_tuned_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LrftError, match=said):
        space(tmp_path, text)


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    refuse_other_search(tmp_path, Asked((Candidate(1e-3),), None, 1))
    refuse_other_search(tmp_path, Asked((Candidate(1e-3),), None, 1))
    with pytest.raises(UsageError, match="other candidates"):
        refuse_other_search(tmp_path, Asked((Candidate(1e-2),), None, 1))


def test_a_page_with_ranks_and_methods() -> None:
    tried = [
        {"label": f"{m} {r:g}", "rate": r, "rank": k, "method": m, "steps": 4, "loss": r * k, "state": "finished"}
        | {"said": "", "run": "x"}
        for m in ("lora", "<dora>")
        for k in (4, 8)
        for r in (1e-3, 1e-2)
    ]
    best = {
        "training.learning_rate": 1e-3,
        "adapter.rank": 4,
        "adapter.method": "lora",
        "steps": 4,
        "loss": 0.004,
        "run": "x",
    }
    page = sound(
        render(
            {"recipe": "<r>", "best": best, "tried": tried, "rungs": [{"steps": 4, "candidates": 8}]}
            | {"remarks": ["<one>"], "seconds": 61.0, "budget_seconds": 1800.0}
        )
    )
    assert page.texts("figcaption") == ["lora, rank 4", "lora, rank 8", "<dora>, rank 4", "<dora>, rank 8"]
    assert "chosen: learning_rate 0.001, rank 4, method lora" in page.texts("span")
    assert "<one>" in page.texts("li")
