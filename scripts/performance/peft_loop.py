"""PEFT with a loop written by hand, as tutorials write it: a padded batch, the model's own loss, AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from performance.job import Job
from performance.padding import examples, padded
from performance.peft_model import adapted
from performance.recorder import Recorder
from performance.rows import load


def run(job: Job, recorder: Recorder) -> None:
    """Option `rows_at_once`: rows of one pass, in the order they come; by default all of the step."""
    steps = load(Path(job.rows))
    model = adapted(job)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0)
    recorder.loaded(model.parameters())
    for number in range(job.steps):
        batch = steps[number % len(steps)]
        rows = examples(batch)
        size = job.options.get("rows_at_once", len(rows))
        total = 0.0
        for start in range(0, len(rows), size):
            total += backward(model, rows[start : start + size], batch.labelled)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recorder.loss(total)
        recorder.step()
    first = steps[0]
    recorder.saw(tokens=first.tokens, labelled=first.labelled, checksum=first.checksum)


def backward(model: Any, rows: Sequence[Mapping[str, Sequence[int]]], labelled: int) -> float:
    """One pass. A function, so that nothing of it lives on: a loss that is kept keeps memory until the next one."""
    inputs = {name: value.to(model.device) for name, value in padded(rows).items()}
    with torch.autocast("cuda", torch.bfloat16) if model.device.type == "cuda" else nullcontext():
        loss = model(**inputs, num_items_in_batch=labelled).loss
    loss.backward()
    return loss.item()
