"""lrft.utils.hardware: what a process is told of itself."""

from __future__ import annotations

import subprocess
import sys

import torch

from lrft.utils import hardware

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
