"""Mode `startup`: how long lrft takes before it does anything, against bare imports of the same libraries."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from performance import processes, rows
from performance.place import Place
from performance.rounds import turns
from performance.tables import count, noisy, ratio, spread, table

MODEL = "smollm2"
SHAPE = rows.Shape(rows=2, tokens=24, padding=0.2)  # a step that costs next to nothing
BARE_LOAD = "import torch, transformers, sys; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
RECIPE = """\
model: {model}
adapter: lora
data: {{train: {rows}, validation: none}}
training: {{max_steps: 1, global_batch_size: 2, epochs: 1}}
evaluation: {{every: none, at_start: false, samples: 0}}
checkpoint: {{every: none}}
output_dir: {out}
"""
SAYS = {
    "lrft --help": "",
    "bare import of typer and rich": "`python -c 'import typer, rich'`",
    "lrft check, misspelt key": "until the error is shown",
    "lrft train, first step": "until the first step's record is in metrics.jsonl",
    "bare load of the weights": "`import torch, transformers`, then `from_pretrained`",
}
# (what, over what)
COMPARED = (
    ("lrft --help", "bare import of typer and rich"),
    ("lrft check, misspelt key", "bare import of typer and rich"),
    ("lrft train, first step", "bare load of the weights"),
)


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    facts = place.facts()
    folder = place.work / "startup"
    good, bad = recipes(place, folder, options.seed)
    lrft = [place.python, "-m", "lrft"]
    does: dict[str, Callable[[], float]] = {
        "lrft --help": lambda: whole(place, [*lrft, "--help"]),
        "bare import of typer and rich": lambda: whole(place, [place.python, "-c", "import typer, rich"]),
        "lrft check, misspelt key": lambda: whole(place, [*lrft, "check", bad], code=2),
        "lrft train, first step": lambda: first_step(place, [*lrft, "train", good, "--fresh"], folder / "run"),
        "bare load of the weights": lambda: whole(place, [place.python, "-c", BARE_LOAD, place.model(MODEL)]),
    }
    found: dict[str, list[float]] = {name: [] for name in does}
    for name in does:  # once without counting: caches of the disk and of lrft's data
        does[name]()
    for _, name in turns(list(does), options.startup_rounds):
        found[name].append(does[name]())
        print(f"{name:<32} {found[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return facts | {"seed": options.seed, "rounds": options.startup_rounds, "seconds": found}


def recipes(place: Place, folder: Path, seed: int) -> tuple[Path, Path]:
    """A recipe that trains one step, and one with a misspelt key."""
    shutil.rmtree(folder, ignore_errors=True)
    vocabulary = place.origin(MODEL)["config"]["vocab_size"]
    made = rows.save(rows.batches(SHAPE, vocabulary=vocabulary, seed=seed), folder / "rows.json")
    text = RECIPE.format(model=place.model(MODEL), rows=made.with_suffix(".jsonl"), out=folder / "run")
    good, bad = folder / "good.yaml", folder / "bad.yaml"
    good.write_text(text)
    bad.write_text(text.replace("max_steps", "max_step"))
    return good, bad


def whole(place: Place, command: list[str | Path], code: int = 0) -> float:
    """Seconds of a process. Raises RuntimeError when it ends in another way."""
    ended = processes.run(command, threads=place.threads)
    if ended.code != code:
        raise RuntimeError(f"{' '.join(map(str, command))}: {ended.reason()}")
    return ended.wall


def first_step(place: Place, command: list[str | Path], run: Path) -> float:
    """Seconds until the first step is in the run's metrics. The process is left to its end."""
    shutil.rmtree(run, ignore_errors=True)
    began = time.time()
    whole(place, command)
    return written_at(run / "metrics.jsonl") - began


def written_at(metrics: Path) -> float:
    """When the only step of a run was written, in seconds of the clock."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    if [record["kind"] for record in records] != ["step"]:
        raise RuntimeError(f"{metrics} holds more than one step")
    return metrics.stat().st_mtime


def page(section: dict[str, Any]) -> str:
    seconds = section["seconds"]
    text = f"Wall seconds, {count(section['rounds'], 'round')} by turns after one that is not counted."
    lines = [
        [f"{name} ({SAYS[name]})" if SAYS[name] else name, spread(found), against(seconds, name)]
        for name, found in seconds.items()
    ]
    return f"{text}\n\n{table(['', 'seconds', 'ratio'], lines)}\n{noisy(seconds, section['rounds'])}"


def against(seconds: dict[str, list[float]], name: str) -> str:
    """The quotient with what it is compared with; empty for the bare ones."""
    other = dict(COMPARED).get(name)
    return f"{ratio(seconds[name], seconds[other])} of {other}" if other else ""
