"""Small runs made on the spot: a tiny Llama with its tokenizer, ragged rows, and a recipe of a few steps."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import tiny_tokenizers
import torch
from forked import Forked, wait_for_all
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from lrft import recipe
from lrft.adapters import attach, compose
from lrft.adapters.part import Method, Part, Run
from lrft.recipe import Recipe
from lrft.runs.metrics import read_metrics
from lrft.training.run import train
from lrft.training.state import Options
from lrft.utils import files

# 10 rows in steps of 4: the last step of each epoch has 2. With 2 epochs, 6 steps.
RECIPE = """\
model: {model}
adapter:
  rank: 4
data:
  train: {train}
  validation: {validation}
training:
  epochs: 2
  global_batch_size: 4
  micro_batch_size: 2
  learning_rate: 0.01
  warmup_steps: 2
  precision: fp32
evaluation:
  every: none
  at_start: false
  samples: 0
checkpoint:
  every: none
logging:
  every: 1
output_dir: {out}
"""
STEPS = 6
# Where a process finds the tests' helpers and lrft.
HERE = Path(__file__).parent
IMPORTS = f"{HERE}:{HERE.parent}"


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Short questions whose answers have few or many tokens, from about 10 to about 200."""
    generator = torch.Generator().manual_seed(seed)
    words = ["forty", "two", "hello", "world", "time", "what"]
    made = []
    for i in range(n):
        length = 40 if i % 4 == 0 else 1 + 3 * (i % 3)
        picks = torch.randint(len(words), (length,), generator=generator).tolist()
        answer = " ".join(words[p] for p in picks)
        made.append(
            {
                "messages": [
                    {"role": "user", "content": f"{i}?"},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
    return made


def write_rows(path: Path, made: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@cache
def other_rows() -> str:
    """A file of rows that are not those of `Place`; gone with the process."""
    folder = Path(tempfile.mkdtemp(prefix="rows-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(write_rows(folder / "other.jsonl", rows(5, seed=7)))


def save_base(folder: Path, name: str = "llama", seed: int = 0) -> Path:
    """A tiny model of the tokenizer's vocabulary, with the tokenizer beside it."""
    tokenizer = tiny_tokenizers.chatml()
    torch.manual_seed(seed)
    model = tiny.llama(vocabulary=len(tokenizer)) if name == "llama" else bloom(len(tokenizer))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in parameter_name:
                parameter.mul_(3.0)  # far enough from linear that a wrong gradient shows
    tiny.save(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def bloom(vocabulary: int) -> PreTrainedModel:
    """Its distances are counted from the padding mask, so rows that are laid end to end see each other."""
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=vocabulary,
            hidden_size=tiny.WIDTH,
            n_layer=2,
            n_head=4,
            bos_token_id=2,
            eos_token_id=2,
        )
    )


@dataclass
class Place:
    """A folder with a base, data and a recipe; runs are made below it."""

    root: Path

    @classmethod
    def make(cls, root: Path, *, train_rows: int = 10, validation_rows: int = 5) -> Place:
        save_base(root / "base")
        write_rows(root / "train.jsonl", rows(train_rows))
        write_rows(root / "validation.jsonl", rows(validation_rows, seed=1))
        place = cls(root)
        place.write_recipe()
        return place

    def write_recipe(self, out: str = "run") -> Path:
        """recipe.yaml for the run `out`."""
        path = self.root / "recipe.yaml"
        path.write_text(
            RECIPE.format(
                model=self.root / "base",
                train=self.root / "train.jsonl",
                validation=self.root / "validation.jsonl",
                out=self.root / out,
            )
        )
        return path

    def recipe(self, *overrides: str, out: str = "run") -> Recipe:
        # A run of one step has no room for a warm-up of two.
        short = ("training.warmup_steps=1",) if "training.max_steps=1" in overrides else ()
        return recipe.load(self.root / "recipe.yaml", (*short, f"output_dir={self.root / out}", *overrides))

    def train(self, *overrides: str, out: str = "run", **options: Any) -> Path:
        """Run the recipe with `overrides` (key=value) in this process."""
        source = self.root / "recipe.yaml"
        return train(self.recipe(*overrides, out=out), Options(quiet=True, source=source, **options))


def side_by_side(code: str, *arguments: str, world: int = 2, each: int = 1, seconds: float = 600) -> None:
    """Run Python `code` in `world` processes that talk through gloo, as a launcher starts them, `each` of them on a
    node. Its first argument is where to import from. All have to end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        Forked(
            code,
            IMPORTS,
            *arguments,
            environment={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
                **{"LOCAL_WORLD_SIZE": str(each), "OMP_NUM_THREADS": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"},
            },
        )
        for rank in range(world)
    ]
    ended = wait_for_all(processes, seconds)
    codes = [process.returncode for process in ended]
    assert codes == [0] * world, "\n".join(process.stderr[-3000:] for process in ended if process.returncode)


def tensors(run: Path, link: str = "last") -> dict[str, Tensor]:
    """Everything numeric in a checkpoint, by file and name."""
    checkpoint = (run / link).resolve().parent
    return {
        f"{path.relative_to(checkpoint)}:{name}": tensor.clone()  # else it changes with its file
        for path in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in files.read_tensors(path).items()
    }


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose tensors are not the same bit for bit, or that one side lacks."""
    both = a.keys() & b.keys()
    return sorted((a.keys() ^ b.keys()) | {name for name in both if not torch.equal(a[name], b[name])})


def distance(a: dict[str, Tensor], b: dict[str, Tensor], ending: str = "") -> float:
    """Largest difference over the largest value, over tensors whose file and name hold `ending`."""
    assert a.keys() == b.keys()
    names = [name for name in a if ending in name]
    assert names
    return max(((a[n] - b[n]).abs().max() / a[n].abs().max().clamp_min(1e-12)).item() for n in names)


def records(run: Path, kind: str = "step") -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock or the machine."""
    found, unreadable = read_metrics(run / "metrics.jsonl")
    assert unreadable == 0
    timed = ("seconds", "tokens_per_second", "memory_gb")
    return [{k: v for k, v in r.items() if k not in timed} for r in found if r["kind"] == kind]


def steps(run: Path) -> list[int]:
    """The steps of the checkpoints in a run folder."""
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def cut(run: Path, step: int, out: Path) -> Path:
    """A copy of a run as it was when it died after `step`: later checkpoints are not there."""
    shutil.copytree(run, out, symlinks=True)
    for later in steps(out):
        if later > step:
            shutil.rmtree(out / "checkpoints" / f"step-{later:06d}")
    files.point(out / "last", out / "checkpoints" / f"step-{step:06d}" / "adapter")
    return out


def add_parts(monkeypatch: Any, *parts: Part, method: Method | None = None) -> None:
    """Every composition made from now on has these parts besides those of its recipe, and `method` when given."""
    original = compose.compose

    def composed(entries: Any) -> compose.Composition:
        made = original(entries)
        chosen = method or made.method
        return replace(made, method=chosen, parts=(chosen, *made.parts[1:], *parts))

    monkeypatch.setattr(compose, "compose", composed)
    monkeypatch.setattr(attach, "compose", composed)


class At(Part):
    """Calls `act(run)` in one hook, at one step (counted from 1) or, for 0, at every step."""

    name = "at"

    def __init__(self, hook: str, step: int, act: Callable[[Run], None]) -> None:
        def when(run: Run) -> None:
            if step in (0, run.step + 1):
                act(run)

        setattr(self, hook, when)


class Penalty(Part):
    """strength / 2 times the sum of the squares of A: its gradient is strength times A."""

    name = "penalty"

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.A: dict[str, Tensor] = {}

    def loss(self, run: Run) -> Tensor | None:
        self.A = {f"{site}.A": adapter.A.detach().clone() for site, adapter in run.adapters.items()}
        return self.strength / 2 * sum((adapter.A**2).sum() for adapter in run.adapters.values())
