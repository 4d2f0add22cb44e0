"""Mode `methods`: what a step of every method costs, against lora, at equal numbers to train on the small model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from performance import processes, rounds, rows
from performance.contestants import Contestant, lrft
from performance.place import Place
from performance.rounds import Plan
from performance.tables import count, noisy, ratio, spread, table, whole

MODEL = "small"
REFERENCE = "lora"


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    facts = place.facts()
    shape = rows.Shape(8, options.method_tokens)
    vocabulary = place.origin(MODEL)["config"]["vocab_size"]
    made = rows.batches(shape, vocabulary=vocabulary, seed=options.seed)
    path = rows.save(made, place.work / "rows" / "methods.json")
    plan = Plan(MODEL, path, options.steps, options.rounds, seed=options.seed)
    methods = known(place.python, place.model(MODEL), plan.rank, place.threads)
    runs = rounds.measure(place, [entry(name, facts["rank"]) for name, facts in methods.items()], plan)
    return facts | {
        "model": MODEL,
        "methods": methods,
        "shape": shape.facts(),
        "seed": options.seed,
        "rounds": options.rounds,
        "steps": options.steps,
        "rank": plan.rank,
        "runs": runs,
    }


def known(python: Path, model: Path, rank: int, threads: int) -> dict[str, dict[str, Any]]:
    """Every method that this lrft has: its kind, rank and trained numbers. Raises RuntimeError."""
    asked = processes.run([python, "-m", "performance.equal", model, str(rank)], threads=threads)
    if asked.code:
        raise RuntimeError(asked.reason())
    return json.loads(asked.out)


def entry(name: str, rank: int) -> Contestant:
    """The method with its default options; a part that builds nothing goes onto lora."""
    return lrft(name, "", f"adapter.method={name}", f"adapter.rank={rank}")


def page(section: dict[str, Any]) -> str:
    runs, methods = section["runs"], section["methods"]
    reference = rounds.counted(runs, REFERENCE, "cpu"), rounds.of_runs(runs, REFERENCE, memory)
    text = [
        f"Default options, each method at the rank with the trainable-parameter count closest to lora of rank "
        f"{section['rank']}, the {section['model']} model, {section['shape']['rows']} rows with "
        f"{section['shape']['tokens']:,} tokens, {count(section['rounds'], 'round')}, "
        f"{count(section['steps'], 'step')} measured. Parts that do not build an adapter are combined with lora. "
        f"`rslora` has the same "
        "arithmetic as lora: the distance of its ratios from 1 shows the noise of all.",
        "",
    ]
    lines = []
    for name in rounds.names(runs, list(methods)):
        cpu, peak = rounds.counted(runs, name, "cpu"), rounds.of_runs(runs, name, memory)
        lines.append(
            [
                name,
                methods[name]["kind"],
                str(methods[name]["rank"]),
                f"{(methods[name]['trained'] or 0) / 1e6:.3f} M",
                ratio(cpu, reference[0]),
                spread(cpu),
                ratio(peak, reference[1]),
                spread(peak, whole),
                spread(rounds.of_runs(runs, name, lambda run: run["set_up"]), "{:.1f}".format),
            ]
        )
    head = [
        "",
        "kind",
        "rank",
        "trainable",
        "time over lora's",
        "CPU seconds a step",
        "memory over lora's",
        "MB",
        "set-up, s",
    ]
    text.append(table(head, lines))
    text += [f"- `{name}` was not measured: {reason}" for name, reason in rounds.failures(runs).items()]
    return "\n".join([*text, noisy(rounds.times(runs, list(methods)), section["rounds"])])


def memory(run: dict[str, Any]) -> float:
    """Peak above the model."""
    return run["peak_mb"]
