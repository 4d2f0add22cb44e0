"""The comparisons in recipes/benchmark: every method that there is, made from the catalogue.

The first searches learning rates, on one task and one seed. The others, one for each task, take what was best there,
from docs/benchmark, and train with other seeds: a rate that suited its seed by chance gains nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.utils import files
from method_benchmark.tasks import TASKS

FOLDER, KEPT = Path("recipes/benchmark"), Path("docs/benchmark")
SEARCH, SEARCHED = "rates", "instructions"
"""the comparison that searches, and its task"""
COMPARISONS = (SEARCH, *TASKS)
SEEDS = {SEARCH: (1,), **dict.fromkeys(TASKS, (2, 3))}
LADDER = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""learning rates to search"""
BETWEEN = (1e-3, 1e-2)
"""the first and the last rate of a method that RATES does not name"""
HIGHER, LOWER, WIDER = (3e-3, 3e-2), (3e-4, 3e-3), (1e-3, 3e-2)
RATES: dict[str, tuple[float, float]] = {
    # Little is trained, or it is damped by a small factor, or masked.
    **dict.fromkeys(("dcft", "delora", "edora", "roselora"), HIGHER),
    **dict.fromkeys(("aflora", "lori", "nola"), (3e-3, 0.1)),
    "flora-batched": (3e-3, 0.3),
    **dict.fromkeys(("fourierft", "vera"), (1e-2, 0.3)),
    "c3a": (3e-2, 3.0),
    # The weights themselves are trained, or a step goes further than LoRA's.
    **dict.fromkeys(("full", "frugal", "flora", "corda", "lora+", "lora-ga", "remora"), LOWER),
    "randlora": (3e-4, 1e-2),
    # The best of what was tried first lay at its end.
    **dict.fromkeys(("dct-adamw", "elalora", "fedsvd", "hra", "increlora", "lora-dropout", "lora-fa"), WIDER),
    **dict.fromkeys(("lora-xs", "lorma", "lotr", "melora"), WIDER),
    **dict.fromkeys(("adalora", "galore", "pego"), (1e-3, 0.1)),
}
OPTIONS: dict[str, Any] = {
    # Sizes that no rank sets: about as many numbers as the baseline where that can be paid for.
    "fourierft": {"frequencies": 4800},
    "dcft": {"kernel": 64},
    "nola": {"basis": 64},
    "lora-ensemble": {"members": 2},
    # At most so many evaluations at each of its attempts: without a limit they cost more than the training.
    "fast-forward": {"most": 8},
    # What the defaults were when these were measured.
    "galore": {"factor": 0.25},
    "frugal": {"projection": "block", "inactive_scale": 1.0},
    "lori": {"sparse_rate": 1.0},
    "sorsa": {"penalty": 0.04},
}
LATER = (
    "adversarial-model-perturbation",
    "allora",
    "ard-lora",
    "autolora",
    "bilora",
    "blockllm",
    "coap",
    "comp-lora",
    "curlora",
    "cuttlefish",
    "denselora",
    "diffora",
    "dora-dynamic",
    "dota",
    "dress",
    "finegates",
    "galore-plus",
    "gor",
    "gradient-regularization",
    "gradnormlorp",
    "hira",
    "ia3",
    "lamda",
    "loft",
    "loha",
    "lokr",
    "loldu",
    "lora-ggpo",
    "lora-mini",
    "lora-rite",
    "lora2",
    "loram",
    "loraprune",
    "lorb-correlation",
    "lors",
    "lorta",
    "low-rank-tickets",
    "lte",
    "maestro",
    "norm-loss",
    "online-subspace-descent",
    "orthonormal-constraint",
    "pmss",
    "reslora",
    "riemannlora",
    "salt",
    "sam",
    "sara",
    "slope",
    "sltrain",
    "spectral-reg",
    "sst",
    "svfit",
    "wara",
    "weight-refactorization",
    "welore",
)
"""methods that are newer than the runs of this page"""
OUTSIDE: dict[str, str] = {
    "eigenlorax": "it needs adapters that were trained before, of the same base",
    "autolora-ranks": "it needs a finished search of autolora",
    "booster": "it needs rows that the model is to resist",
    **dict.fromkeys(LATER, "newer than these runs"),
}
"""methods that have no row, and why"""


def runs(comparison: str) -> Iterator[tuple[str, str]]:
    """(name, what stands behind it) of each run: the baseline first, then by name."""
    best = {} if comparison == SEARCH else best_rates()
    names = sorted({*registry.methods(), *registry.PRESETS} - {*OUTSIDE, registry.DEFAULT_METHOD})
    for name in (registry.DEFAULT_METHOD, *names):
        keys = []
        if name in OPTIONS:
            given = ", ".join(f"{key}: {value}" for key, value in OPTIONS[name].items())
            keys.append(f"adapter.method: {{{name}: {{{given}}}}}")
        if name in best:
            keys.append(f"training.learning_rate: {best[name]}")
        elif name in RATES and comparison == SEARCH:
            keys.append(f"training.learning_rate: {rates(RATES[name])}")
        yield name, f" {{{', '.join(keys)}}}" if keys else ""


def rates(between: tuple[float, float]) -> list[float]:
    """Of LADDER, both ends too."""
    low, high = between
    return [rate for rate in LADDER if low <= rate <= high]


def best_rates() -> dict[str, float]:
    """By run; nothing for one that has not been tried."""
    kept = files.read_json(KEPT / f"{SEARCH}.json")
    return {row["run"]: row["best"]["training.learning_rate"] for row in kept["methods"] if row["best"]}


def text(comparison: str) -> str:
    search = comparison == SEARCH
    task = SEARCHED if search else comparison
    head = f"The search for each method's learning rate, on the {task}" if search else f"The {task} task"
    lines = [
        f"# {head} of docs/benchmark.md: every method that there is.",
        "# `scripts/benchmark files` writes this file.",
        "recipe:",
        "  extends: common.yaml",
        f"  data: {{train: runs/benchmark/{task}.jsonl, validation: runs/benchmark/{task}-validation.jsonl}}",
        "runs:",
        *(f"  {name}:{keys}" for name, keys in runs(comparison)),
        *(["grid:", f"  training.learning_rate: {rates(BETWEEN)}"] if search else []),
        f"seeds: {list(SEEDS[comparison])}",
        f"output_dir: runs/benchmark/{comparison}",
    ]
    return "\n".join(lines) + "\n"


def write(comparisons: Iterable[str] = COMPARISONS) -> None:
    for comparison in comparisons:
        (FOLDER / f"{comparison}.yaml").write_text(text(comparison), encoding="utf-8")
