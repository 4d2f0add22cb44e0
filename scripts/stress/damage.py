"""Damaged checkpoints and adapters, each file in every way; and pickles under every name that anything reads."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stress.lab import Lab, differing, state
from stress.tally import Figure, Tally

Mutation = tuple[str, bytes | None]
"""what was done, and the file's new content; None: the file is gone"""
NAN = bytes.fromhex("0000c07f")
# Names under which other tools keep pickles.
BESIDE = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin"),
    *("adapter_model.pt", "pytorch_model.bin", "model.pt", "model.ckpt", "tokenizer.pkl", "tokenizer.bin"),
)
# How a reader may end; 5 and 2: without its lrft.json the folder is no adapter any more.
REFUSED = {"CheckFailed", "UsageError", 2, 4, 5}
BITS = 2  # flipped in the first bytes, and as many anywhere


def campaign(tally: Tally, lab: Lab, rng: random.Random, at_least: int) -> None:
    run, other = lab.root / "sound", lab.root / "other"
    for folder, seed in ((run, 42), (other, 7)):
        if (outcome := lab.run(*lab.training(folder, f"training.seed={seed}"))).code:
            raise RuntimeError(outcome.text)
    cases: list[tuple[str, Callable[[Figure], None]]] = [
        ("damaged checkpoint, --resume PATH", lambda f: checkpoints(tally, f, lab, rng, run, other, at_least // 2)),
        ("damaged adapter, every reader", lambda f: adapters(f, lab, rng, run, other, at_least - at_least // 2)),
        ("damaged checkpoint, --resume", lambda f: passed_over(f, lab, rng, run, other)),
        ("pickles", lambda f: pickles(f, lab, run)),
    ]
    for name, case in cases:
        with tally.figure(name) as figure:
            case(figure)


# --- mutations ---


def mutations(path: Path, other: bytes, rng: random.Random) -> Iterator[Mutation]:
    """Every kind of damage to one file; `other` is the same file of another run. Unchanged content is left out."""
    whole = path.read_bytes()
    for sixteenth in range(16):
        yield f"cut to {sixteenth}/16", whole[: len(whole) * sixteenth // 16]
    for place, end in (("head", min(len(whole), 64)), ("data", len(whole))):
        for _ in range(BITS):
            at = rng.randrange(end)
            yield f"a bit of the {place}", whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    if path.suffix == ".safetensors":
        start = 8 + int.from_bytes(whole[:8], "little")
        yield "NaN", whole[:start] + NAN * ((len(whole) - start) // 4)
        yield "one NaN", whole[:start] + NAN + whole[start + 4 :]
        yield "zeros", whole[:start] + bytes(len(whole) - start)
    yield "a byte more", whole + b"\n"
    yield "missing", None
    yield "of another run", other


def harmless(path: Path, content: bytes | None) -> bool:
    """The same file, or JSON that says the same."""
    whole = path.read_bytes()
    if content is None or path.suffix != ".json":
        return content == whole
    try:
        return bool(json.loads(content) == json.loads(whole))
    except ValueError:
        return False


def plan(folder: Path, other: Path, rng: random.Random, at_least: int) -> list[tuple[Path, str, bytes | None]]:
    """At least so many harmful mutations over all files of `folder`, in rounds."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found: list[tuple[Path, str, bytes | None]] = []
    while len(found) < at_least:
        for path in paths:
            twin = (other / path.relative_to(folder)).read_bytes()
            found += [(path, kind, c) for kind, c in mutations(path, twin, rng) if not harmless(path, c)]
    rng.shuffle(found)
    return found[:at_least]


class Damaged:
    """A context in which `path` has other content."""

    def __init__(self, path: Path, content: bytes | None) -> None:
        self.path, self.content = path, content
        self.whole = path.read_bytes()

    def __enter__(self) -> None:
        if self.content is None:
            self.path.unlink()
        else:
            self.path.write_bytes(self.content)

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.whole)


# --- who must notice ---


def checkpoints(
    tally: Tally, figure: Figure, lab: Lab, rng: random.Random, run: Path, other: Path, at_least: int
) -> None:
    """A checkpoint that is named must be refused, with the name of the file that is not as it was."""
    checkpoint, twin = ((folder / "last").resolve().parent for folder in (run, other))
    before = state(run)
    for path, kind, content in plan(checkpoint, twin, rng, at_least):
        if tally.over:
            return
        figure.tried += 1
        with Damaged(path, content):
            outcome = lab.run(*lab.training(run, "--resume", str(checkpoint)))
        if outcome.code != 4 or outcome.traceback:
            figure.wrong(f"{path.name}, {kind}: exit code {outcome.code}: {outcome.last_line}")
        elif path.name not in outcome.text and path.name != "manifest.json":
            figure.wrong(f"{path.name}, {kind}: not named: {outcome.last_line}")
        figure.note(kind.split(" to ")[0])
    if changed := differing(state(run), before):
        figure.wrong(f"the run was changed: {changed}")


def adapters(figure: Figure, lab: Lab, rng: random.Random, run: Path, other: Path, at_least: int) -> None:
    """A damaged adapter must be loaded by nobody: the library's loader, merge, eval."""
    adapter, twin = lab.root / "lone", lab.root / "lone-twin"
    shutil.copytree((run / "last").resolve(), adapter)
    shutil.copytree((other / "last").resolve(), twin)
    planned = plan(adapter, twin, rng, at_least)
    report = lab.root / "report.json"

    def work() -> int:
        found = [refusals(lab.root, adapter, path, content) for path, _, content in planned]
        report.write_text(json.dumps(found))
        return 0

    outcome = lab.call(work)
    if outcome.code:
        raise RuntimeError(outcome.text)
    for (path, kind, _), readers in zip(planned, json.loads(report.read_text()), strict=True):
        figure.tried += 1
        figure.note(kind.split(" to ")[0])
        for reader, end in readers.items():
            if end not in REFUSED:
                figure.wrong(f"{path.name}, {kind}: {reader} ended with {end}")


def refusals(root: Path, adapter: Path, path: Path, content: bytes | None) -> dict[str, Any]:
    """How each reader of an adapter ends when one of its files has other content. `root` holds base/ and data."""
    from lrft.adapters.storage import load_adapter
    from lrft.cli.main import run_command
    from lrft.errors import LrftError
    from lrft.model.load import load_skeleton

    ends: dict[str, Any] = {}
    out = root / "merged-from-damaged"
    with Damaged(path, content):
        try:
            load_adapter(load_skeleton(root / "base"), adapter)
            ends["load_adapter"] = "loaded"
        except LrftError as error:
            ends["load_adapter"] = type(error).__name__
        data = str(root / "validation.jsonl")
        ends["merge"] = run_command(["merge", str(adapter), "-o", str(out), "--no-verify"])
        ends["eval"] = run_command(["eval", str(adapter), "--data", data, "--no-generate", "--limit", "1"])
    if out.exists():
        ends["merge"] = f"{ends['merge']}, with a merged model"
        shutil.rmtree(out)
    return ends


def passed_over(figure: Figure, lab: Lab, rng: random.Random, run: Path, other: Path) -> None:
    """Without a name it is passed over aloud; the run goes on from the checkpoint before and ends as ever."""
    expected = state(run)
    broken = lab.root / "broken"
    for path in sorted(p for p in (run / "last").resolve().parent.rglob("*") if p.is_file()):
        figure.tried += 1
        shutil.copytree(run, broken, symlinks=True)
        checkpoint = (broken / "last").resolve().parent
        damaged = checkpoint / path.relative_to((run / "last").resolve().parent)
        twin = (other / "last").resolve().parent / damaged.relative_to(checkpoint)
        harmful = [(k, c) for k, c in mutations(damaged, twin.read_bytes(), rng) if not harmless(damaged, c)]
        kind, content = rng.choice(harmful)
        damaged.write_bytes(content) if content is not None else damaged.unlink()
        outcome = lab.run(*lab.training(broken, "--resume"))
        if outcome.code or f"passed over {checkpoint.name}" not in " ".join(outcome.text.split()):
            figure.wrong(f"{path.name}, {kind}: exit code {outcome.code}: {outcome.last_line}")
        elif changed := differing(state(broken), expected):
            figure.wrong(f"{path.name}, {kind}: {changed}")
        shutil.rmtree(broken)


# --- pickles ---


class Touch:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickles(figure: Figure, lab: Lab, run: Path) -> None:
    """A pickle that leaves a mark when it is loaded, beside what is read and in its place."""
    mark = lab.root / "executed"
    hostile = pickle.dumps(Touch(mark))
    pickle.loads(hostile)
    if not mark.exists():
        raise RuntimeError("the pickle does nothing: the test could not fail")
    mark.unlink()
    for name, words in pickle_cases(lab, run, hostile):
        figure.tried += 1
        outcome = lab.run(*words)
        figure.note("refused" if outcome.code else "not inspected")
        if mark.exists() or outcome.traceback:
            figure.wrong(f"{name}: {'executed' if mark.exists() else outcome.last_line}")
            mark.unlink(missing_ok=True)


def pickle_cases(lab: Lab, run: Path, hostile: bytes) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(what holds the pickle, the command that is to read it)."""
    trap = lab.root / "trap"
    shutil.copytree(run, trap, symlinks=True)
    checkpoint = (trap / "last").resolve().parent
    for folder in (trap, checkpoint, checkpoint / "adapter"):
        for name in BESIDE:
            (folder / name).write_bytes(hostile)
    yield "beside, resume", lab.training(trap, "--resume", f"training.max_steps={lab.steps + 1}", "--accept-changes")
    yield "beside, eval", ("eval", str(trap), "--no-generate")
    yield "beside, merge", ("merge", str(trap))
    shutil.rmtree(trap)
    adapter = (run / "last").resolve()
    for path in sorted(path for path in adapter.parent.rglob("*") if path.is_file()):  # in the place of each file
        shutil.copytree(run, trap, symlinks=True)
        place = (trap / "last").resolve().parent / path.relative_to(adapter.parent)
        place.write_bytes(hostile)
        yield f"as {path.name}, resume", lab.training(trap, "--resume", str((trap / "last").resolve().parent))
        yield f"as {path.name}, eval", ("eval", str(trap / "last"))
        yield f"as {path.name}, merge", ("merge", str(trap / "last"), "-o", str(trap / "out"))
        shutil.rmtree(trap)
    for names in (("pytorch_model.bin",), ("model.safetensors",), ("tokenizer.json",), ("config.json",), ("x.gguf",)):
        shutil.copytree(lab.root / "base", trap)
        (trap / "model.safetensors").unlink()
        for name in names:
            (trap / name).write_bytes(hostile)
        model = trap / "x.gguf" if "x.gguf" in names else trap
        yield f"base as {names[0]}, train", lab.training(lab.root / "never", f"model={model}")
        yield f"base as {names[0]}, eval", ("eval", str(model), "--data", str(lab.root / "validation.jsonl"))
        shutil.rmtree(trap)
    trap.mkdir()
    for suffix in ("jsonl", "json", "csv", "txt", "parquet", "arrow", "pkl"):
        data = trap / f"rows.{suffix}"
        data.write_bytes(hostile)
        yield f"data as {data.name}", lab.training(lab.root / f"run-{suffix}", f"data={data}", "data.packing=false")
    shutil.rmtree(trap)
