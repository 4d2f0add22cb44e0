"""lrft.utils.hardware: what a process is told of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lrft.utils import allocator, hardware

HOLDS = 1_000_000_000


def test_a_process_is_not_told_the_memory_of_the_one_that_started_it() -> None:
    """A large program that starts lrft, a notebook or a sweep, must not be counted in."""
    held = torch.ones(HOLDS // 4)
    code = "import torch\nfrom lrft.utils import hardware\nprint(hardware.memory_gb(torch.device('cpu')))"
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.05 < told < 0.9
    assert hardware.memory_gb(torch.device("cpu")) * 1e9 > HOLDS
    assert held.numel() * 4 == HOLDS


def test_the_peak_stays_after_the_memory_is_given_back() -> None:
    before = hardware.peak_of_process()
    held = torch.ones((before + 200_000_000) // 4)
    del held
    assert hardware.peak_of_process() > before + 150_000_000


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...",
        "CUDA out of memory. Tried to allocate 20.00 MiB.",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/THCCachingHostAllocator.cpp:280",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_understood(words: str) -> None:
    assert hardware.says_out_of_memory(RuntimeError(words))


def test_other_errors_are_none_of_memory() -> None:
    for words in ("CUDA error: device-side assert triggered", "CUBLAS_STATUS_EXECUTION_FAILED", "size mismatch"):
        assert not hardware.says_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize(
    ("installed", "before", "after"),
    [
        ("2.9.1+cu128", {}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        ("2.10.0", {}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ("2.13.0", {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
        ("2.13.0", {"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ("unknown", {}, {}),
    ],
)
def test_segments_may_grow_unless_the_user_has_said_otherwise(
    installed: str, before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator, "version", lambda name: installed)
    environment = dict(before)
    allocator.expandable_segments(environment)
    assert environment == after
