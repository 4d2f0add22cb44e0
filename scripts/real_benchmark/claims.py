"""Claims of papers, to be tried on the real model: comparisons of the same runner, small enough for one hour each.

Of each, rates are searched on the validation rows with seed 1; then the figure is that of the test rows over the final
seeds. It shows where `run` is better than every one of `than` on every seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lrft.compare.intervals import mean
from real_benchmark import stages
from real_benchmark.design import BASELINE, FINAL_SEEDS, SEARCH_SEEDS, STEPS, WIDE, WORK, around, middle
from real_benchmark.plan import Stage, factor
from real_benchmark.stages import RATE, Part

FOLDER = "claims"


@dataclass(frozen=True)
class Claim:
    """runs: keys of the recipe by name. run, than: names. figure: `loss` or `figure` of the test rows.
    share: of the task's steps."""

    name: str
    says: str
    paper: str
    task: str
    runs: Mapping[str, Mapping[str, Any]]
    run: str
    than: tuple[str, ...]
    figure: str = "loss"
    budget: str = "parameters"
    share: float = 1.0
    noisy: bool = False
    """train on the rows with wrong labels"""

    @property
    def baseline(self) -> str:
        return self.than[0]


def ranks(method: str, *those: int) -> dict[str, dict[str, Any]]:
    return {f"{method}-{rank}": {"adapter.method": method, "adapter.rank": rank} for rank in those}


def named(*methods: str) -> dict[str, dict[str, Any]]:
    return {method: {"adapter.method": method} for method in methods}


def ratios(*those: float) -> dict[str, dict[str, Any]]:
    return {f"ratio-{ratio:g}": {"adapter.method": {"lora+": {"ratio": ratio}}} for ratio in those}


CLAIMS = (
    Claim(
        "memorising",
        "MoRA memorises more random pairs than a LoRA of as many numbers",
        "Jiang et al., 2024, arXiv 2405.12130",
        "facts",
        named("lora", "mora"),
        "mora",
        ("lora",),
        figure="figure",
    ),
    Claim(
        "high-rank",
        "rsLoRA gains from a high rank, and more than LoRA",
        "Kalajdzievski, 2023, arXiv 2312.03732",
        "sums",
        {**ranks("lora", 4, 64), **ranks("rslora", 4, 64)},
        "rslora-64",
        ("rslora-4", "lora-64"),
        budget="none",
    ),
    Claim(
        "ratio",
        "LoRA+ with a ratio above 1 ends lower than with the ratio 1, which is LoRA",
        "Hayou et al., 2024, arXiv 2402.12354",
        "commands",
        {**ratios(1, 4, 16)},
        "ratio-16",
        ("ratio-1",),
    ),
    Claim(
        "low-rank",
        "DoRA is ahead of LoRA where the rank is low",
        "Liu et al., 2024, arXiv 2402.09353, section 5.5",
        "commands",
        {**ranks("lora", 2), **ranks("dora", 2)},
        "dora-2",
        ("lora-2",),
        budget="none",
    ),
    Claim(
        "pissa-steps",
        "PiSSA is ahead of LoRA after as many steps",
        "Meng et al., 2024, arXiv 2404.02948",
        "commands",
        named("lora", "pissa"),
        "pissa",
        ("lora",),
        share=0.4,
    ),
    Claim(
        "olora-steps",
        "OLoRA is ahead of LoRA after as many steps",
        "Büyükakyüz, 2024, arXiv 2406.01775",
        "commands",
        named("lora", "olora"),
        "olora",
        ("lora",),
        share=0.4,
    ),
    Claim(
        "noise",
        "BA-LoRA is better than PiSSA where a third of the labels are wrong",
        "Chang et al., 2024, arXiv 2408.04556",
        "intents",
        named("pissa", "ba-lora"),
        "ba-lora",
        ("pissa",),
        figure="figure",
        noisy=True,
    ),
    Claim(
        "near-full",
        "LoRA-Pro ends lower than LoRA",
        "Wang et al., 2024, arXiv 2407.18242",
        "sums",
        named("lora", "lora-pro"),
        "lora-pro",
        ("lora",),
    ),
    Claim(
        "dealt-ranks",
        "AdaLoRA, which deals ranks to the layers, ends lower than LoRA of as many numbers",
        "Zhang et al., 2023, arXiv 2303.10512",
        "sentences",
        named("lora", "adalora"),
        "adalora",
        ("lora",),
    ),
)


def factor_of(name: str) -> float:
    """Seconds of a step over LoRA's, the mean of a claim's runs."""
    return factor([method_of(keys) for keys in named_claim(name).runs.values()])


def named_claim(name: str) -> Claim:
    return next(claim for claim in CLAIMS if claim.name == name)


def parts(claim: Claim) -> list[Part]:
    """The search of its rates, and the runs that are judged."""
    steps = max(4, round(claim.share * STEPS[claim.task]))
    searched = Stage(f"{claim.name}-rates", "rates", claim.task, len(claim.runs), len(WIDE), SEARCH_SEEDS, steps)
    judged = Stage(f"{claim.name}-final", "final", claim.task, len(claim.runs), 1, FINAL_SEEDS, steps)
    return [Part(FOLDER, stage, partial(comparison, claim, stage)) for stage in (searched, judged)]


def comparison(claim: Claim, stage: Stage) -> dict[str, Any]:
    """The file of a claim's stage as data. Raises LookupError where the search has not been run."""
    tried = {name: around(middle(method_of(keys)), WIDE) for name, keys in claim.runs.items()}
    if stage.kind == "final":
        found = stages.kept(FOLDER, f"{claim.name}-rates")
        if found is None:
            raise LookupError(f"{claim.name}-rates")
        tried = {name: stages.best_rates(found, name)[:1] for name in claim.runs}
    recipe = stages.recipe(stage)
    if claim.noisy:
        recipe["data"]["train"] = str(WORK / "data" / "intents-noisy.jsonl")
    return {
        "recipe": recipe,
        "runs": {name: {**keys, RATE: tried[name]} for name, keys in claim.runs.items()},
        "grid": {RATE: tried[claim.baseline]},
        "seeds": list(stage.seeds),
        "budget": claim.budget,
        "baseline": claim.baseline,
        "output_dir": str(stages.folder(FOLDER, stage.name)),
    }


def method_of(keys: Mapping[str, Any]) -> str:
    """The name of a run's method, whatever its options."""
    given = keys.get("adapter.method", BASELINE)
    return str(given if isinstance(given, str) else next(iter(given)))


def verdict(claim: Claim, values: Mapping[str, Sequence[float]]) -> str:
    """`shows` or `does not show`, and the figures. values: of the test rows, by run, in the order of the seeds."""
    if any(name not in values for name in (claim.run, *claim.than)):
        return "no result: a run failed"
    sign = 1 if claim.figure == "loss" else -1
    mine = values[claim.run]
    better = all(sign * (a - b) < 0 for name in claim.than for a, b in zip(mine, values[name], strict=True))
    said = ", ".join(f"{name} {mean(values[name]):.3f}" for name in (claim.run, *claim.than))
    return f"**{'shows' if better else 'does not show'}**: {said}"
