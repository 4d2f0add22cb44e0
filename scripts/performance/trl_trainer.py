"""TRL's SFTTrainer with a LoRA of PEFT, padded or packed, on rows that are tokenised and labelled already.

Packing is as its documentation recommends: best-fit decreasing, which flattens the batch without padding. It asks for
flash attention; where there is none (on a CPU) transformers' own attention keeps the rows apart by their positions.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from performance.job import Job
from performance.padding import Counting, examples
from performance.peft_model import base, config
from performance.recorder import Recorder
from performance.rows import load
from performance.trainers import Marks, arguments


def run(job: Job, recorder: Recorder) -> None:
    """Options: `packing`; `checkpointing`, which TRL has on unless it is told otherwise."""
    (batch,) = load(Path(job.rows))
    trainer = SFTTrainer(
        model=base(job),
        args=SFTConfig(
            **arguments(job, len(batch.rows), recorder.cuda),
            packing=job.options.get("packing", False),
            gradient_checkpointing=job.options.get("checkpointing", False),
            max_length=max(1024, batch.longest),
        ),
        train_dataset=Dataset.from_list(examples(batch)),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=config(job),
        callbacks=[Marks(recorder)],
    )
    collator = trainer.data_collator = Counting(trainer.data_collator)
    recorder.loaded(trainer.model.parameters())
    trainer.train()
    recorder.saw(**collator.per_step(job.steps))
