"""TRL's DPOTrainer with a LoRA of PEFT, on pairs of text that it tokenises itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from performance.job import Job
from performance.peft_model import base, config
from performance.recorder import Recorder
from performance.rows import PAIRS, load
from performance.trainers import Marks, arguments


def run(job: Job, recorder: Recorder) -> None:
    """Options: `precompute`, whether the reference is computed before the first step; `pairs_at_once`, of one pass, by
    default all."""
    (batch,) = load(Path(job.rows))
    lines = Path(job.rows).with_suffix(PAIRS).read_text().splitlines()
    at_once = job.options.get("pairs_at_once", len(lines))
    trainer = DPOTrainer(
        model=base(job),
        args=DPOConfig(
            **arguments(job, at_once, recorder.cuda),
            gradient_accumulation_steps=len(lines) // at_once,
            precompute_ref_log_probs=job.options.get("precompute", False),
            gradient_checkpointing=False,
            max_length=max(1024, batch.longest),
        ),
        train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=config(job),
        callbacks=[Marks(recorder)],
    )
    recorder.loaded(trainer.model.parameters())
    trainer.train()
    recorder.saw(**seen(trainer.train_dataset))


def seen(rows: Any) -> dict[str, int]:
    """What TRL's own data path has made of the rows of a step."""
    answers = [row[which] for row in rows for which in ("chosen_ids", "rejected_ids")]
    return {
        "tokens": sum(2 * len(row["prompt_ids"]) for row in rows) + sum(map(len, answers)),
        "labelled": sum(map(len, answers)),
        "checksum": sum(map(sum, answers)),
    }
