"""What the machine offers: processes, precision, memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrft.errors import MemoryExhausted, MissingError

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OF_COMPUTATION = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def rank() -> int:
    """This process's number, as a launcher (torchrun, accelerate, SLURM through either) has set it."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes the launcher has started; 1 where none has said anything."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_this_node() -> int:
    """How many processes the launcher has started on this machine; 1 also where none has said anything."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def computation(wanted: str) -> str:
    """fp32, bf16 or fp16. auto: bf16 on a GPU that has it, else fp32. Raises MissingError when it cannot be had."""
    gpu = torch.cuda.is_available()
    if wanted == "auto":
        return "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and not gpu:
        raise MissingError("training.precision: fp16 needs a GPU", "Use fp32 or bf16 on a CPU.")
    if wanted == "bf16" and gpu and not torch.cuda.is_bf16_supported():
        raise MissingError("training.precision: this GPU has no bf16", "Use fp16 or fp32.")
    return wanted


def frozen_dtype(wanted: str, compute: str) -> str:
    """The dtype of the frozen weights: auto follows the computation."""
    return OF_COMPUTATION[compute] if wanted == "auto" else wanted


def make_accelerator(compute: str) -> Accelerator:
    """Accelerate, for devices, processes and autocast. Gradients are accumulated by the loop, which counts tokens."""
    from accelerate import Accelerator

    precision = {"fp32": "no"}.get(compute, compute)
    return Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())


def leave() -> None:
    """Part from the other processes at the end of a run, when all have come here: one that is gone before takes with it
    the connections on which others still listen, and these may then end in a crash."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


def memory_gb(device: torch.device) -> float:
    """Peak memory so far, in GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_of_process() / 1e9


def peak_of_process() -> int:
    """The most bytes that this process held in memory so far.

    Where the system says it per address space: `ru_maxrss` begins, in a child, with what its parent once held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def says_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def available() -> int | None:
    """Bytes of memory that this machine could still give to a process, None where nobody says."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def out_of_memory(error: BaseException, recipe: Any, parts: str = "") -> MemoryExhausted | None:
    """The error with advice, when `error` says that memory ran out; else None. parts: where the memory went."""
    if not says_out_of_memory(error):
        return None
    words = str(error)
    t = recipe.training
    keys = []
    if t.micro_batch_size == "auto" or t.micro_batch_size > 1:
        fewer = 1 if t.micro_batch_size == "auto" else t.micro_batch_size // 2
        keys.append(f"training.micro_batch_size: {fewer} (same result, a little slower)")
    slower = {"none": ("light", "a few percent"), "light": ("medium", "a fifth"), "medium": ("full", "a third")}
    if t.gradient_checkpointing in slower:
        word, cost = slower[t.gradient_checkpointing]
        keys.append(f"training.gradient_checkpointing: {word} (same result, about {cost} slower)")
    keys.append("data.max_length: a smaller number")
    return MemoryExhausted(
        f"out of memory: {(words.splitlines() or ['nothing more can be allocated'])[0]}{parts}",
        "Cheapest first: " + "; ".join(keys),
    )
