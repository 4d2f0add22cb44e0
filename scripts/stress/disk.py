"""Disks that become full, folders that cannot be written, and two runs that want the same one."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from stress.lab import Lab, Outcome, differing, digest, fill, small_disk, snapshot, state, watch
from stress.tally import Figure, Tally

DISK = 32_000_000
NOBODY = 65534
NEEDS_NO_ROOM = ("last", "best")  # a link lies in its folder
FULL = "the disk is full"


def campaign(tally: Tally, lab: Lab, rng: random.Random, sizes: int) -> None:
    whole = lab.root / "unhindered"
    if (outcome := lab.run(*lab.training(whole))).code:
        raise RuntimeError(outcome.text)
    expected = state(whole)
    cases: list[tuple[str, Callable[[Figure], None]]] = [
        ("disk full", lambda f: full_disks(tally, f, lab, expected, sizes)),
        ("disk full at each file", lambda f: full_at_each(f, lab, expected)),
        ("disk full at merge", lambda f: full_at_merge(f, lab, whole)),
        ("unwritable output", lambda f: unwritable(f, lab)),
        ("two runs, one folder", lambda f: two_runs(f, lab, rng, expected)),
    ]
    for name, case in cases:
        with tally.figure(name) as figure:
            try:
                case(figure)
            except PermissionError as error:
                figure.note(f"skipped: {error}")


def refused(figure: Figure, outcome: Outcome, codes: tuple[int, ...], words: str, what: str = "") -> None:
    """The command must have ended with one of `codes` and a sentence that holds `words`."""
    if outcome.code not in codes or words not in outcome.text or outcome.traceback:
        figure.wrong(f"{what}: wanted exit code {codes} and '{words}', got {outcome.code}: {outcome.text[-300:]}")


def full_disks(tally: Tally, figure: Figure, lab: Lab, expected: dict[str, object], sizes: int) -> None:
    """Room for nothing, for a little more, ... for all but the last file: the disk is full everywhere once."""
    with small_disk(lab.root / "disk", DISK) as disk:
        run = disk / "run"
        peak = room_needed(lab, disk, run)
        for n in range(sizes):
            if tally.over:
                return
            figure.tried += 1
            ballast = fill(disk, leave=n * peak // sizes)
            outcome = lab.run(*lab.training(run))
            refused(figure, outcome, (1,), FULL)
            figure.note(f"at {where_full(outcome)}")
            names = sorted(path.name for path in run.glob("checkpoints/.*")) if run.exists() else []
            if names:
                figure.wrong(f"left half written: {', '.join(names)}")
            ballast.unlink()
            retried(figure, lab, run, expected)
            shutil.rmtree(run)


def room_needed(lab: Lab, disk: Path, run: Path) -> int:
    """The most bytes that a run has on the disk at any moment: it succeeds with that much, and nearly with less."""
    low, high = 0, DISK // 2
    while high - low > 16_384:
        middle = (low + high) // 2
        ballast = fill(disk, leave=middle)
        low, high = (low, middle) if lab.run(*lab.training(run)).code == 0 else (middle, high)
        ballast.unlink()
        shutil.rmtree(run, ignore_errors=True)
    return low


def where_full(outcome: Outcome) -> str:
    """The name of what did not fit, from the message."""
    line = next((line for line in outcome.text.splitlines() if FULL in line), "?")
    return Path(line.split(":")[0]).name.removesuffix(":") or "?"


def retried(figure: Figure, lab: Lab, run: Path, expected: dict[str, object]) -> None:
    begun = (run / "run.json").is_file()
    outcome = lab.run(*lab.training(run, *(["--resume"] if begun else [])))
    if outcome.code:
        figure.wrong(f"the retry failed with {outcome.code}: {outcome.text[-300:]}")
    elif changed := differing(state(run), expected):
        figure.wrong(f"after the retry not the unhindered run: {changed}")


def full_at_each(figure: Figure, lab: Lab, expected: dict[str, object]) -> None:
    """Nothing is left at the very moment when a file is begun: each of a run's own files once."""
    with small_disk(lab.root / "disk", DISK) as disk:
        run = disk / "run"
        for name in (".lock", *sorted(set(expected["names"]) - {"checkpoints", ".lock"}), "manifest", "trainer.json"):
            figure.tried += 1

            def act(n: int, names: str, name: str = name) -> None:
                named = f"/{name}" in names or f"/.{name}." in names
                if named and not (disk / "ballast").exists():
                    fill(disk, leave=0)

            outcome = lab.start(*lab.training(run), before=watch(run, act)).wait()
            if name in NEEDS_NO_ROOM and outcome.code == 0:
                figure.note("without need of room")
            else:
                figure.note("refused")
                refused(figure, outcome, (1,), FULL, f"no room for {name}")
            (disk / "ballast").unlink()
            retried(figure, lab, run, expected)
            shutil.rmtree(run)


def full_at_merge(figure: Figure, lab: Lab, whole: Path) -> None:
    merge = ("merge", str(whole))
    with small_disk(lab.root / "disk", DISK) as disk:
        plain = disk / "plain"
        if (outcome := lab.run(*merge, "-o", str(plain))).code:
            raise RuntimeError(outcome.text)
        size = sum(path.stat().st_size for path in plain.iterdir())
        held = contents(plain)
        shutil.rmtree(plain)
        before = snapshot([whole])
        out = disk / "merged"
        for eighth in range(8):
            figure.tried += 1
            ballast = fill(disk, leave=size * eighth // 8)
            refused(figure, lab.run(*merge, "-o", str(out)), (1,), FULL)
            ballast.unlink()
            if [path.name for path in disk.iterdir()]:
                figure.wrong("something was left of the merge that failed")
            outcome = lab.run(*merge, "-o", str(out))
            if outcome.code or (changed := differing(contents(out), held)):
                figure.wrong(f"the retry: exit code {outcome.code}, {changed}")
            shutil.rmtree(out)
        if snapshot([whole]) != before:
            figure.wrong("the run's own files were touched")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in folder.iterdir()}


def unwritable(figure: Figure, lab: Lab) -> None:
    """Each is refused before anything is written. Root may write anywhere: those cases run as nobody."""
    cases = lab.root / "unwritable"
    cases.mkdir()
    file = cases / "file"
    file.write_text("mine")
    other = cases / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    closed = cases / "closed"
    closed.mkdir(mode=0o555)
    before = snapshot([cases])
    for output, words, uid in [
        (file, "is a file", None),
        (file / "run", "is a file", None),
        (other, "is not empty and not a run of lrft", None),
        (closed / "run", "writing is not permitted", NOBODY),
        (closed, "writing is not permitted", NOBODY),
    ]:
        figure.tried += 1
        outcome = lab.run(*lab.training(output), uid=uid)
        refused(figure, outcome, (2,), words)
        if outcome.seconds > 1.0:
            figure.wrong(f"{output}: refused only after {outcome.seconds:.1f} s, not before the model is loaded")
        refused(figure, lab.run(*lab.training(output, "--fresh"), uid=uid), (2,), words)
    if snapshot([cases]) != before:
        figure.wrong("something was written where nothing may be")


def two_runs(figure: Figure, lab: Lab, rng: random.Random, expected: dict[str, object]) -> None:
    """While one goes on, others are refused; of two started at once, one runs. The one that runs is not disturbed."""
    for word in ("", "--resume", "--fresh"):
        figure.tried += 1
        run = lab.root / f"shared{word}"
        first = lab.start(*lab.training(run))
        while not first.ended and not any(run.glob("checkpoints/step-*")):
            time.sleep(0.001)
        second = lab.run(*lab.training(run, *([word] if word else [])))
        refused(figure, second, (1, 2), "in use by another lrft (process" if word else "already contains a run")
        if first.wait().code or (changed := differing(state(run), expected)):
            figure.wrong(f"the first run was disturbed by {word or 'a second start'}: {changed}")
    for n in range(3):
        figure.tried += 1
        run = lab.root / f"race-{n}"
        first = lab.start(*lab.training(run))
        time.sleep(rng.uniform(0, 0.02))
        second = lab.start(*lab.training(run))
        outcomes = sorted((first.wait(), second.wait()), key=lambda outcome: outcome.code)
        if outcomes[0].code or outcomes[1].code not in (1, 2) or outcomes[1].traceback:
            figure.wrong(f"two started at once: {outcomes[0].last_line}; {outcomes[1].last_line}")
        elif changed := differing(state(run), expected):
            figure.wrong(f"two started at once: {changed}")
