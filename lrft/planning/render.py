"""A plan as the lines of a table, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lrft.planning import communication
from lrft.planning.communication import H100_LINKS
from lrft.planning.plan import EFFICIENCY, Plan
from lrft.recipe import Recipe
from lrft.runs import after_training
from lrft.utils.text import Row, amount, byte_size, count, duration


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values, with totals."""
    facts = asdict(plan) | {"seconds": plan.seconds}
    facts |= {"communication": plan.communication, "exchange": plan.exchange, "efficiency": plan.efficiency}
    facts["memory"] = {name: asdict(part) | {"total": part.total} for name, part in plan.memory.items()}
    for name, placed in plan.placements.items():
        facts["placements"][name]["memory"]["total"] = placed.memory.total
    return facts


def table_rows(plan: Plan, recipe: Recipe) -> list[Row]:
    """The plan as `lrft plan` shows it."""
    held = plan.memory[plan.strategy]
    width = max(len(m["module"]) for m in plan.modules)
    modules = [
        f"{m['module']:<{width}} {m['layers']:>4} x {m['d']:>6} x {m['k']:<6}"
        + (f" {amount(m['trained'], 3):>11} trainable" if m["trained"] else "")
        for m in plan.modules
    ]
    parts = [
        ("process", held.process, "Python, libraries, tokenizer, data"),
        ("weights", held.weights, f"frozen{quantized_words(recipe)}{divided_words(plan, plan.strategy)}"),
        ("others", held.others, f"frozen, for the objective {recipe.training.objective.name}"),
        ("adapter", held.adapter, ""),
        ("gradients", held.gradients, ""),
        ("optimizer", held.optimizer, ""),
        ("activations", held.activations, f"{count(plan.largest, 'token')}, {recipe.training.gradient_checkpointing} "
         "checkpointing"),
        ("backward", held.at_the_end, "logits, and one layer's gradients"),
    ]  # fmt: skip
    made_of = f", dequantised from {plan.dequantized_from}" if plan.dequantized_from else ""
    shown = [f"{name:<12}{byte_size(size):>10}   {text}".rstrip() for name, size, text in parts if size]
    said: list[Row] = [
        ("model", [recipe.masked(recipe.model.name), f"{amount(plan.parameters)} parameters{made_of}"]),
        ("modules", modules),
        ("trained", [f"{amount(plan.trained, 3)} ({plan.trained / (plan.parameters + plan.trained):.2%})"]),
        (
            "run",
            [count(plan.steps, "step"), count(plan.tokens, "token"), f"largest pass {count(plan.largest, 'token')}"],
        ),
        ("memory", [*shown, f"{'together':<12}{byte_size(held.total):>10}"]),
        ("time", time_lines(plan)),
        *([("placement", placement_lines(plan, recipe))] if len(plan.placements) > 1 else []),
    ]
    if commands := after_training.shown(recipe):
        said.append(("after", [*commands, "memory and time of these are not estimated"]))
    if plan.devices > 1:
        said.append((f"{plan.devices} devices", device_lines(plan)))
    return said


def device_lines(plan: Plan) -> list[str]:
    """What each strategy asks of a device and of the links between them."""
    between = f", {H100_LINKS.between / 1e9:.0f} GB/s between nodes" if plan.nodes > 1 else ""
    return [
        f"{plan.nodes} x {plan.devices // plan.nodes}: compute speed as on this machine, links of "
        f"{H100_LINKS.inside / 1e9:.0f} GB/s inside a node{between}; calculated, not measured",
        *(
            f"{name}   {byte_size(part.total)} each   sends {byte_size(plan.communication[name])} per step   "
            f"computes {shares(*plan.efficiency[name])} of the time{divided_words(plan, name)}"
            for name, part in plan.memory.items()
        ),
        f"`lrft train` runs {plan.strategy} ({plan.why})",
    ]


def placement_lines(plan: Plan, recipe: Recipe) -> list[str]:
    """What each placement of the base takes of one device."""
    lines = [
        f"{name:<12}{byte_size(placed.memory.total):>10}   {placed.seconds:.3g} s a step"
        + (
            f", copies {byte_size(placed.copied)} at {plan.link.speed / 1e9:.0f} GB/s ({plan.link.name})"
            * (placed.copied > 0)
        )
        for name, placed in plan.placements.items()
    ]
    return [*lines, f"`lrft train` has it {plan.placement} (model.placement: {recipe.model.placement})"]


def divided_words(plan: Plan, name: str) -> str:
    """What a strategy does with the base."""
    over = communication.copies(plan.devices, plan.nodes).get(name)
    return f", blocks divided over {over} devices" if over else ""


def shares(least: float, most: float) -> str:
    """Communication's share of the step, from fully overlapped with computation to not at all."""
    low, high = f"{least:.0%}", f"{most:.0%}"
    return low if low == high else f"{low} to {high}"


def quantized_words(recipe: Recipe) -> str:
    kind = recipe.model.quantization
    return "" if kind == "none" else f", linear layers in {kind}"


def parts_line(plan: Plan) -> str:
    """The parts of one device's memory, largest first."""
    parts = sorted(asdict(plan.memory[plan.strategy]).items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {byte_size(size)}" for name, size in parts if size >= 1e6)


def time_lines(plan: Plan) -> list[str]:
    """The whole, and its parts."""
    part, each = plan.time, plan.time.steps / plan.steps
    steps = (
        f"steps {duration(part.steps)}, {each:.3g} s each: {plan.flops / plan.steps / 1e12:,.3g} TFLOP at "
        f"{EFFICIENCY:.0%} of the {plan.speed * plan.devices / 1e9:,.0f} GFLOP/s of matrix multiplication measured "
        "here"
    )
    evaluated = f"{count(plan.evaluations, 'evaluation')} {duration(part.evaluation)}"
    evaluated += f", their answers at most {duration(part.answers)}" if part.answers else ""
    asked = (
        [f"before the first step {duration(part.before)}, to ask the base about all rows once"] if part.before else []
    )
    beside = [f"start {duration(part.start)}", *asked, f"saving {duration(part.saving)}"]
    return [f"about {duration(part.total)}", steps, *([evaluated] if plan.evaluations else []), *beside]
