"""The comparisons in recipes/benchmark: every method that there is, made from the catalogue.

The first searches learning rates, on one task and one seed. The others, one for each task, take what was best there,
from docs/benchmark, and train with other seeds: a rate that suited its seed by chance gains nothing by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.utils import files
from method_benchmark.tasks import TASKS

FOLDER, KEPT = Path("recipes/benchmark"), Path("docs/benchmark")
SEARCH, SEARCHED = "rates", "instructions"
"""the comparison that searches, and its task"""
OF_ADDED, OF_NEWER = "-added", "-newer"
"""ending of the comparisons of ADDED, of LATER"""
ENDINGS = ("", OF_ADDED, OF_NEWER)
COMPARISONS = tuple(name + ending for ending in ENDINGS for name in (SEARCH, *TASKS))
SEEDS = {SEARCH: (1,), **dict.fromkeys(TASKS, (2, 3))}
LADDER = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""learning rates to search"""
BETWEEN = (1e-3, 1e-2)
"""the first and the last rate of a method that RATES does not name"""
OVER_DEFAULT = 15
"""what LoRA's best rate here is over the default that a real model wants: LATER's are searched around their own default
times this, which is BETWEEN for LoRA's"""
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
    # Few numbers between frozen factors, or a rate that stands for plain gradient descent.
    **dict.fromkeys(("loldu", "low-rank-tickets", "svfit"), (3e-2, 0.3)),
    **dict.fromkeys(("bilora", "curlora", "lamda", "lora2", "pmss"), (1e-2, 0.1)),
    **dict.fromkeys(("blockllm", "coap", "dress", "gradnormlorp", "slope"), LOWER),
    "lorta": HIGHER,
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
    "prilora": {"pruned": 0.0},
    "sorsa": {"penalty": 0.04},
}
ADDED = (
    "svfit",
    "coap",
    "online-subspace-descent",
    "lora-rite",
    "loft",
    "riemannlora",
    "curlora",
    "pmss",
    "allora",
    "lora-mini",
    "sltrain",
    "dota",
    "lorta",
)
"""methods that were measured later, in comparisons of their own, with the baseline again"""
IN_TASKS = ("coap", "loft", "lora-rite", "svfit")
"""those of ADDED that were trained on the tasks too, at the rates found"""
LATER = (
    "adversarial-model-perturbation",
    "ard-lora",
    "autolora",
    "bilora",
    "blockllm",
    "boft",
    "comp-lora",
    "cuttlefish",
    "deft",
    "denselora",
    "diffora",
    "dora-dynamic",
    "dress",
    "finegates",
    "galore-plus",
    "glora",
    "gor",
    "gradient-regularization",
    "gradnormlorp",
    "hira",
    "ia3",
    "lamda",
    "loha",
    "lokr",
    "loldu",
    "lora-ggpo",
    "lora2",
    "loram",
    "loraprune",
    "lorb-correlation",
    "lors",
    "low-rank-tickets",
    "lte",
    "maestro",
    "norm-loss",
    "oft",
    "orthonormal-constraint",
    "peanut",
    "pvera",
    "reslora",
    "road",
    "salt",
    "sam",
    "sara",
    "shira",
    "slope",
    "spectral-reg",
    "sst",
    "supertuning",
    "vblora",
    "wara",
    "waveft",
    "weight-refactorization",
    "welore",
)
"""methods that are newer than both: measured over the base of the first runs, which has the same bits when it is made
again, they join their table"""
OUTSIDE: dict[str, str] = {
    "eigenlorax": "it needs adapters that were trained before, of the same base",
    "autolora-ranks": "it needs a finished search of autolora",
    "loftq": "it corrects the rounding of a quantised base, which these runs have not",
    "alora": "of tokens before an invocation it is the base: beside others it has less to train",
    **dict.fromkeys(("kasa", "monteclora", "qalora", "velora"), "newer than these runs"),
    **dict.fromkeys(("tinylora", "unilora", "osf", "psoft", "frod"), "newer than these runs"),
    "booster": "it needs rows that the model is to resist",
}
"""methods that have no row, and why"""


def parted(comparison: str) -> tuple[str, str]:
    """SEARCH or the task of a comparison, and its ending."""
    name = comparison.removesuffix(OF_ADDED).removesuffix(OF_NEWER)
    return name, comparison[len(name) :]


def runs(comparison: str) -> Iterator[tuple[str, str]]:
    """(name, what stands behind it) of each run: the baseline first, then by name."""
    name, ending = parted(comparison)
    best = {} if name == SEARCH else best_rates(ending)
    for run in (registry.DEFAULT_METHOD, *sorted(methods_of(name, ending) - {registry.DEFAULT_METHOD})):
        keys = []
        if run in OPTIONS:
            given = ", ".join(f"{key}: {value}" for key, value in OPTIONS[run].items())
            keys.append(f"adapter.method: {{{run}: {{{given}}}}}")
        if run in best:
            keys.append(f"training.learning_rate: {best[run]}")
        elif (
            name == SEARCH
            and (between := RATES.get(run) or (around(run) if ending == OF_NEWER else BETWEEN)) != BETWEEN
        ):
            keys.append(f"training.learning_rate: {rates(between)}")
        yield run, f" {{{', '.join(keys)}}}" if keys else ""


def methods_of(name: str, ending: str) -> set[str]:
    """The methods of SEARCH or of a task with an ending."""
    if ending == OF_ADDED:
        return {*ADDED} if name == SEARCH else {*IN_TASKS}
    return {*LATER} if ending == OF_NEWER else {*registry.methods(), *registry.PRESETS} - {*OUTSIDE, *ADDED, *LATER}


def around(run: str) -> tuple[float, float]:
    """The rates beside the one of LADDER that is nearest to the method's default, times OVER_DEFAULT."""
    wanted = OVER_DEFAULT * registry.default_rate([run]).value
    nearest = min(range(1, len(LADDER) - 1), key=lambda i: abs(math.log(LADDER[i] / wanted)))
    return LADDER[nearest - 1], LADDER[nearest + 1]


def rates(between: tuple[float, float]) -> list[float]:
    """Of LADDER, both ends too."""
    low, high = between
    return [rate for rate in LADDER if low <= rate <= high]


def best_rates(ending: str) -> dict[str, float]:
    """By run of the comparisons with this ending; nothing for one that has not been tried."""
    path = KEPT / f"{SEARCH}{ending}.json"
    kept = files.read_json(path)["methods"] if path.is_file() else []
    return {row["run"]: row["best"]["training.learning_rate"] for row in kept if row["best"]}


def text(comparison: str) -> str:
    name, ending = parted(comparison)
    search = name == SEARCH
    task = SEARCHED if search else name
    head = f"The search for each method's learning rate, on the {task}" if search else f"The {task} task"
    which = {
        "": "every method of the first runs",
        OF_ADDED: "methods that were measured later",
        OF_NEWER: "the newest methods",
    }
    lines = [
        f"# {head} of docs/benchmark.md: {which[ending]}.",
        "# `scripts/benchmark files` writes this file.",
        "recipe:",
        "  extends: common.yaml",
        f"  data: {{train: runs/benchmark/{task}.jsonl, validation: runs/benchmark/{task}-validation.jsonl}}",
        "runs:",
        *(f"  {name}:{keys}" for name, keys in runs(comparison)),
        *(["grid:", f"  training.learning_rate: {rates(BETWEEN)}"] if search else []),
        f"seeds: {list(SEEDS[name])}",
        f"output_dir: runs/benchmark/{comparison}",
    ]
    return "\n".join(lines) + "\n"


def write(comparisons: Iterable[str] = COMPARISONS) -> None:
    for comparison in comparisons:
        (FOLDER / f"{comparison}.yaml").write_text(text(comparison), encoding="utf-8")
