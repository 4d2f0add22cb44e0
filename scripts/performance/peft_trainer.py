"""PEFT with transformers' Trainer, its default settings and a padding collator."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer, TrainingArguments

from performance.job import Job
from performance.padding import Counting, examples, padded
from performance.peft_model import adapted
from performance.recorder import Recorder
from performance.rows import load
from performance.trainers import Marks, arguments


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
