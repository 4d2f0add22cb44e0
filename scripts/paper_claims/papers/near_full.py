"""LoFT and LoRA-RITE: optimisers of A and B that look at the update, not at the factors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from paper_claims.claim import Claim, Facts, Measure, Verdict, losses, together


def nearer_to_full(facts: Facts) -> Verdict:
    """Both are nearer to full fine-tuning than LoRA, on every seed."""
    found = facts["measured"]["distance"]
    judged = ("loft", "lora-rite")
    held = {run: all(found[run][seed] < theirs for seed, theirs in found["lora"].items()) for run in judged}
    told = "; ".join(f"{run} {losses(found[run])}" for run in ("lora", *judged))
    return together(held, f"the distance to full fine-tuning's update, over its length, is: {told}.")


def distance(folder: str, baseline: str) -> float:
    """|update - the baseline's| / |the baseline's|, all layers as one vector."""
    import torch

    mine, theirs = update(folder), update(baseline)
    a, b = (torch.cat([of[name].flatten() for name in theirs]) for of in (mine, theirs))
    return float((a - b).norm() / b.norm())


@cache
def update(folder: str) -> dict[str, Any]:
    """What a run's last adapter adds to each weight: by site (d, k), float64."""
    from lrft.adapters.storage import read_adapter

    saved: Any = read_adapter(Path(folder) / "last")
    return {site.name: saved.build(site).double().delta_weight().detach() for site in saved.sites}


CLAIM = Claim(
    "near-full",
    "LoFT's and LoRA-RITE's updates are nearer to full fine-tuning's",
    "Tastan et al., 2025, arXiv 2505.21289; Yen et al., 2024, arXiv 2410.20625",
    "LoFT moves A and B as AdamW would move the weight, and closes most of the gap between LoRA and full fine-tuning "
    "of LLaMA-7B and ViT, most at small ranks. LoRA-RITE preconditions them so that the split of the update does not "
    "count: 66.85 on Gemma-2B's tasks, 64.40 with Adam. That it ends nearer to full fine-tuning is our reading.",
    "On every seed, after 20 steps on the instructions at rank 8, the update of both is nearer to that of full "
    "fine-tuning with the same rows in the same order than LoRA's: the norm of the difference of all layers over the "
    "norm of full fine-tuning's, each at the better of two learning rates by its loss.",
    nearer_to_full,
    (Measure("distance", "distance to full fine-tuning", distance),),
    "tasks",
)
