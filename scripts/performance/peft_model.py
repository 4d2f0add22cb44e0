"""A LoRA of PEFT over all linear layers but the head, with lrft's factor: alpha is twice the rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from performance.job import Job


def config(job: Job) -> LoraConfig:
    return LoraConfig(
        r=job.rank, lora_alpha=2 * job.rank, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def base(job: Job) -> Any:
    """The stock model: bfloat16 on a GPU, else float32."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    return AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype).to(device)


def adapted(job: Job) -> Any:
    """Option `start`: the adapter's first values, as lrft has written them."""
    torch.manual_seed(job.seed)
    model = get_peft_model(base(job), config(job))
    if "start" in job.options:
        begin_as(model, Path(job.options["start"]))
    return model.train()


@torch.no_grad()
def begin_as(model: Any, start: Path) -> None:
    """Copy "site.A" and "site.B" into PEFT's tensors. Raises KeyError or ValueError unless they are the same set."""
    tensors = load_file(start)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if len(own) != len(tensors):
        raise ValueError(f"{len(own)} trained tensors here, {len(tensors)} in {start}")
    for name, value in tensors.items():
        site, _, letter = name.rpartition(".")
        own[f"base_model.model.{site}.lora_{letter}.default.weight"].copy_(value)
