"""Mode `methods`: what a step of every method costs, against lora at the same rank on the small model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import processes, rounds, rows
from benchmarks.contestants import Contestant, lrft
from benchmarks.place import Place
from benchmarks.rounds import Plan
from benchmarks.tables import count, noisy, ratio, spread, table, whole

MODEL = "small"
REFERENCE = "lora"
_LIST = "import json; from lrft import catalog; print(json.dumps({n: c.kind for n, c in catalog.methods().items()}))"


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    facts = place.facts()
    kinds = known(place.python, place.threads)
    shape = rows.Shape(8, options.method_tokens)
    vocabulary = place.origin(MODEL)["config"]["vocab_size"]
    made = rows.batches(shape, vocabulary=vocabulary, seed=options.seed)
    path = rows.save(made, place.work / "rows" / "methods.json")
    plan = Plan(MODEL, path, options.steps, options.rounds, seed=options.seed)
    runs = rounds.measure(place, [entry(name) for name in kinds], plan)
    return facts | {
        "model": MODEL,
        "kinds": kinds,
        "shape": shape.facts(),
        "seed": options.seed,
        "rounds": options.rounds,
        "steps": options.steps,
        "rank": plan.rank,
        "runs": runs,
    }


def known(python: Path, threads: int) -> dict[str, str]:
    """Every method that this lrft has, with its kind. Raises RuntimeError."""
    asked = processes.run([python, "-c", _LIST], threads=threads)
    if asked.code:
        raise RuntimeError(asked.reason())
    return json.loads(asked.out)


def entry(name: str) -> Contestant:
    """The method with its default options; a part that builds nothing goes onto lora."""
    return lrft(name, "", f"adapter.method={name}")


def page(section: dict[str, Any]) -> str:
    runs = section["runs"]
    reference = rounds.counted(runs, REFERENCE, "cpu"), rounds.of_runs(runs, REFERENCE, memory)
    text = [
        f"Rank {section['rank']}, default options, the {section['model']} model, {section['shape']['rows']} rows with "
        f"{section['shape']['tokens']:,} tokens, {count(section['rounds'], 'round')} by turns, "
        f"{count(section['steps'], 'step')} counted. Parts that build nothing stand over lora. `rslora` does lora's "
        "own arithmetic: how far its ratios are from 1 is the noise of all.",
        "",
    ]
    lines = []
    for name in rounds.names(runs, list(section["kinds"])):
        cpu, peak = rounds.counted(runs, name, "cpu"), rounds.of_runs(runs, name, memory)
        lines.append(
            [
                name,
                section["kinds"][name],
                ratio(cpu, reference[0]),
                spread(cpu),
                ratio(peak, reference[1]),
                spread(peak, whole),
                spread(rounds.of_runs(runs, name, lambda run: run["set_up"]), "{:.1f}".format),
            ]
        )
    head = ["", "kind", "time over lora's", "CPU seconds a step", "memory over lora's", "MB", "set-up, s"]
    text.append(table(head, lines))
    text += [f"- `{name}` was not measured: {reason}" for name, reason in rounds.failures(runs).items()]
    return "\n".join([*text, noisy(rounds.times(runs, list(section["kinds"])), section["rounds"])])


def memory(run: dict[str, Any]) -> float:
    """Peak above the model."""
    return run["peak_mb"]
