"""Short runs of the campaigns of scripts/stress/faults.py, and the single faults that they have found."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from runs import Place
from stress import ROOT, damage
from stress.lab import fill, small_disk

from lrft.cli.main import run_command
from lrft.runs.folder import RunFolder
from lrft.utils import files

KEYS = ("adapter.dropout=0.2", "checkpoint.every=1", "evaluation.every=1", "training.max_steps=3")


def command(place: Place, *words: str) -> int:
    return run_command(["train", str(place.root / "recipe.yaml"), *KEYS, "--quiet", *words])


# --- the campaign itself ---


def test_killed_runs_end_as_the_one_that_was_left_alone() -> None:
    """One process warms up and forks the runs: killed at random, at the save, before single file operations."""
    sizes = ["--kills", "1", "--at-save", "4", "--signals", "0", "--steps", "2", "--minutes", "2"]
    words = [sys.executable, str(ROOT / "scripts/stress/faults.py"), "--only", "kills", *sizes, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    tried = {figure["name"]: figure["tried"] for figure in json.loads(done.stdout)}
    assert [tried[f"SIGKILL {when}"] for when in ("at random", "at the save", "before a file operation")] == [1, 2, 2]


def test_damaged_adapter_is_loaded_by_nobody(place: Place) -> None:
    """Files of an adapter cut, flipped, filled with NaN, emptied, removed, exchanged: every reader refuses."""
    run, other = place.train(*KEYS), place.train(*KEYS, "training.seed=7", out="other")
    lone, twin = place.root / "lone", place.root / "twin"
    shutil.copytree((run / "last").resolve(), lone)
    shutil.copytree((other / "last").resolve(), twin)
    planned = damage.plan(lone, twin, random.Random(0), at_least=60)
    assert len({path.name for path, _, _ in planned}) >= 5
    for path, kind, content in planned:
        ends = damage.refusals(place.root, lone, path, content)
        assert set(ends.values()) <= damage.REFUSED, (path.name, kind, ends)
    assert "loaded" in damage.refusals(place.root, lone, lone / "lrft.json", (lone / "lrft.json").read_bytes()).values()


def test_damaged_checkpoint_is_refused_by_name_and_passed_over_without(place: Place) -> None:
    run = place.train(*KEYS)
    expected = runs.tensors(run)
    checkpoint = (run / "last").resolve().parent
    path = checkpoint / "optimizer.safetensors"  # of a flipped bit in its data only a checksum can tell
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        with damage.Damaged(path, content):
            assert command(place, "--resume", str(checkpoint)) == 4
    path.write_bytes(b"")
    assert command(place, "--resume") == 0
    assert runs.differing(runs.tensors(run), expected) == []
    assert "skipped step-000003" in (run / "log.txt").read_text()


# --- a full disk ---


@pytest.mark.parametrize("room", [0, 60_000, 300_000])
def test_full_disk_loses_nothing(room: int, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """No room at all, not for the first checkpoint, not for a later one."""
    expected = runs.tensors(place.train(*KEYS))
    try:
        with small_disk(place.root / "disk", 16_000_000) as disk:
            run = disk / "run"
            ballast = fill(disk, leave=room)
            assert command(place, f"output_dir={run}") == 1
            said = capsys.readouterr().err
            assert "the disk is full" in said
            assert "Traceback" not in said
            assert not list(run.glob("checkpoints/.*"))
            ballast.unlink()
            again = ["--resume"] if (run / "run.json").exists() else []
            assert command(place, f"output_dir={run}", *again) == 0
            assert runs.differing(runs.tensors(run), expected) == []
    except PermissionError as error:
        pytest.skip(str(error))


def test_full_disk_at_merge_leaves_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train(*KEYS)
    try:
        with small_disk(place.root / "disk", 4_000_000) as disk:
            ballast = fill(disk, leave=50_000)
            assert run_command(["merge", str(run), "-o", str(disk / "merged")]) == 1
            assert "the disk is full (needs " in capsys.readouterr().err
            assert [path.name for path in disk.iterdir()] == ["ballast"]
            ballast.unlink()
            assert run_command(["merge", str(run), "-o", str(disk / "merged")]) == 0
    except PermissionError as error:
        pytest.skip(str(error))


# --- what a kill leaves behind, and what the next start makes of it ---


def state(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def test_half_written_files_are_swept_and_others_are_not(place: Place) -> None:
    run = place.train(*KEYS)
    before = state(run)
    left = ["run.json", "report.md", "metrics.jsonl"]
    for name in left:
        (run / f".{name}{files.UNFINISHED}abc123_x").write_text("half")
    (run / f".last{files.UNFINISHED}123").symlink_to("checkpoints/step-000003/adapter")
    (run / ".tmpAb12Cd").write_text("half of a safetensors file")
    mine = [run / ".last.txt", run / ".tmp-notes", run / f"notes{files.UNFINISHED}txt"]
    for path in mine:
        path.write_text("mine")
    assert command(place, "--resume") == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3
    for path in mine:
        path.unlink()
    assert state(run) == before


def test_start_killed_before_its_marker_can_be_repeated(place: Place) -> None:
    run = place.root / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / f".run.json{files.UNFINISHED}abc123_x").write_text('{"id"')
    assert command(place, "--resume") == 2
    assert command(place) == 0
    assert not list(run.glob(f".*{files.UNFINISHED}*"))


def test_links_follow_the_checkpoint_that_was_saved_before_a_kill(place: Place) -> None:
    """Killed between the rename of a checkpoint and the change of its links."""
    run = place.train(*KEYS)
    expected = {name: (run / name).readlink() for name in ("last", "best")}
    assert expected["best"] == expected["last"], "the loss falls all the way"
    for name in expected:
        files.point(run / name, run / "checkpoints/step-000002/adapter")
    shutil.rmtree(run / "checkpoints/step-000003")
    cut = place.root / "cut"
    shutil.copytree(run, cut, symlinks=True)
    files.point(cut / "best", cut / "checkpoints/step-000001/adapter")  # step 2 was the best, and its link is missing
    assert command(place, f"output_dir={cut}", "--resume", "training.max_steps=3") == 0
    assert {name: (cut / name).readlink() for name in expected} == expected
    with RunFolder.open(run, resume=True, fresh=False) as folder:
        files.point(run / "best", run / "checkpoints/step-000001/adapter")
        folder.take_up(run / "checkpoints/step-000002", best_step=2, keep=9)
    assert (run / "best").readlink() == Path("checkpoints/step-000002/adapter")


def test_checkpoint_that_was_being_replaced_comes_back(place: Place) -> None:
    """The same step is saved again after a resume from an earlier one; killed between the two renames."""
    run = place.train(*KEYS)
    expected = runs.tensors(run)
    checkpoints = run / "checkpoints"
    (checkpoints / "step-000003").rename(checkpoints / ".replaced-step-000003")
    assert command(place, "--resume") == 0
    assert runs.differing(runs.tensors(run), expected) == []
    assert "resumed from step-000003" in (run / "log.txt").read_text()
    shutil.copytree(checkpoints / "step-000003", checkpoints / ".replaced-step-000003")
    assert command(place, "--resume") == 0
    assert not (checkpoints / ".replaced-step-000003").exists()


def test_what_was_saved_last_is_the_last(place: Place) -> None:
    """After going back to step 1 with other settings, step 3 of the first try is not what --resume means."""
    run = place.train(*KEYS, "checkpoint.keep=9")
    first_try = runs.tensors(run)
    other = ("training.learning_rate=0.02", "--accept-changes", "checkpoint.keep=9", "--resume")
    with pytest.MonkeyPatch.context() as patch:
        runs.add_parts(patch, runs.At("before_step", 2, lambda run: os.kill(os.getpid(), signal.SIGTERM)))
        assert command(place, *other, str(run / "checkpoints/step-000001")) == 143
    assert runs.steps(run) == [1, 2, 3]
    (run / "log.txt").unlink()
    assert command(place, *other) == 0
    assert "resumed from step-000002" in (run / "log.txt").read_text()
    assert runs.differing(runs.tensors(run), first_try)


def test_killed_merge_is_swept_by_the_next_and_a_living_one_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / f".out{files.UNFINISHED}1").mkdir()
    (tmp_path / f".out{files.UNFINISHED}1" / "half").write_text("x")
    with files.scratch_for(out) as first:
        assert [path.name for path in tmp_path.iterdir()] == [first.name]
        living = first.rename(tmp_path / f".out{files.UNFINISHED}2")
        with files.scratch_for(out):
            assert living.is_dir()
        living.rename(first)
    assert list(tmp_path.iterdir()) == []
