"""What is fixed before any result: methods, rates, seeds, steps and rows of each tier; docs/benchmark-real.md tells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from method_benchmark import files as toy

from lrft import registry
from lrft.utils import files
from real_benchmark.rows.all import TASKS

RECIPE = Path("recipes/benchmark/real/common.yaml")
WORK, KEPT = Path("runs/benchmark-real"), Path("docs/benchmark/real")
MODEL = "SmolLM2-135M-Instruct"
BASELINE = registry.DEFAULT_METHOD
ROWS_A_STEP = 8
SEARCH_SEEDS, FINAL_SEEDS = (1,), (2, 3, 4)
SCREENED_ON = "commands"
RATE = 2e-3
"""LoRA's, the middle of its rates"""
WIDE, NEAR = (0.25, 1.0, 4.0), (0.4, 1.0, 2.5)
"""times the middle rate: of a first search, and around the rate that a first search has found"""
STEPS = {"commands": 60, "intents": 60, "sums": 60, "sentences": 48, "facts": 110}
"""of a final run, by task"""

FEW = ("rslora", "dora", "pissa", "lora+", "mora")
SOME = (*FEW, "lora-ga", "randlora", "delora", "miss", "adalora", "olora", "lora-fa")
MANY = (
    *SOME,
    *("eva", "lora-one", "bone", "melora", "hra", "singlora", "gralora", "lora-sb", "loha", "hira", "oft"),
    *("loft", "lora-rite", "lora-pro", "ba-lora", "lotr", "dylora"),
)

OPTIONS: dict[str, dict[str, Any]] = {
    # As many numbers as the baseline, of a method whose size no rank sets.
    "fourierft": {"frequencies": 11_600},
    "lora-ensemble": {"members": 2},
    # At most so many evaluations at each of its attempts: without a limit they cost more than the training.
    "fast-forward": {"most": 8},
}
"""of methods, where the defaults will not do"""


@dataclass(frozen=True)
class Tier:
    """One size of the benchmark.

    methods    screened on SCREENED_ON, or, where `finalists` is their number, taken to the rates at once
    finalists  methods that are left for the tasks, without the baseline
    short      share of a task's steps that the runs of the screening and of the first halving have
    half       the same of the searches of rates of each task
    whole      the same of the final runs
    rate       the baseline's, the middle of its rates
    """

    name: str
    says: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    finalists: int
    short: float
    half: float
    whole: float
    recipe: Path = RECIPE
    rate: float = RATE

    @property
    def screens(self) -> bool:
        return self.finalists < len(self.methods)

    def steps(self, task: str, share: float) -> int:
        return max(4, round(STEPS[task] * share))


NEWER = "newer than these runs"
"""why docs/benchmark.md lacks a method that can be run here all the same"""


def everything() -> tuple[str, ...]:
    """Every method and preset that a recipe of one run can name, but the baseline."""
    outside = {BASELINE, *(name for name, why in toy.OUTSIDE.items() if why != NEWER)}
    return tuple(sorted({*registry.methods(), *registry.PRESETS} - outside))


TIERS = (
    Tier("half-hour", "five methods, one task", ("intents",), FEW, 5, 0.15, 0.15, 0.35),
    Tier("evening", "twelve methods screened, two tasks", ("commands", "intents"), SOME, 5, 0.2, 0.4, 1.0),
    Tier("night", f"{len(MANY)} methods screened, every task", tuple(TASKS), MANY, 7, 0.2, 0.4, 1.0),
    Tier("days", "every method screened, every task", tuple(TASKS), everything(), 15, 0.2, 0.4, 1.0),
)
"""on one CPU thread, from the smallest to the largest; a budget gets the largest that fits"""
EIGHT = Tier(
    "8b",
    "twelve methods screened, every task, an 8B model on one GPU",
    tuple(TASKS),
    SOME,
    5,
    0.2,
    0.4,
    1.0,
    Path("recipes/benchmark-8b/common.yaml"),
    2e-4,
)
ALL = (*TIERS, EIGHT)


@cache
def ratios() -> dict[str, float]:
    """Learning rates over the baseline's, by method: the best of the searches on the small base (docs/benchmark), when
    this design was made. Kept here, so that a later search there changes nothing here."""
    found: dict[str, float] = files.read_json(Path(__file__).with_name("ratios.json"))
    return found


def middle(method: str, rate: float = RATE) -> float:
    """The middle of a method's rates: the baseline's, `rate`, times the ratio; that of the default rates where the
    method was not measured."""
    default = registry.default_rate([method]).value / registry.default_rate([BASELINE]).value
    return rate * ratios().get(method, default)


def around(rate: float, times: tuple[float, ...]) -> list[float]:
    """Rates to try, to two digits."""
    return [float(f"{rate * each:.2g}") for each in times]


def cost() -> dict[str, float]:
    """Seconds, as measured: see plan.Cost."""
    measured: dict[str, float] = files.read_json(KEPT / "cost.json")
    return measured
