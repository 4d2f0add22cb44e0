"""Modes `kernels` and `starts`: pieces of lrft against their slow twins, in one process by turns."""

from __future__ import annotations

import argparse
import json
from typing import Any

from performance import processes
from performance.place import Place
from performance.tables import count, ratio, spread, table

RANK = 16
TIMES = 5  # kernels are short: so many more rounds
MODEL = "smollm2"


def worker(place: Place, module: str, *words: object) -> Any:
    """What `python -m performance.<module> OUT ...` writes. Raises RuntimeError when it fails."""
    out = place.work / f"{module}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [place.python, "-m", f"performance.{module}", out, *map(str, words)]
    ended = processes.run(command, threads=place.threads)
    if ended.code:
        raise RuntimeError(f"{module}: {ended.reason()}")
    return json.loads(out.read_text())


def kernels(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.rounds * TIMES
    return place.facts() | {"seed": 0, "rounds": rounds, "pairs": worker(place, "kernels", rounds)}


def kernels_page(section: dict[str, Any]) -> str:
    text = f"CPU milliseconds of a forward and a backward pass, {section['rounds']} times by turns."
    lines, notes = [], []
    for name, pair in section["pairs"].items():
        if "error" in pair:
            notes.append(f"- `{name}` was not measured: {pair['error']}")
            continue
        notes.append(f"- `{name}`: {pair['says']}")
        fast, slow = ([1e3 * t for t in pair[way]] for way in ("fast", "slow"))
        lines.append([name, spread(fast), spread(slow), ratio(fast, slow), f"{pair['difference']:.0e}"])
    head = ["", "lrft, ms", "plain, ms", "lrft over plain", "largest relative difference"]
    return "\n".join([text, "", table(head, lines), "", *notes])


def starts(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    found = worker(place, "starts", options.rounds, place.model(MODEL), RANK)
    origin = place.origin(MODEL)["weights"]
    return place.facts() | {"seed": 0, "rounds": options.rounds, "rank": RANK, "weights": origin, "layers": found}


def starts_page(section: dict[str, Any]) -> str:
    text = (
        f"PiSSA at rank {section['rank']} on one layer of each shape of {section['weights']}: CPU seconds, "
        f"{count(section['rounds'], 'round')} by turns; the share of the weight's squared norm that the exact "
        "decomposition captures, and how much of that the randomized one does."
    )
    lines = [
        [
            f"{name} {found['shape'][0]} x {found['shape'][1]}",
            spread(found["randomized"], "{:.3f}".format),
            spread(found["exact"], "{:.3f}".format),
            ratio(found["exact"], found["randomized"]),
            f"{found['energy']['exact']:.4f}",
            f"{found['energy']['randomized'] / found['energy']['exact']:.6f}",
        ]
        for name, found in section["layers"].items()
    ]
    head = ["", "randomized, s", "exact, s", "exact over randomized", "exact's share of the norm", "captured of it"]
    return f"{text}\n\n{table(head, lines)}"
