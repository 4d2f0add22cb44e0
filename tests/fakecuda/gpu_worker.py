"""Runs cases of `cases.CASES` on a pretended GPU, as they are asked for: a name in, a line of JSON out."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pictures
import runs
import torch
from accelerate.state import AcceleratorState, PartialState
from cases import CASES
from gpu_watch import Watch
from torch.autograd.graph import saved_tensors_hooks

from lrft import recipe
from lrft.model import activation_offload
from lrft.report import markdown
from lrft.training import engine, loop

# Steps 1 and 4 are logged, 2 still checks what has moved, 3 is as most are.
PLAIN, LOGGED = 3, 4
SAMPLES = ("evaluation.samples=1", "evaluation.max_new_tokens=3")
RUN = ("training.max_steps=4", "logging.every=100", "checkpoint.every=2", "evaluation.every=4", *SAMPLES)
SHORT = ("training.max_steps=2", "training.warmup_steps=1", "logging.every=100")


class Worker:
    """Runs of one tiny base on the pretended GPU, and on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.place = runs.Place.make(folder, train_rows=12, validation_rows=1)
        self.moved = 0
        self.number = 0
        self.watch = Watch()
        self.taken = 0
        self.watched: dict[int, dict[str, Any]] = {}
        """the steps of the next run that are looked at, counted from 1, and afterwards what they counted"""
        original: Callable[..., int] = loop.train_step

        def watched(*arguments: Any) -> int:
            self.taken += 1
            if self.taken not in self.watched:
                return original(*arguments)
            self.watch.clear()
            with self.watch:
                signal = original(*arguments)
            counts = {name: dict(getattr(self.watch, name)) for name in ("operations", "reads", "sends")}
            self.watched[self.taken] = counts
            return signal

        loop.train_step = watched
        engine.offloading = self.offloading

    def offloading(self, device: torch.device) -> Any:
        """As in the product, for tensors as small as those of tests, and counted."""
        hooks: Any = activation_offload.offloading(device, least=64)

        def pack(tensor: torch.Tensor) -> Any:
            kept = hooks.pack_hook(tensor)
            self.moved += isinstance(kept, activation_offload.Moved)
            return kept

        return saved_tensors_hooks(pack, hooks.unpack_hook)

    def train(self, case: str, *words: str, out: Path | None = None, **options: Any) -> Path:
        AcceleratorState._reset_state()
        PartialState._reset_state()
        self.number += 1
        self.taken = 0
        name = f"run-{self.number}" if out is None else out.name
        return self.place.train(f"adapter.method={json.dumps(CASES[case][0])}", *words, out=name, **options)

    def whole(self, case: str) -> dict[str, Any]:
        """In bf16 over packed rows: two kinds of step, evaluation, answers, a checkpoint, and from there once more."""
        words = ("training.precision=bf16", *RUN)
        self.watched = {PLAIN: {}, LOGGED: {}}
        whole = self.train(case, *words)
        plain, logged = self.watched.pop(PLAIN), self.watched.pop(LOGGED)
        cut = runs.cut(whole, 2, self.place.root / f"cut-{self.number}")
        again = self.train(case, *words, out=cut, resume="last")
        return {"plain": plain, "logged": logged, "resumed": runs.differing(runs.tensors(whole), runs.tensors(again))}

    def light(self, case: str) -> dict[str, Any]:
        """In fp16 with its loss scale, outputs of linear layers kept."""
        return self.losses(self.train(case, "training.precision=fp16", "training.gradient_checkpointing=light", *SHORT))

    def full(self, case: str) -> dict[str, Any]:
        """In fp32 over padded rows, blocks computed again, their inputs on the CPU meanwhile."""
        words = ("training.gradient_checkpointing=full", "training.activation_offload=true", "data.packing=false")
        self.moved = 0
        return self.losses(self.train(case, *words, *SHORT)) | {"moved": self.moved}

    def cpu(self, case: str) -> dict[str, Any]:
        """The same without any of that, where there is no GPU."""
        with without_gpu():
            return self.losses(self.train(case, "data.packing=false", *SHORT))

    def auto(self) -> dict[str, Any]:
        """The search for the largest micro-batch: how much of the memory it may have, then and afterwards."""
        shares: list[float] = []
        forgotten: list[str] = []
        before = torch.cuda.set_per_process_memory_fraction, torch.cuda.reset_peak_memory_stats
        torch.cuda.set_per_process_memory_fraction = lambda share, device: shares.append(share)
        torch.cuda.reset_peak_memory_stats = lambda device: forgotten.append(str(device))
        try:
            self.train("lora", "training.micro_batch_size=auto", *SHORT)
        finally:
            torch.cuda.set_per_process_memory_fraction, torch.cuda.reset_peak_memory_stats = before
        return {"shares": shares, "forgotten": len(forgotten)}

    def fp8(self) -> dict[str, Any]:
        """Over a base in 8-bit floats, for whose product the pretended GPU has no kernel; and without a GPU."""
        words = ("model.quantization=fp8", "training.precision=bf16", *SHORT)
        here = self.losses(self.train("lora", *words))
        with without_gpu():
            return here | {"cpu": self.losses(self.train("lora", *words))["losses"]}

    def default(self) -> dict[str, Any]:
        """A recipe that says nothing of passes: how many tokens each has here, and where there is no GPU."""
        words = ("~training.micro_batch_size", *SHORT)
        here = recipe.load(self.train("lora", *words) / "resolved.yaml").training
        with without_gpu():
            there = recipe.load(self.train("lora", *words) / "resolved.yaml").training
        return {"here": here.micro_batch_tokens, "there": there.micro_batch_tokens, "rows": there.micro_batch_size}

    def losses(self, run: Path) -> dict[str, Any]:
        return {"losses": [record["loss"] for record in runs.records(run)]}


def refusals() -> dict[str, Any]:
    """What the device refuses, and what is counted as waiting for it."""
    numbers = torch.arange(4.0, device="cuda")
    wrong: dict[str, Callable[[], Any]] = {
        "two devices": lambda: numbers + torch.ones(4),
        "a generator of the CPU": lambda: torch.rand(4, device="cuda", generator=torch.Generator()),
    }
    said: dict[str, Any] = {}
    for what, act in wrong.items():
        try:
            said[what] = f"was done: {act()}"
        except RuntimeError as error:
            said[what] = str(error)
    pinned = torch.ones(4, pin_memory=True)
    with Watch() as watch:
        numbers[0].item()
        numbers.tolist()
        numbers[numbers > 1].to("cuda")
        numbers.cpu()
        torch.ones(4).to("cuda", non_blocking=True)
        numbers.new_tensor([1.0])
        pinned.to("cuda", non_blocking=True)
    return {**said, "reads": dict(watch.reads), "sends": dict(watch.sends)}


@contextmanager
def without_gpu() -> Iterator[None]:
    there = torch.cuda.is_available
    torch.cuda.is_available = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_available = there


def answer(worker: Worker, case: str) -> dict[str, Any]:
    """What each way of training did: its facts, or "error" and where in lrft it came from."""
    said: dict[str, Any] = {}
    for way in ("whole", "light", "full", "cpu"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said[way] = getattr(worker, way)(case)
        except Exception as error:
            places = [f"{at.filename}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)]
            own = [place.rpartition("/lrft/")[2] for place in places if "/lrft/" in place and ".venv" not in place]
            said[way] = {"error": f"{type(error).__name__}: {error}", "at": own[-2:]}
    return said


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what runs print is no answer
    markdown.loss_picture = pictures.none
    with tempfile.TemporaryDirectory(prefix="fakecuda-") as name:
        os.environ["LRFT_CACHE"] = f"{name}/cache"
        worker = Worker(Path(name))
        others: dict[str, Callable[[], dict[str, Any]]] = {
            "=refusals": refusals,
            "=auto": worker.auto,
            "=fp8": worker.fp8,
            "=default": worker.default,
        }
        for case in sys.argv[1:] or map(str.strip, sys.stdin):
            said = others[case]() if case in others else {"case": case, **answer(worker, case)}
            print(json.dumps(said), file=out, flush=True)
