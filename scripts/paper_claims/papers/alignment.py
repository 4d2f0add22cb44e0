"""LoRA-GA and LoRA-One: the first step goes along the full gradient."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from paper_claims.claim import Claim, Facts, Measure, Verdict, losses

if TYPE_CHECKING:
    from paper_claims.first_step import FirstStep

TIMES = 2.0
"""of the baseline's cosine, at least, on every seed"""


def nearer_the_gradient(facts: Facts) -> Verdict:
    """Every run has at least TIMES the baseline's cosine in a gradient step, on every seed."""
    found, base = facts["measured"]["descent"], facts["baseline"]
    others = {run: by_seed for run, by_seed in found.items() if run != base}
    shows = all(by_seed[seed] >= TIMES * lora for by_seed in others.values() for seed, lora in found[base].items())
    words = "; ".join(f"{run} {losses(by_seed)}" for run, by_seed in {base: found[base], **others}.items())
    return Verdict(shows, f"the cosine of a gradient step is: {words}.")


@cache
def step_of(folder: str) -> FirstStep:
    from paper_claims.first_step import first_step

    return first_step(Path(folder))


def cosine_of(folder: str, change: str, gradient: str) -> float:
    from paper_claims.first_step import cosine

    step = step_of(folder)
    return cosine(getattr(step, change), getattr(step, gradient))


CLAIM = Claim(
    "alignment",
    "The first step of LoRA-GA and LoRA-One goes along the full gradient",
    "Wang et al., 2024, arXiv 2407.05000; Zhang et al., 2025, arXiv 2502.01235",
    "LoRA-GA starts A and B so that a gradient step changes the weight by a multiple of the full gradient, cut to rank "
    "2r; LoRA-One starts them from a small step against the full gradient itself, cut to rank r. With B = 0 a gradient "
    "step changes the weight along what a random A lets through.",
    "On every seed the change of the weights in the first gradient step, - s (B dA + dB A) with dA and dB the "
    "gradients of A and B, has for LoRA-GA and for LoRA-One at least twice LoRA's cosine with the full gradient step: "
    "that of the same 32 rows at the same weights, all layers as one vector. The starts have looked at 8 of these "
    "rows, so the gradient of all 256 is asked too. AdamW's first step takes the signs of dA and dB; what it made in "
    "the run is told beside, for the step alone and for start and step together against the base, and judges nothing.",
    nearer_the_gradient,
    (
        Measure("descent", "gradient step", lambda run, _: cosine_of(run, "descent", "gradient")),
        Measure("all_rows", "gradient step, all rows", lambda run, _: cosine_of(run, "descent", "all_rows")),
        Measure("made", "AdamW's step", lambda run, _: cosine_of(run, "made", "gradient")),
        Measure("whole", "start and AdamW's step", lambda run, _: cosine_of(run, "whole", "at_base")),
    ),
)
