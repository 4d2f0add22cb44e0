"""Mode `curves`: lrft and PEFT's loop from the same first values over the same rows learn the same."""

from __future__ import annotations

import argparse
from typing import Any

from performance import rounds, rows
from performance.contestants import Contestant
from performance.place import Place, refuse_other_torch
from performance.rounds import Plan
from performance.tables import table

MODEL = "small"
SHAPE = rows.Shape(rows=4, tokens=240, padding=0.4)
TARGET = 1e-3


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    facts = place.facts()
    refuse_other_torch(facts)
    steps = options.curve_steps
    vocabulary = place.origin(MODEL)["config"]["vocab_size"]
    made = rows.batches(SHAPE, vocabulary=vocabulary, steps=steps, seed=options.seed)
    path = rows.save(made, place.work / "rows" / "curves.json")
    start = str(place.work / "start.safetensors")
    # lrft goes first: it writes the values that PEFT begins with.
    entries = [
        Contestant("lrft", "lrft_step", "", options={"start": start}),
        Contestant("lrft, padded", "lrft_step", "", options={"start": start, "recipe": ["data.packing=false"]}),
        Contestant("peft-loop", "peft_loop", "", peer=True, options={"start": start}),
    ]
    plan = Plan(MODEL, path, steps - 1, 1, seed=options.seed)
    runs = rounds.measure(place, entries, plan)
    return facts | {"model": MODEL, "shape": SHAPE.facts(), "seed": options.seed, "steps": steps, "runs": runs}


def difference(a: list[float], b: list[float]) -> float:
    """The largest difference of two curves. Raises ValueError unless they are equally long."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def page(section: dict[str, Any]) -> str:
    losses = {run["contestant"]: run["losses"] for run in section["runs"] if "error" not in run}
    failed = [f"- `{name}` failed: {reason}" for name, reason in rounds.failures(section["runs"]).items()]
    text = [
        f"{section['steps']} steps of {section['shape']['rows']} rows on the {section['model']} model, learning rate "
        f"constant, the first values of A and B taken over from lrft. Target: curves differ by less than {TARGET:g}.",
        "",
    ]
    if "peft-loop" in losses:
        lines = [
            [name, f"{curve[0]:.5f}", f"{curve[-1]:.5f}", f"{difference(curve, losses['peft-loop']):.1e}"]
            for name, curve in losses.items()
        ]
        text += [table(["", "first loss", "last loss", "largest difference from peft-loop"], lines)]
    return "\n".join([*text, *failed])
