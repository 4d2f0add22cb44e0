"""GaLore: Adam's moments of a projected gradient take less memory."""

from __future__ import annotations

from pathlib import Path

from lrft.utils import files
from paper_claims.claim import Claim, Facts, Measure, Verdict, losses, of_run, shares

LESS = 0.60
"""least share of the optimizer's state that is saved, on every seed"""


def smaller_state(facts: Facts) -> Verdict:
    """GaLore's optimizer state is LESS smaller than that of full training, on every seed."""
    mine, theirs = (facts["measured"]["state"][run] for run in ("galore", "full"))
    saved = {seed: 1 - mine[seed] / theirs[seed] for seed in theirs}
    return Verdict(
        min(saved.values()) >= LESS,
        f"the state of galore is {shares(saved)} smaller than that of full, at losses "
        f"of {losses(of_run(facts, 'galore'))} and {losses(of_run(facts, 'full'))}.",
    )


def megabytes(folder: str, _: str) -> float:
    """Of all tensors of the optimizer's state in the last checkpoint."""
    checkpoint = (Path(folder) / "last").resolve().parent
    return sum(tensor.nbytes for tensor in files.read_tensors(checkpoint / "optimizer.safetensors").values()) / 1e6


CLAIM = Claim(
    "galore-memory",
    "GaLore's optimizer state is a third of AdamW's",
    "Zhao et al., 2024, arXiv 2403.03507",
    "LLaMA pre-trained with Adam on the gradient's leading directions, about a quarter of the width: the optimizer's "
    "memory is up to 65.5 % smaller.",
    "On every seed the tensors of the optimizer's state, the projections among them, take at least 60 % fewer bytes "
    "than AdamW's in full training, at a rank of a quarter of the width, in float32. The loss after 50 steps stands "
    "beside, GaLore's at the better of two learning rates: nothing is demanded of it.",
    smaller_state,
    (Measure("state", "optimizer state, MB", megabytes, ".2f"),),
)
