"""The folder of a run: never overwritten, used by one process, resumed from what is whole and its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Place

from lrft.cli.main import run_command
from lrft.errors import CheckFailed, LrftError, UsageError
from lrft.runs.folder import RunFolder
from lrft.utils import files

OFTEN = ("checkpoint.every=1", "checkpoint.keep=9", "training.max_steps=4")


def listing(folder: Path) -> dict[str, Any]:
    """Every file with its bytes and every link with its target."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def log(run: Path) -> str:
    """log.txt without the ends of its lines."""
    return " ".join((run / "log.txt").read_text().split())


def command(place: Place, *arguments: str) -> int:
    return run_command(["train", str(place.root / "recipe.yaml"), "training.max_steps=2", *arguments])


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A folder on a file system of its own. Skips where this user cannot mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


# --- what is there already ---


def test_a_run_is_not_overwritten(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(place) == 0
    before = listing(place.root / "run")
    capsys.readouterr()
    assert command(place) == 2
    said = capsys.readouterr().err
    assert "already contains a run" in said
    assert "--resume" in said
    assert "--fresh" in said
    assert listing(place.root / "run") == before


def test_fresh_moves_the_earlier_run_aside(place: Place) -> None:
    place.train("training.max_steps=2")
    before = listing(place.root / "run")
    for n in (1, 2):
        place.train("training.max_steps=2", f"training.seed={n}", fresh=True)
        assert f"the earlier run was moved to {place.root / 'run'}.{n}" in log(place.root / "run")
    first = listing(place.root / "run.1")
    first.pop(".lock"), before.pop(".lock")
    assert first == before
    ids = [files.read_json(place.root / name / "run.json")["id"] for name in ("run", "run.1", "run.2")]
    assert len(set(ids)) == 3


def test_fresh_without_an_earlier_run_is_an_ordinary_start(place: Place) -> None:
    place.train("training.max_steps=2", fresh=True)
    assert not (place.root / "run.1").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_not_touched(place: Place, fresh: bool) -> None:
    (place.root / "run").mkdir()
    (place.root / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and not a run of lrft"):
        place.train(fresh=fresh)
    assert listing(place.root / "run") == {"thesis.tex": b"years of work"}


def test_an_empty_folder_is_taken(place: Place) -> None:
    (place.root / "run").mkdir()
    place.train("training.max_steps=1")


def test_a_start_that_failed_at_once_can_be_repeated(place: Place) -> None:
    (place.root / "run" / "checkpoints").mkdir(parents=True)
    (place.root / "run" / ".lock").write_text("process 1 on elsewhere")
    place.train("training.max_steps=1")


def test_output_that_is_a_file_is_refused(place: Place) -> None:
    (place.root / "run").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        place.train()
    assert (place.root / "run").read_text() == "a file"


def test_output_below_a_file_is_refused(place: Place) -> None:
    (place.root / "file").write_text("a file")
    with pytest.raises(UsageError, match="file"):
        place.train(out="file/run")


def test_unwritable_place_is_refused_before_anything_is_loaded(place: Place, small_disk: Path) -> None:
    remounted = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, check=False)
    if remounted.returncode:
        pytest.skip("nothing can be made read-only for this user")
    shutil.rmtree(place.root / "base")  # never looked for
    with pytest.raises(UsageError, match="writing is not permitted"):
        place.train(out="disk/run")


def test_nothing_to_resume(place: Place) -> None:
    with pytest.raises(UsageError, match="has no run to resume"):
        place.train(resume="last")
    assert not (place.root / "run").exists()


# --- one process at a time ---

HOLDER = """
import sys
from pathlib import Path
from lrft.runs.folder import RunFolder
with RunFolder.open(Path(sys.argv[1]), resume=True, fresh=False) as folder:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("options", [{"resume": "last"}, {"fresh": True}])
def test_a_second_process_is_locked_out(place: Place, options: dict[str, Any]) -> None:
    run = place.train("training.max_steps=2")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        before = listing(run)
        (place.root / "base").rename(place.root / "away")  # nothing is loaded before it is said
        with pytest.raises(LrftError, match=f"is in use by another lrft .process {holder.pid} on"):
            place.train("training.max_steps=2", **options)
        (place.root / "away").rename(place.root / "base")
        assert listing(run) == before
        holder.stdin.close()
    place.train("training.max_steps=2", resume="last")  # the lock ends with its process


# --- which checkpoints stay ---


def save(folder: RunFolder, step: int, *, keep: int, best: bool) -> None:
    def write(path: Path) -> None:
        (path / "adapter").mkdir()
        (path / "adapter" / "tensors").write_bytes(bytes([step]))

    folder.save(step, write, keep=keep, best=best)


@given(losses=st.lists(st.integers(0, 5), min_size=1, max_size=12), keep=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_rotation_keeps_the_newest_the_best_and_the_last(
    tmp_path_factory: pytest.TempPathFactory, losses: list[int], keep: int
) -> None:
    """Trust 42."""
    run = tmp_path_factory.mktemp("rotation") / "run"
    with RunFolder.open(run, resume=False, fresh=False) as folder:
        best_step, best_loss = 0, 99
        for step, loss in enumerate(losses, start=1):
            if loss < best_loss:
                best_step, best_loss = step, loss
            save(folder, step, keep=keep, best=best_step == step)
            assert set(runs.steps(run)) == {*range(max(1, step - keep + 1), step + 1), best_step}
            assert (run / "last/tensors").read_bytes() == bytes([step])
            assert (run / "best/tensors").read_bytes() == bytes([best_step])
            folder.verify(run / "checkpoints" / f"step-{step:06d}")
    shutil.rmtree(run)


def test_a_checkpoint_that_fails_leaves_nothing_and_takes_nothing(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", resume=False, fresh=False) as folder:
        save(folder, 1, keep=1, best=True)
        before = listing(tmp_path / "run")

        def fail(path: Path) -> None:
            (path / "half").write_bytes(b"...")
            raise RuntimeError("crash")

        with pytest.raises(RuntimeError):
            folder.save(2, fail, keep=1, best=True)
        assert listing(tmp_path / "run") == before


def test_links_are_relative_so_that_a_run_can_be_moved(place: Place) -> None:
    run = place.train("training.max_steps=2")
    run.rename(place.root / "elsewhere")
    assert (place.root / "elsewhere/best/lrft.json").is_file()
    assert (place.root / "elsewhere/last/lrft.json").is_file()


# --- which checkpoint a run is resumed from ---


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"missing": Path.unlink, "cut": cut_in_half, "flipped": flip_a_bit}


def test_a_damaged_checkpoint_is_never_used(place: Place) -> None:
    """Every file of the newest checkpoint, damaged in every way: found, named, and passed over."""
    run = place.train(*OFTEN)
    folder = RunFolder.open(run, resume=True, fresh=False)
    newest = folder.checkpoints()[-1]
    assert newest.name == "step-000004"
    parts = [p for p in newest.rglob("*") if p.is_file()]
    assert len(parts) >= 9  # adapter, tokenizer, optimizer, parts, trainer, manifest
    for part in parts:
        whole = part.read_bytes()
        for word, damage in DAMAGES.items():
            damage(part)
            folder.warnings.clear()
            assert folder.resume_from("last").name == "step-000003", (part, word)
            (warning,) = folder.warnings
            assert warning.startswith("skipped step-000004: "), (part, word)
            if part.name != "manifest.json":
                assert str(part) in warning
            with pytest.raises(CheckFailed):
                folder.resume_from(str(newest))
            part.write_bytes(whole)
    folder.warnings.clear()
    assert folder.resume_from("last") == newest
    assert folder.warnings == []
    folder.close()


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    """A flipped bit anywhere leaves a sound checkpoint or a clear refusal, never another exception."""
    with RunFolder.open(tmp_path / "run", resume=False, fresh=False) as folder:
        save(folder, 1, keep=1, best=False)
        manifest = tmp_path / "run/checkpoints/step-000001/manifest.json"
        whole = manifest.read_bytes()
        refused = 0
        for at in range(len(whole)):
            for bit in (0, 1, 5):
                manifest.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
                try:
                    folder.verify(manifest.parent)
                except CheckFailed:
                    refused += 1
        assert refused > len(whole)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"run": 1, "files": {"a": 3}}', '{"run": 1, "files": []}'])
def test_manifest_of_another_shape(tmp_path: Path, content: str) -> None:
    with RunFolder.open(tmp_path / "run", resume=False, fresh=False) as folder:
        save(folder, 1, keep=1, best=False)
        checkpoint = tmp_path / "run/checkpoints/step-000001"
        (checkpoint / "manifest.json").write_text(content)
        with pytest.raises(CheckFailed, match="is not a valid manifest"):
            folder.verify(checkpoint)


def test_resume_after_damage_warns_and_ends_as_the_whole_run(place: Place) -> None:
    run = place.train(*OFTEN)
    expected = runs.tensors(run)
    flip_a_bit(run / "checkpoints/step-000004/optimizer.safetensors")
    (run / "checkpoints/step-000003/trainer.json").unlink()
    place.train(*OFTEN, resume="last")
    said = log(run)
    assert "skipped step-000004" in said
    assert "skipped step-000003" in said
    assert "resumed from step-000002" in said
    assert runs.differing(runs.tensors(run), expected) == []


def test_resume_from_a_damaged_path_is_an_error(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train(*OFTEN)
    cut_in_half(run / "checkpoints/step-000002/adapter/adapter_model.safetensors")
    arguments = ("--resume", str(run / "checkpoints/step-000002"), *OFTEN)
    assert command(place, *arguments) == 4
    assert "step-000002/adapter/adapter_model.safetensors has" in capsys.readouterr().err


def test_resume_from_a_path_and_from_the_best(place: Place) -> None:
    keys = (*OFTEN, "evaluation.every=1")
    run = place.train(*keys)
    expected = runs.tensors(run)
    place.train(*keys, resume=str(run / "checkpoints/step-000002"))
    assert runs.differing(runs.tensors(run), expected) == []
    assert [r["step"] for r in runs.records(run)] == [1, 2, 3, 4]
    place.train(*keys, resume="best")
    assert runs.differing(runs.tensors(run), expected) == []


def test_last_is_what_was_saved_last_not_the_highest_number(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run taken up from an earlier step, under changed settings, and broken off again."""

    def fail(run: Any) -> None:
        raise LrftError("power cut")

    run = place.train(*OFTEN)
    changed = (*OFTEN, "training.learning_rate=0.02")
    for reached, resumed in ((3, "step-000002"), (4, "step-000002"), (4, "step-000003")):
        with monkeypatch.context() as patch:
            runs.add_parts(patch, runs.At("after_backward", reached, fail))
            first = reached == 3
            with pytest.raises(LrftError, match="power cut"):
                place.train(
                    *changed,
                    resume=str(run / "checkpoints/step-000002") if first else "last",
                    accept_changes=first,
                )
        assert log(run).split("resumed from ")[-1].startswith(resumed)
    place.train(*changed, resume="last")
    assert [r["lr"] for r in runs.records(run)] == pytest.approx([0.005, 0.01, 0.02, 0.01])


def test_foreign_and_unfinished_checkpoints(place: Place) -> None:
    """Trust 40, 41. Planted: a higher number of another run, one without a manifest, and what a killed process left."""
    run = place.train(*OFTEN, "checkpoint.keep=2")
    expected = runs.tensors(run)
    other = place.train(*OFTEN, "training.seed=7", out="other")
    checkpoints = run / "checkpoints"
    shutil.copytree(other / "checkpoints/step-000004", checkpoints / "step-001000")
    shutil.copytree(other / "checkpoints/step-000003", checkpoints / "step-000900")
    (checkpoints / "step-000900/manifest.json").unlink()
    (checkpoints / ".unfinished-step-000005-123").mkdir()
    (checkpoints / "notes").mkdir()
    planted = listing(checkpoints / "step-001000")
    shutil.rmtree(checkpoints / "step-000004")
    place.train(*OFTEN, "checkpoint.keep=1", resume="last")
    said = log(run)
    assert "resumed from step-000003" in said
    assert "skipped step-001000" in said
    assert "belongs to another run" in said
    assert runs.differing(runs.tensors(run), expected) == []
    assert listing(checkpoints / "step-001000") == planted
    assert sorted(p.name for p in checkpoints.iterdir()) == ["notes", "step-000004", "step-000900", "step-001000"]


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any) -> None:
        raise LrftError("power cut")

    keys = (*OFTEN, "evaluation.every=2", "evaluation.at_start=true")
    with monkeypatch.context() as patch:
        runs.add_parts(patch, runs.At("after_backward", 1, fail))
        with pytest.raises(LrftError, match="power cut"):
            place.train(*keys)
    run = place.train(*keys, resume="last")
    assert "no checkpoint was saved" in log(run)
    whole = place.train(*keys, out="whole")
    assert runs.differing(runs.tensors(run), runs.tensors(whole)) == []
    assert runs.records(run, "eval") == runs.records(whole, "eval")


def test_no_whole_checkpoint(place: Place) -> None:
    run = place.train(*OFTEN)
    for path in (run / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    with pytest.raises(CheckFailed, match="has no complete checkpoint") as caught:
        place.train(*OFTEN, resume="last")
    assert "--fresh" in caught.value.hint


# --- what may have changed since ---


def test_a_changed_recipe_is_refused_with_every_difference(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Trust 35."""
    run = place.train(*OFTEN)
    shutil.rmtree(run / "checkpoints/step-000004")
    before = listing(run)
    changed = (*OFTEN, "training.learning_rate=0.02", "adapter.dropout=0.1")
    assert command(place, *changed, "--resume") == 2
    said = capsys.readouterr().err
    assert "training.learning_rate: was 0.01, is now 0.02" in said
    assert "adapter.dropout: was 0.0, is now 0.1" in said
    assert "--accept-changes" in said
    assert listing(run) == before
    assert command(place, *changed, "--resume", "--accept-changes") == 0
    assert [r["step"] for r in runs.records(run)] == [1, 2, 3, 4]
    assert "learning_rate: 0.02" in (run / "resolved.yaml").read_text()


def test_changed_data_are_refused(place: Place) -> None:
    run = place.train(*OFTEN)
    with (place.root / "train.jsonl").open("a") as file:
        file.write(json.dumps(runs.rows(1, seed=9)[0]) + "\n")
    with pytest.raises(UsageError, match=r"the data: was \w+, is now \w+"):
        place.train(*OFTEN, resume="last")
    shutil.rmtree(run / "checkpoints/step-000004")
    place.train(*OFTEN, resume="last", accept_changes=True)


def test_a_changed_base_is_refused(place: Place) -> None:
    place.train(*OFTEN)
    runs.save_base(place.root / "base", seed=1)
    with pytest.raises(UsageError, match=r"the base model: was \w+, is now \w+"):
        place.train(*OFTEN, resume="last")


def test_what_does_not_change_the_result_may_change(place: Place) -> None:
    run = place.train(*OFTEN)
    shutil.rmtree(run / "checkpoints/step-000004")
    place.train(*OFTEN, "training.micro_batch_size=1", "logging.every=2", "checkpoint.keep=1", resume="last")
    # What the recipe leaves open may be written out.
    place.train(*OFTEN, "data.max_length=256", "model.attention=sdpa", resume="last")


def test_a_rank_that_changed_does_not_fit(place: Place) -> None:
    place.train(*OFTEN)
    with pytest.raises(CheckFailed, match="does not match the adapter of this recipe"):
        place.train(*OFTEN, "adapter.rank=2", resume="last", accept_changes=True)


# --- a full disk ---


def test_full_disk(place: Place, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trust 43."""
    recipe = ("checkpoint.every=1", "training.max_steps=3", f"output_dir={small_disk / 'run'}")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(940_000))  # the run's own files fit, a checkpoint does not
    assert command(place, *recipe) == 1
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "Traceback" not in said
    run = small_disk / "run"
    assert not list((run / "checkpoints").iterdir())
    ballast.unlink()
    assert command(place, *recipe, "--resume") == 0
    assert [r["step"] for r in runs.records(run)] == [1, 2, 3]

    # Full again, after some checkpoints: what was whole stays, and the run goes on from it.
    shutil.rmtree(run)
    ballast.write_bytes(bytes(650_000))
    keep = ("checkpoint.keep=9", "training.max_steps=6")
    assert command(place, *recipe, *keep) == 1
    saved = runs.steps(run)
    assert saved
    ballast.unlink()
    assert command(place, *recipe, *keep[1:], "checkpoint.keep=1", "--resume") == 0
    assert [r["step"] for r in runs.records(run)] == [1, 2, 3, 4, 5, 6]
    expected = place.train("training.max_steps=6", out="elsewhere")
    assert runs.differing(runs.tensors(run), runs.tensors(expected)) == []
