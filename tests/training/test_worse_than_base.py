"""A run that is no better than its untouched base: said last, no best/ link, exit code 4; what commands then take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
from runs import Place

from lrft import recipe as recipes
from lrft.cli.main import run_command
from lrft.compare import queries
from lrft.compare.jobs import Job
from lrft.errors import CheckFailed
from lrft.runs.locate import adapter_of, choice_note
from lrft.runs.verdict import worse_at_the_end, worse_than_base
from lrft.training.checkpoint import progress_of
from lrft.training.state import Progress
from lrft.training.validation import note_loss
from lrft.utils import files

EVALUATED = ("evaluation.every=3", "evaluation.at_start=true", "checkpoint.every=2")
WORSE = (*EVALUATED, "training.learning_rate=3", "training.warmup_steps=0", "training.max_grad_norm=none")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("worse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRFT_CACHE", str(root / "cache"))
        yield Place.make(root)


@pytest.fixture(scope="module")
def worse(place: Place) -> Path:
    with pytest.raises(CheckFailed, match="worse than the untouched base"):
        place.train(*WORSE, out="worse")
    return place.root / "worse"


def test_it_is_said_last_and_there_is_no_best(worse: Path) -> None:
    """Trust 54."""
    found = files.read_json(worse / "run.json")["result"]
    evals = {record["step"]: record for record in runs.records(worse, "eval")}
    assert (found["best step"], found["best validation loss"]) == (0, evals[0]["loss"])
    assert found["last validation loss"] == evals[6]["loss"] > evals[0]["loss"]
    assert [record["best"] for record in evals.values()] == [True, False, False]
    assert not (worse / "best").is_symlink()
    assert (worse / "last/lrft.json").is_file()
    words = f"validation loss {evals[6]['loss']:.4f} at the end, {evals[0]['loss']:.4f} before the first step"
    last = (worse / "log.txt").read_text().splitlines()[-2:]
    assert words in last[0], last
    assert "worse than the untouched base" in (worse / "report.md").read_text().split("##")[0]


def test_the_command_ends_with_4_and_the_words(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    keys = (*WORSE, f"output_dir={place.root / 'command'}")
    assert run_command(["train", str(place.root / "recipe.yaml"), *keys]) == CheckFailed.exit_code
    out, err = capsys.readouterr()
    assert "worse than the untouched base" in err
    assert "best so far" not in out
    assert "no best/" in out
    assert "lrft merge" not in out


def test_a_resume_at_any_step_says_the_same(place: Place, worse: Path) -> None:
    cut = runs.cut(worse, 4, place.root / "cut")
    files.point(cut / "best", cut / "checkpoints/step-000004/adapter")  # as an earlier version left it
    (cut / "report.md").unlink()
    with pytest.raises(CheckFailed, match="worse than the untouched base"):
        place.train(*WORSE, out="cut", resume="last", accept_changes=True)
    assert not (cut / "best").is_symlink()
    assert files.read_json(cut / "run.json")["result"] == files.read_json(worse / "run.json")["result"]


def test_commands_take_the_last_state_and_say_so(worse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adapter_of(worse) == worse / "last"
    assert "last/ is taken all the same" in choice_note(worse, worse / "last")
    assert choice_note(worse / "last", worse / "last") == ""
    assert run_command(["eval", str(worse), "--no-generate", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "worse than the untouched base" in err
    last = files.read_json(worse / "run.json")["result"]["last validation loss"]
    assert json.loads(out)["loss"] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_a_comparison_ranks_by_the_state_that_there_is(worse: Path, metric: str) -> None:
    job: Any = Job.__new__(Job)
    object.__setattr__(job, "folder", worse)
    found = files.read_json(worse / "run.json")["result"]
    measured = queries.metric_of(job, "loss")
    assert measured == found["last validation loss"] > found["validation loss at the start"]
    assert job.state == "finished"


def test_a_run_that_improves_has_no_verdict_and_its_best_is_not_the_start(place: Place) -> None:
    run = place.train(*EVALUATED, out="better")
    found = files.read_json(run / "run.json")["result"]
    assert found["best step"] > 0
    assert worse_than_base(found) == ""
    assert adapter_of(run) == run / "best"
    assert choice_note(run, run / "best") == ""


def test_a_resume_evaluates_after_the_same_steps(place: Place) -> None:
    """What auto has decided stands in resolved.yaml, and holds whatever the micro-batch is then."""
    keys = ("evaluation.every=auto", "evaluation.at_start=true", "checkpoint.every=2")
    run = place.train(*keys, out="auto")
    evaluated = [record["step"] for record in runs.records(run, "eval")]
    assert evaluated == [0, 6]
    assert recipes.load(run / "resolved.yaml").evaluation.every == 6
    cut = runs.cut(run, 4, place.root / "auto-cut")
    place.train(*keys, "training.micro_batch_size=1", out="auto-cut", resume="last")
    assert [record["step"] for record in runs.records(cut, "eval")] == evaluated


START, BEST, LAST = "validation loss at the start", "best validation loss", "last validation loss"


@pytest.mark.parametrize(
    ("result", "verdict", "warned"),
    [
        ({START: 4.28, BEST: 4.28, LAST: 8.69, "best step": 0}, "worse than", False),
        ({START: 4.28, BEST: 4.28, LAST: 4.28, "best step": 0}, "no better than", False),
        ({START: 4.28, BEST: 3.0, LAST: 8.69, "best step": 7}, "", True),
        ({START: 4.28, BEST: 3.0, LAST: 3.1, "best step": 7}, "", False),
        ({START: 4.28, BEST: 4.28, LAST: None, "best step": 0}, "", False),  # nothing was trained yet
        ({START: None, BEST: 3.0, LAST: 3.0, "best step": 7}, "", False),
        ({START: 4.28, BEST: 8.69, "best step": 7}, "worse than", False),  # of an earlier version
        ({START: 4.28, BEST: 3.0, "best step": 7}, "", False),
        ({}, "", False),
    ],
)
def test_the_verdict_of_new_and_old_runs(result: dict[str, Any], verdict: str, warned: bool) -> None:
    assert worse_than_base(result).startswith(verdict)
    assert bool(worse_than_base(result)) == bool(verdict)
    assert bool(worse_at_the_end(result)) == warned


def test_the_base_is_the_first_to_be_beaten() -> None:
    from lrft.recipe import EarlyStopping

    progress, stopping = Progress(), EarlyStopping(patience=2)
    best = []
    for step, loss in ((0, 4.0), (1, 5.0), (2, 4.5), (3, 3.0), (4, 3.5)):
        progress.step = step
        best.append(note_loss(progress, loss, stopping))
    assert best == [True, False, False, True, False]
    assert (progress.best_step, progress.start_loss, progress.last_loss) == (3, 4.0, 3.5)
    assert progress.stale == 1, "counted from the start, and anew from step 3"


def test_progress_of_an_earlier_version_is_corrected() -> None:
    old = {"step": 9, "tokens": 1, "start_loss": 4.0, "best_loss": 5.0, "best_step": 3}
    assert (progress_of(old).best_loss, progress_of(old).best_step) == (4.0, 0)
    good = progress_of({**old, "best_loss": 3.0})
    assert (good.best_loss, good.best_step) == (3.0, 3)
    assert progress_of({**old, "start_loss": None}).best_step == 3
