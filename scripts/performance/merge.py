"""Mode `merge`: `lrft merge` against a copy of the weights, and against PEFT's merge and save."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from performance import processes, startup
from performance.place import Place
from performance.rounds import turns
from performance.tables import count, noisy, ratio, spread, table, whole

MODEL = "smollm2"
COPY, LRFT, PEFT = "copy with fsync", "lrft merge --no-verify", "PEFT merge_and_unload, save_pretrained"


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    facts = place.facts()
    folder = place.work / "merge"
    run = adapter(place, folder, options.seed)
    base, weights = place.model(MODEL), place.model(MODEL) / "model.safetensors"
    commands: dict[str, list[str | Path]] = {
        COPY: [place.python, "-m", "performance.copying", weights, folder / COPY / "model.safetensors"],
        LRFT: [place.python, "-m", "lrft", "merge", run, "-o", folder / LRFT, "--no-verify"],
        PEFT: [place.interpreter(True), "-m", "performance.peft_merge", base, run / "last", folder / PEFT],
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _, name in turns(list(commands), options.rounds):
        shutil.rmtree(folder / name, ignore_errors=True)
        ended = processes.run(commands[name], threads=place.threads)
        if ended.code:
            raise RuntimeError(f"{name}: {ended.reason()}")
        found[name].append(ended.measured())
        print(f"{name:<40} {ended.wall:.2f} s, {ended.peak_mb:,.0f} MB", file=sys.stderr, flush=True)
    compared = [place.python, "-m", "performance.weights_apart", folder / LRFT, folder / PEFT, base]
    apart = processes.run(compared, threads=place.threads)
    shutil.rmtree(folder)
    return facts | {
        "seed": options.seed,
        "rounds": options.rounds,
        "weights": place.origin(MODEL)["weights"],
        "megabytes": weights.stat().st_size / 1e6,
        "apart": apart.out.split() if not apart.code else [apart.reason(), "?"],
        "runs": found,
    }


def adapter(place: Place, folder: Path, seed: int) -> Path:
    """A run folder of one step. Raises RuntimeError."""
    good, _ = startup.recipes(place, folder, seed)
    startup.whole(place, [place.python, "-m", "lrft", "train", good, "adapter.rank=8"])
    return folder / "run"


def page(section: dict[str, Any]) -> str:
    runs = section["runs"]
    apart, moved = section["apart"]
    walls = {name: [run["wall"] for run in found] for name, found in runs.items()}
    text = (
        f"A LoRA of rank 8 into {section['weights']}, {section['megabytes']:,.0f} MB of float32, "
        f"{count(section['rounds'], 'round')} by turns, whole processes. lrft's result and PEFT's differ by at most "
        f"{apart} in any weight, where merging has changed weights by up to {moved}."
    )
    lines = [
        [
            name,
            spread(walls[name]),
            ratio(walls[name], walls[COPY]),
            spread([run["cpu"] for run in found]),
            spread([run["peak_mb"] for run in found], whole),
        ]
        for name, found in runs.items()
    ]
    head = ["", "seconds", "over the copy", "CPU seconds", "peak memory, MB"]
    return f"{text}\n\n{table(head, lines)}\n{noisy(walls, section['rounds'])}"
