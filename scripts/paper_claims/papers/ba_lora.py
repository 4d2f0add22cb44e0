"""BA-LoRA: three terms on the outputs, against what is wrong in data."""

from __future__ import annotations

import json
from functools import partial

from common.small_model import lrft

from paper_claims.claim import Claim, Measure, lower_loss


def right(folder: str, _: str) -> float:
    """Share of the validation rows whose label a run's best checkpoint answers."""
    said = lrft("eval", folder, "--max-new-tokens", "3", "--batch-size", "64", "--samples", "0", "--json")
    return float(json.loads(said)["exact_match"])


CLAIM = Claim(
    "ba-lora",
    "BA-LoRA is better than PiSSA on noisy data",
    "Chang et al., 2024, arXiv 2408.04556",
    "PiSSA with three terms that are to keep noise and bias of data out of the model: LLaMA-2-7B has 54.53 % on GSM8K, "
    "with PiSSA alone 52.37 % (first version). The lead over PiSSA is said to be larger on a base that has read "
    "noisier text: 3.26 points on T5-base, 1.11 on RoBERTa-base. There the noise is in what the base has read, here in "
    "the rows that are trained.",
    "30 % of the training rows of the task `classification` have a wrong label, the validation rows none. On every "
    "seed PiSSA with the terms of BA-LoRA (version 2, the default) has the lower loss on the validation rows than "
    "PiSSA alone after 192 steps, three times through the rows, each at its own best learning rate, alpha = rank.",
    partial(lower_loss, run="ba-lora"),
    (Measure("right", "labels right", right, ".1%"),),
    "tasks",
)
