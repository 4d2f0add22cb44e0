"""Processes killed and stopped: at random moments, at the save, before single file operations, by signals."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from stress.lab import Child, Lab, Outcome, differing, digest, plant, snapshot, state, unplant, watch
from stress.tally import Figure, Tally

Break = Callable[..., Outcome]
# How a stopped run may end: it was quicker; it saved and said so; or Python died of the signal, before or after the
# loop that watches for it.
ENDINGS = {signal.SIGTERM: {0, 143, -signal.SIGTERM}, signal.SIGINT: {0, 130, -signal.SIGINT}}


class Kills:
    """Runs of one recipe that are killed and taken up again; each must end as the run that was left alone."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self.lab, self.rng = lab, rng
        self.run = lab.root / "runs" / "run"
        self.run.parent.mkdir()
        self.untouchable = [lab.root / name for name in ("base", "recipe.yaml", "train.jsonl", "validation.jsonl")]
        first, second = lab.root / "whole", lab.root / "again"
        counter = lab.root / "operations.txt"
        counting = watch(first, lambda n, names: counter.write_text(str(n)) and None)
        outcomes = [
            lab.start(*lab.training(first), before=counting).wait(),
            lab.run(*lab.training(second)),
        ]
        for outcome in outcomes:
            if outcome.code:
                raise RuntimeError(outcome.text)
        self.operations = int(counter.read_text())
        self.seconds = outcomes[1].seconds
        self.expected = state(first)
        if changed := differing(self.expected, state(second)):
            raise RuntimeError(f"two runs of one recipe differ: {changed}")

    # --- what happens to a run ---

    def begin(self, *more: str, fatal: int = 0) -> Child:
        """Killed right before its file operation number `fatal` (0: never)."""

        def act(n: int, names: str) -> None:
            if n == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        return self.lab.start(*self.lab.training(self.run, *more), before=watch(self.run, act))

    def killed_at_random(self, *more: str) -> Outcome:
        child = self.begin(*more)
        sleep_until(child, child.began + self.rng.uniform(0, self.seconds))
        child.kill()
        return child.wait()

    def killed_at_save(self, *more: str) -> Outcome:
        """Killed within a moment after the nth appearance of a half-written checkpoint, or of a link's new self."""
        child, appearance = self.begin(*more), self.rng.randint(1, self.lab.steps)
        there = False
        while appearance and not child.ended:
            was, there = there, self._half_written()
            appearance -= there and not was
        sleep_until(child, time.monotonic() + self.rng.uniform(0, 0.12))
        child.kill()
        return child.wait()

    def _half_written(self) -> bool:
        places = (self.run / "checkpoints", ".unfinished-"), (self.run, ".last."), (self.run, ".best.")
        for folder, start in places:
            try:
                if any(p.name.startswith(start) and p.suffix != ".txt" for p in folder.iterdir()):
                    return True
            except FileNotFoundError:
                continue
        return False

    # --- how it must end ---

    def trial(self, figure: Figure, broken: Break, again: Break | None = None) -> None:
        """A run broken off, looked at, perhaps broken off again, taken up with --resume and compared."""
        shutil.rmtree(self.run.parent)
        self.run.parent.mkdir()
        figure.tried += 1
        before = snapshot(self.untouchable)
        outcome = broken()
        if outcome.traceback:
            figure.wrong(f"a traceback: {outcome.last_line}")
        newest = self.inspect(figure, [])
        planted = plant(self.run) if newest else []
        foreign = snapshot(planted)
        if newest and again:
            figure.note("broken off twice")
            again("--resume")
            newest = max(self.inspect(figure, planted), newest)
        self.finish(figure, newest)
        if snapshot(planted) != foreign or snapshot(self.untouchable) != before:
            figure.wrong("foreign files were touched")
        unplant(planted)
        if (self.run / "run.json").is_file() and (changed := differing(state(self.run), self.expected)):
            figure.wrong(f"not the uninterrupted run (broken off after step {newest}): {changed}")

    def inspect(self, figure: Figure, planted: list[Path]) -> int:
        """The newest step that is saved. Checkpoints must be whole, links must lead to them."""
        from lrft.errors import CheckFailed
        from lrft.runs.folder import RunFolder
        from lrft.runs.metrics import read_metrics
        from lrft.utils import files

        if not (self.run / "run.json").is_file():
            return 0
        folder = RunFolder(self.run, files.read_json(self.run / "run.json")["id"], [])
        saved: set[int] = set()
        for path in folder.checkpoints():
            try:
                if path not in planted:
                    folder.verify(path)
                    saved.add(int(path.name[5:]))
            except CheckFailed as error:
                figure.wrong(f"unreadable: {error}")
        for name in ("last", "best"):
            if (self.run / name).is_symlink() and not (self.run / name / "lrft.json").is_file():
                figure.wrong(f"the link {name} leads nowhere")
        done = max((r["step"] for r in read_metrics(self.run / "metrics.jsonl")[0] if r["kind"] == "step"), default=0)
        linked = (self.run / "last").resolve().parent.name.removeprefix("step-")
        newest = int(linked) if linked.isdigit() else max(saved, default=0)
        if done - newest > 1:
            figure.wrong(f"lost: step {done} was done, {newest} is the newest that is saved")
        return newest

    def finish(self, figure: Figure, newest: int) -> None:
        """The same command with --resume goes on, from its start where nothing was saved; without a run it says so."""
        resumed = self.lab.run(*self.lab.training(self.run, "--resume"))
        if resumed.code == 2 and "has no run to resume" in resumed.text and not newest:
            figure.note("begun anew")
            resumed = self.lab.run(*self.lab.training(self.run))
        else:
            words = f"resumed from step-{newest:06d}" if newest else "starting from step 0: no checkpoint was saved"
            figure.note("resumed" if newest else "resumed from the start")
            if words not in " ".join(resumed.text.split()):
                figure.wrong(f"--resume does not say '{words}'")
        if resumed.code:
            figure.wrong(f"taken up after step {newest}: exit code {resumed.code}: {resumed.last_line}")


def sleep_until(child: Child, moment: float) -> None:
    while time.monotonic() < moment and not child.ended:
        time.sleep(0.001)


def campaign(tally: Tally, lab: Lab, rng: random.Random, kills: int, at_save: int, signals: int) -> None:
    tests = Kills(lab, rng)
    aimed = at_save - at_save // 2
    trials: list[tuple[str, int, Callable[[Figure, int], None]]] = [
        ("SIGKILL at random", kills, lambda f, n: random_kill(tests, f, n)),
        ("SIGKILL at the save", at_save // 2, lambda f, n: tests.trial(f, tests.killed_at_save)),
        (
            "SIGKILL before a file operation",
            aimed,
            lambda f, n: tests.trial(f, lambda: tests.begin(fatal=1 + n * tests.operations // aimed).wait()),
        ),
        ("SIGTERM, SIGINT", signals, lambda f, n: stopped(tests, f, n, twice=False)),
        ("SIGTERM, SIGINT twice in a row", signals, lambda f, n: stopped(tests, f, n, twice=True)),
    ]
    for name, count, trial in trials:
        with tally.figure(name) as figure:
            for n in range(count):
                if tally.over:
                    break
                trial(figure, n)
    with tally.figure("SIGKILL during merge") as figure:
        killed_merges(tally, figure, lab, rng, at_save)


def killed_merges(tally: Tally, figure: Figure, lab: Lab, rng: random.Random, count: int) -> None:
    """A merge that is killed leaves no folder under its name; the same command then makes it, and sweeps."""
    folder, plain = lab.root / "merges", lab.root / "merged"
    folder.mkdir()
    words = ("merge", str(lab.root / "whole"), "--no-verify", "-o")
    seconds = lab.run(*words, str(plain)).seconds
    expected = {path.name: digest(path) for path in plain.iterdir()}
    for _ in range(count):
        if tally.over:
            break
        figure.tried += 1
        child = lab.start(*words, str(folder / "out"))
        sleep_until(child, child.began + rng.uniform(0, seconds))
        child.kill()
        child.wait()
        figure.note("a folder left to sweep" if list(folder.glob(".*")) else "nothing left")
        if not (folder / "out").exists():
            outcome = lab.run(*words, str(folder / "out"))
            if outcome.code:
                figure.wrong(f"merged again: exit code {outcome.code}: {outcome.last_line}")
                continue
        if {path.name: digest(path) for path in (folder / "out").iterdir()} != expected:
            figure.wrong("another merged model")
        shutil.rmtree(folder / "out")
        if left := [path.name for path in folder.iterdir()]:
            lab.run(*words, str(folder / "out"))  # it was quicker than the kill: the next merge sweeps
            shutil.rmtree(folder / "out")
            if any(folder.iterdir()):
                figure.wrong(f"left behind: {left}")


def random_kill(tests: Kills, figure: Figure, n: int) -> None:
    """Every fourth run is killed once more while it resumes."""
    tests.trial(figure, tests.killed_at_random, tests.killed_at_random if n % 4 == 3 else None)


def stopped(tests: Kills, figure: Figure, n: int, *, twice: bool) -> None:
    number = (signal.SIGTERM, signal.SIGINT)[n % 2]

    def broken() -> Outcome:
        child = tests.begin()
        sleep_until(child, child.began + tests.rng.uniform(0, tests.seconds))
        child.kill(number)
        if twice:
            sleep_until(child, time.monotonic() + tests.rng.uniform(0, 0.1))
            child.kill(number)
        outcome = child.wait()
        figure.note(f"exit code {outcome.code}")
        if outcome.code not in ENDINGS[number]:
            figure.wrong(f"{number.name}: exit code {outcome.code}: {outcome.last_line}")
        if outcome.code == 128 + number and not twice and "a checkpoint was saved" not in outcome.text:
            figure.note("before or after the loop")
        return outcome

    tests.trial(figure, broken)
