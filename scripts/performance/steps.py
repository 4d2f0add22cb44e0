"""Mode `steps`: time and memory of an optimiser step, lrft against its peers and the limit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from performance import contestants, gpu, rounds, rows
from performance.place import Place, refuse_other_torch
from performance.rounds import Plan, Run
from performance.tables import count, noisy, ratio, spread, table, whole

LOSS_TOLERANCE = 2e-3  # of the first step, where every adapter is zero: relative; float32 needs a tenth of it


def measure(place: Place, options: argparse.Namespace, model: str) -> dict[str, Any]:
    """The section of one model."""
    facts = place.facts()
    refuse_other_torch(facts)
    shape = rows.Shape(options.rows, options.tokens)
    origin = place.origin(model)
    made = rows.batches(shape, vocabulary=origin["config"]["vocab_size"], seed=options.seed)
    path = rows.save(made, place.work / "rows" / f"{model}.json")
    entries = contestants.chosen(options.only)
    plan = Plan(model, path, options.steps, options.rounds, seed=options.seed)
    runs = rounds.measure(place, entries, plan)
    return facts | {
        "model": model,
        "origin": origin,
        "shape": shape.facts() | {"longest": made[0].longest, "labelled_tokens": made[0].labelled},
        "padding": made[0].padding,
        "seed": options.seed,
        "rounds": options.rounds,
        "steps": options.steps,
        "rank": plan.rank,
        "contestants": [{"name": entry.name, "says": entry.says} for entry in entries],
        "unequal": unequal(runs, made[0]),
        "runs": runs,
    }


def unequal(runs: Sequence[Run], batch: rows.Batch) -> list[str]:
    """Who did not see the same tokens, labels and loss as the others: an empty list when all is well."""
    wanted = {"tokens": batch.tokens, "labelled": batch.labelled, "checksum": batch.checksum}
    good = [run for run in runs if "error" not in run]
    found = [
        f"{run['contestant']}: {what} {run.get(what)} instead of {value}"
        for run in good
        for what, value in wanted.items()
        if run.get(what) != value
    ]
    if good:
        first = good[0]["losses"][0]
        found += [
            f"{run['contestant']}: first loss {run['losses'][0]:.5f}, {good[0]['contestant']} has {first:.5f}"
            for run in good
            if not abs(run["losses"][0] - first) <= LOSS_TOLERANCE * abs(first)
        ]
    return list(dict.fromkeys(found))


def page(section: dict[str, Any]) -> str:
    """The section as Markdown."""
    runs, shape = section["runs"], section["shape"]
    order = [entry["name"] for entry in section["contestants"]]
    measured = rounds.names(runs, order)
    size, threads = section["origin"]["config"], section["threads"]
    weights = section["origin"]["weights"]
    text = [
        f"{weights[0].upper()}{weights[1:]}, {size['num_hidden_layers']} layers of width {size['hidden_size']}, "
        f"vocabulary {size['vocab_size']:,}; LoRA of rank {section['rank']} on every linear layer but the head; "
        f"{dtype(section)}, {count(threads, 'thread')}. A step is {shape['rows']} rows with "
        f"{shape['tokens']:,} tokens, {shape['labelled_tokens']:,} of them labelled, the longest {shape['longest']}: "
        f"padded to it, {section['padding']:.0%} of a batch is padding. {count(section['rounds'], 'round')}, "
        f"alternating, "
        f"each system in a fresh process, {count(section['steps'], 'step')} measured after one warm-up step: median "
        f"(min..max). Over the lower bound (`limit`): {'wall' if section['machine']['gpu'] else 'CPU'} time.",
        "",
        table(head(section), [line(section, name) for name in measured]),
        "",
        *[f"- `{entry['name']}`: {entry['says']}" for entry in section["contestants"]],
    ]
    text += [f"- `{name}` failed: {reason}" for name, reason in rounds.failures(runs).items()]
    if section["unequal"]:
        text += ["", "**Not the same work:** " + "; ".join(section["unequal"])]
    else:
        text += ["", f"All systems trained on the same tokens and labels; loss of the first step {losses(runs)}."]
    return "\n".join([*text, noisy(rounds.times(runs, order), section["rounds"])])


def head(section: dict[str, Any]) -> list[str]:
    columns = [
        "",
        "seconds a step",
        "CPU seconds a step",
        "tokens/s",
        "over the lower bound",
        "memory above the model, MB",
    ]
    return [*columns, "set-up, s", *(["arithmetic used"] if rates(section) else [])]


def line(section: dict[str, Any], name: str) -> list[str]:
    """One row of the table."""
    runs, tokens = section["runs"], section["shape"]["tokens"]
    wall, cpu = (rounds.counted(runs, name, what) for what in ("wall", "cpu"))
    cells = [
        name,
        spread(wall),
        spread(cpu),
        spread([tokens / seconds for seconds in wall], whole),
        over_limit(section, name),
        spread(rounds.of_runs(runs, name, lambda run: run["peak_mb"]), whole),
        spread(rounds.of_runs(runs, name, lambda run: run["set_up"]), "{:.1f}".format),
    ]
    if rates(section):
        config = SimpleNamespace(**section["origin"]["config"])
        flops = gpu.step_flops(config, tokens, section["shape"]["labelled_tokens"])
        cells.append(spread([flops / seconds / max(rates(section)) for seconds in wall], "{:.0%}".format))
    return cells


def over_limit(section: dict[str, Any], name: str) -> str:
    """Time over the limit's: processor time where that is what works, else wall time."""
    what = "wall" if section["machine"]["gpu"] else "cpu"
    return ratio(*(rounds.counted(section["runs"], who, what) for who in (name, "limit")))


def rates(section: dict[str, Any]) -> list[float]:
    """What the GPU did in a plain matrix product, operations per second; empty on a CPU."""
    return [run["matmul_rate"] for run in section["runs"] if "matmul_rate" in run]


def dtype(section: dict[str, Any]) -> str:
    return "bfloat16 on the GPU" if section["machine"]["gpu"] else "float32 on the CPU"


def losses(runs: Sequence[Run]) -> str:
    found = [run["losses"][0] for run in runs if "error" not in run]
    return f"{min(found):.5f} to {max(found):.5f}"
