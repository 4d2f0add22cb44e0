"""Mode `preferences`: a step of dpo against a step of sft on the same tokens, and against TRL's DPOTrainer."""

from __future__ import annotations

import argparse
from typing import Any

from performance import contestants, rounds, rows
from performance.place import Place, refuse_other_torch
from performance.rounds import Plan
from performance.steps import dtype, unequal
from performance.tables import count, noisy, ratio, spread, table, whole

SFT, OWN, PEER = "lrft, sft", "lrft, dpo", "trl dpo"


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    facts = place.facts()
    refuse_other_torch(facts)
    model = (options.model or ["smollm2"])[0]
    origin = place.origin(model)
    shape = rows.Shape(options.rows, options.tokens)
    made = rows.batches(shape, vocabulary=origin["config"]["vocab_size"], seed=options.seed)
    made = [rows.in_pairs(batch) for batch in made]
    path = rows.save_pairs(made, place.work / "rows" / f"{model}-pairs.json")
    entries = contestants.chosen(options.only, contestants.PREFERENCES)
    runs = rounds.measure(place, entries, plan := Plan(model, path, options.steps, options.rounds, seed=options.seed))
    first = made[0]
    return facts | {
        "model": model,
        "origin": origin,
        "shape": {"rows": len(first.rows), "tokens": first.tokens, "labelled_tokens": first.labelled},
        "longest": first.longest,
        "padding": first.padding,
        "seed": options.seed,
        "rounds": options.rounds,
        "steps": options.steps,
        "rank": plan.rank,
        "contestants": [{"name": entry.name, "says": entry.says} for entry in entries],
        "unequal": unequal([run for run in runs if run["contestant"] != SFT], first),
        "runs": runs,
    }


def page(section: dict[str, Any]) -> str:
    runs, shape = section["runs"], section["shape"]
    order = [entry["name"] for entry in section["contestants"]]
    weights = section["origin"]["weights"]
    text = [
        f"{weights[0].upper()}{weights[1:]}; LoRA of rank {section['rank']}, {dtype(section)}, "
        f"{count(section['threads'], 'thread')}. A step is {shape['rows'] // 2} pairs: {shape['rows']} sequences with "
        f"{shape['tokens']:,} tokens, {shape['labelled_tokens']:,} of them in answers, the longest "
        f"{section['longest']}. {count(section['rounds'], 'round')}, alternating, each system in a fresh process, "
        f"{count(section['steps'], 'step')} measured after one warm-up step: median (min..max).",
        "",
        table(
            ["", "CPU seconds a step", "tokens a CPU second", f"over {SFT}", f"{PEER} over it", "memory above, MB"],
            [line(section, name) for name in rounds.names(runs, order)],
        ),
        "",
        *[f"- `{entry['name']}`: {entry['says']}" for entry in section["contestants"]],
    ]
    text += [f"- `{name}` failed: {reason}" for name, reason in rounds.failures(runs).items()]
    if section["unequal"]:
        text += ["", "**Not the same work:** " + "; ".join(section["unequal"])]
    return "\n".join([*text, noisy(rounds.times(runs, order), section["rounds"])])


def line(section: dict[str, Any], name: str) -> list[str]:
    """One row of the table."""
    runs = section["runs"]
    cpu, sft, peer = (rounds.counted(runs, who, "cpu") for who in (name, SFT, PEER))
    return [
        name,
        spread(cpu),
        spread([section["shape"]["tokens"] / seconds for seconds in cpu], whole),
        ratio(cpu, sft),
        ratio(peer, cpu),
        spread(rounds.of_runs(runs, name, lambda run: run["peak_mb"]), whole),
    ]
