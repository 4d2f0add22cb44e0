"""What the machine offers: processes, precision, memory."""

from __future__ import annotations

import gc
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lrft.errors import MissingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OF_COMPUTATION = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def forget_peak(device: torch.device) -> None:
    """`memory_gb` counts from here, on a GPU. (Of a process the system keeps the peak.)"""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def reserving(device: torch.device, share: float) -> Iterator[None]:
    """Inside, this process leaves `share` of what it could have of a GPU: who tries what fits must not settle on what
    fits to the last byte."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    mine = free + torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((1 - share) * mine / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def release_memory() -> None:
    """Give back to the devices what torch keeps of them for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def memory_gb(device: torch.device) -> float:
    """Peak memory so far, in GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_of_process() / 1e9


def peak_of_process() -> int:
    """The most bytes that this process held in memory so far.

    Where the system says it per address space: `ru_maxrss` begins, in a child, with what its parent once held.
    """
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Of the CPU's allocator; of CUDA outside of torch's allocator; of its libraries, which want memory of their own.
NO_MEMORY = re.compile(r"allocate memory|out of memory|(CUBLAS|CUSOLVER|CUDNN|CUSPARSE|CUFFT)_(STATUS_)?ALLOC_FAILED")


def says_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of the machine, or of a GPU, where CUDA and its libraries say so in their own words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY.search(str(error)) is not None


def available() -> int | None:
    """Bytes of memory that this process could still have, None where nobody says: what the machine could give, and no
    more than its control group or its own limit (`ulimit -d`) leaves."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else min(int(found) * 1024, *_left_by_limits())


def _left_by_limits() -> list[int]:
    """What limits of this process's memory leave of it, in bytes: at least one number."""
    left = [sys.maxsize]
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        left.append(max(0, most - _status("VmData")))
    group = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), "/")
    folder = Path("/sys/fs/cgroup") / group.lstrip("/")
    for name in ("memory.max", "memory.current"):
        if not (folder / name).is_file():
            return left
    most_of_group = (folder / "memory.max").read_text().strip()
    if most_of_group != "max":
        left.append(max(0, int(most_of_group) - int((folder / "memory.current").read_text())))
    return left


def _status(word: str) -> int:
    """Bytes, by a word of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{word}:")) * 1024
