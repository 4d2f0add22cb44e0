"""`lrft compare --suggest`: methods worth a try for a goal, with the figures that say so.

The figures come from docs/benchmark-real.md, for methods that were run there, else from docs/benchmark.md (a small base
and small tasks); docs/performance.md (a step's time and memory) and docs/claims.md (forgetting). `scripts/docs`
collects them in evidence.json. Each is relative to LoRA's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrft import recipe, registry
from lrft.compare.columns import NOTHING
from lrft.utils import files
from lrft.utils.text import aligned

BASELINE = "lora"
SHOWN = 5
NEAR = 1.25
"""times LoRA's trainable parameters that count as an equal budget"""
WORSE = 0.05
"""share by which the loss of a method that saves time or memory may be above LoRA's"""
CAVEAT = (
    "measured on a small base and small tasks (docs/benchmark.md, docs/performance.md, docs/claims.md), losses with * "
    "on a model of 135 million weights (docs/benchmark-real.md): candidates to compare on your own data, no ranking of "
    "them"
)


@dataclass(frozen=True)
class Measured:
    """What is known of a method, each figure over LoRA's; None where nothing was measured."""

    name: str
    method: tuple[str, ...]
    """what a recipe says"""
    exports: str
    losses: tuple[float, ...] = ()
    """change of the validation loss, of each task and seed"""
    parameters: float | None = None
    step: float | None = None
    memory: float | None = None
    forgotten: float | None = None
    real: bool = False
    """whether the losses are those of a real model"""

    @property
    def loss(self) -> float | None:
        """Mean change of the loss over tasks and seeds."""
        return statistics.fmean(self.losses) if self.losses else None

    @property
    def at_equal_budget(self) -> bool:
        return self.parameters is not None and self.parameters <= NEAR

    @property
    def as_good(self) -> bool:
        return self.loss is not None and self.loss <= WORSE


@dataclass(frozen=True)
class Goal:
    """figure: what is to be small. among: which methods are asked."""

    says: str
    figure: Callable[[Measured], float | None]
    among: Callable[[Measured], bool] = lambda found: True


GOALS = {
    "quality": Goal(
        f"the lowest validation loss with at most {NEAR:g} times LoRA's trainable parameters",
        lambda found: found.loss,
        lambda found: found.at_equal_budget,
    ),
    "memory": Goal(
        f"the least memory of a step, where the loss is at most {WORSE:.0%} above LoRA's",
        lambda found: found.memory,
        lambda found: found.as_good,
    ),
    "speed": Goal(
        f"the shortest step, where the loss is at most {WORSE:.0%} above LoRA's",
        lambda found: found.step,
        lambda found: found.as_good,
    ),
    "forgetting": Goal(
        "the smallest rise of the loss of general text, as far as it was measured",
        lambda found: found.forgotten,
        lambda found: found.forgotten is not None and found.forgotten < 1,
    ),
    "serving": Goal(
        f"the lowest validation loss of those that are a PEFT LoRA afterwards, with at most {NEAR:g} times LoRA's "
        "trainable parameters",
        lambda found: found.loss,
        lambda found: found.at_equal_budget and found.exports.startswith("PEFT LoRA"),
    ),
}


def measured() -> list[Measured]:
    """Every method that some figure is known of and that this version has."""
    cards = registry.methods()
    evidence: Mapping[str, Any] = files.read_json(Path(__file__).with_name("evidence.json"))
    found = []
    for name, facts in evidence.items():
        words = tuple(facts["method"])
        if not all(word in cards or word in registry.PRESETS for word in words):
            continue
        real = facts.get("real", {})
        losses = tuple(change for changes in (real or facts["loss"]).values() for change in changes)
        figures = {key: facts.get(key) for key in ("parameters", "step", "memory", "forgotten")}
        found.append(Measured(name, words, exports_of(words), losses, **figures, real=bool(real)))
    return found


def exports_of(words: Sequence[str]) -> str:
    """What a method or a combination is afterwards, in the words of the last that changes it."""
    cards = registry.methods()
    entries = recipe.parse_adapter({"method": list(words)}).method
    said = [cards[entry.name].exports for entry in entries if cards[entry.name].exports != "as the method"]
    return said[-1] if said else cards[BASELINE].exports


def suggest(goal: str) -> list[Measured]:
    """The methods to try for a goal of GOALS, LoRA first, the best of the others behind it."""
    wanted, known = GOALS[goal], measured()
    (baseline,) = (found for found in known if found.name == BASELINE)
    asked = [found for found in known if found is not baseline and wanted.among(found)]
    ranked = sorted((value, n) for n, found in enumerate(asked) if (value := wanted.figure(found)) is not None)
    return [baseline, *(asked[n] for _, n in ranked[:SHOWN])]


def table(found: Sequence[Measured]) -> list[str]:
    """Lines of a table, LoRA first."""
    head = ["method", "loss", "parameters", "step", "memory", "general text"]
    rows = [
        [row.name, loss_of(row), *map(times, (row.parameters, row.step, row.memory, row.forgotten))] for row in found
    ]
    return aligned([head, *rows], figures=True)


def loss_of(found: Measured) -> str:
    """A star marks losses of a real model."""
    return change(found.loss) + ("*" if found.real else "")


def change(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.1%}"


def times(value: float | None) -> str:
    return NOTHING if value is None else f"x {value:.2f}"


def comparison(found: Sequence[Measured], recipe_file: str) -> str:
    """A comparison file of these methods."""
    lines = [
        f"recipe: {recipe_file}",
        "# Each at its own default learning rate, unless a grid has some.",
        "runs:",
        *(f"  {row.name}: [{', '.join(row.method)}]" for row in found),
        "seeds: [1, 2, 3]",
        "output_dir: runs/compare",
    ]
    return "\n".join(lines) + "\n"
