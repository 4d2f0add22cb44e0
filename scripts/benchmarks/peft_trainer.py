"""PEFT with transformers' Trainer, its default settings and a padding collator."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer, TrainingArguments

from benchmarks.job import Job
from benchmarks.padding import Counting, examples, padded
from benchmarks.peft_model import adapted
from benchmarks.recorder import Recorder
from benchmarks.rows import load
from benchmarks.trainers import Marks, arguments


def run(job: Job, recorder: Recorder) -> None:
    (batch,) = load(Path(job.rows))
    collator = Counting(padded)
    trainer = Trainer(
        model=adapted(job),
        args=TrainingArguments(**arguments(job, len(batch.rows), recorder.cuda)),
        train_dataset=examples(batch),
        data_collator=collator,
        callbacks=[Marks(recorder)],
    )
    recorder.loaded(trainer.model.parameters())
    trainer.train()
    recorder.saw(**collator.per_step(job.steps))
