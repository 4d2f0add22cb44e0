"""`python -m real_benchmark.peer_trainer peft|trl FOLDER OUT`: the run of a job by another trainer. Needs no lrft."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from performance.peft_model import begin_as
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments


def arguments(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": job["batch"],
        "learning_rate": job["rate"],
        "lr_scheduler_type": "constant",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job["seed"],
        "use_cpu": True,
        "bf16": False,
    }


def in_order(kind: type[Trainer]) -> type[Trainer]:
    """The trainer with the rows in the order in which they stand."""

    class InOrder(kind):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    return InOrder


def trainer_of(tool: str, job: dict[str, Any], folder: Path, start: Path) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    lora = LoraConfig(
        r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    rows = Dataset.from_list(job["train"])
    if tool == "peft":
        return in_order(Trainer)(
            model=begun(get_peft_model(base, lora), start),
            args=TrainingArguments(**arguments(job, folder)),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(**arguments(job, folder), gradient_checkpointing=False, max_length=None, packing=False)
    made = in_order(SFTTrainer)(
        model=base, args=settings, train_dataset=rows, processing_class=tokenizer, peft_config=lora
    )
    begun(made.model, start)
    return made


def begun(model: Any, start: Path) -> Any:
    begin_as(model, start)
    return model


@torch.no_grad()
def loss(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Mean over all labelled tokens, row by row."""
    model.eval()
    total, count = 0.0, 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        seen = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss) * seen
        count += seen
    return total / count


def main(tool: str, folder: str, out: str) -> int:
    place = Path(folder)
    job = json.loads((place / "job.json").read_text(encoding="utf-8"))
    trainer = trainer_of(tool, job, place, place / "start.safetensors")
    trainer.train()
    wall, cpu = time.monotonic(), time.process_time()
    found = {"loss": loss(trainer.model, job["test"])}
    asking = {"asking_wall": time.monotonic() - wall, "asking_cpu": time.process_time() - cpu}
    Path(out).write_text(json.dumps(found | asking), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
