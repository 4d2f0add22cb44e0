"""`--verbose`: what is done and what libraries log, on the standard error; and how far long work is."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs

from lrft.cli.main import run_command
from lrft.cli.progress import shown
from lrft.model.load import quiet
from lrft.tracking import console
from lrft.utils import slow


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loggers as they were, afterwards."""
    from transformers.utils import logging as of_transformers

    monkeypatch.setenv(slow.VERBOSE, "")
    root, level, theirs = logging.getLogger(), logging.getLogger().level, of_transformers.get_verbosity()
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    of_transformers.set_verbosity(theirs)


@pytest.mark.usefixtures("unlogged")
def test_a_run_logs_what_it_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runs.Place.make(tmp_path)
    words = ["train", str(tmp_path / "recipe.yaml"), "training.max_steps=1", "training.warmup_steps=0"]
    assert run_command(words) == 0
    assert "lrft:" not in capfd.readouterr().err
    logging.getLogger().handlers.clear()  # pytest's own, beside which no other is put
    assert run_command([*words, "--fresh", "--verbose"]) == 0
    said = capfd.readouterr().err
    for phrase in ("lrft: loading the base model: ", "lrft: initialising the adapters", "lrft: saving, at step 1"):
        assert phrase in said
    assert slow.verbose()  # of processes that are started from here


@pytest.mark.usefixtures("unlogged")
def test_transformers_is_silent_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as of_transformers

    with quiet():
        assert of_transformers.get_verbosity() == logging.ERROR
    monkeypatch.setenv(slow.VERBOSE, "1")
    with quiet():
        assert of_transformers.get_verbosity() == logging.INFO


def test_merge_and_export_say_how_far_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain lines, on the standard error alone; none for what is fast."""
    run = runs.Place.make(tmp_path).train("training.max_steps=1")
    merge = ["merge", str(run), "--no-verify", "--json"]
    assert run_command([*merge, "-o", str(tmp_path / "fast")]) == 0
    assert "tensors" not in capsys.readouterr().err
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.0)
    assert run_command([*merge, "-o", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr()
    assert "merging, tensors: 1 of " in said.err
    json.loads(said.out)
    assert run_command(["export", str(run), "--to", "lora", "rank=4"]) == 0
    assert "cutting updates to a rank: 3 of 14" in capsys.readouterr().err


def test_nobody_watches_behind_the_context(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.0)
    with shown():
        slow.tell("counting", 1, 2)
        slow.tell("counting", 2, 2)  # the end is told by what follows
    slow.tell("counting", 1, 3)
    assert capsys.readouterr().err == "counting: 1 of 2\n"
