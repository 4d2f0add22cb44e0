"""LoRA-GGPO and BiLoRA: less over-fitting on few rows."""

from __future__ import annotations

import json
from pathlib import Path

from paper_claims.claim import Claim, Facts, Measure, Verdict, losses, of_run, together

LAST = 6
"""steps in which the rows are passed once"""


def fits_less(facts: Facts) -> Verdict:
    """Both end with a lower loss on the validation rows than LoRA, on every seed."""
    theirs, trained = of_run(facts, "lora"), facts["measured"]["trained"]
    judged = ("lora-ggpo", "bilora")
    held = {run: all(of_run(facts, run)[seed] < theirs[seed] for seed in theirs) for run in judged}
    told = "; ".join(f"{run} {losses(of_run(facts, run))} and {losses(trained[run])}" for run in ("lora", *judged))
    return together(held, f"the loss on the validation rows, and on those that were trained, is: {told}.")


def trained_loss(folder: str, _: str) -> float:
    """Mean loss of the run's last LAST steps."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line["loss"] for line in lines if line["kind"] == "step"][-LAST:]
    return float(sum(found) / len(found))


CLAIM = Claim(
    "few-rows",
    "LoRA-GGPO and BiLoRA over-fit few rows less than LoRA",
    "arXiv 2502.14538, 2025; Qiang et al., 2024, arXiv 2403.13037",
    "LoRA-GGPO adds noise to the weights, as large as their norms and gradients say, finds flatter minima and is "
    "better than LoRA and its relatives. BiLoRA trains singular vectors and values on different rows, and "
    "over-fits less than LoRA and AdaLoRA on ten sets of data.",
    "On every seed, after 60 steps on 48 rows of the task `classification`, ten times through, the loss on the 256 "
    "validation rows is lower than LoRA's for both, each at the better of two learning rates. The mean loss of the "
    "last six steps, once through the rows, stands beside: LoRA-GGPO's with its noise, BiLoRA's of the rows that train "
    "its singular vectors.",
    fits_less,
    (Measure("trained", "loss on the rows that are trained", trained_loss),),
    "tasks",
)
