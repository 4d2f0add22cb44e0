"""One process for each device of this machine, all running the same command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from lrft.watchdog import LAUNCHER

# What the others are given to notice by themselves that one is gone, before they are stopped.
SECONDS_TO_NOTICE = 10.0
LOOK_EVERY = 0.1


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate, or this one) has given this process its rank."""
    return "RANK" in os.environ


def adopt_slurm() -> None:
    """Take over the rank that `srun` has given, where it started several tasks and no other launcher has spoken."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if is_launched() or tasks < 2 or "SLURM_PROCID" not in os.environ:
        return
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // int(os.environ.get("SLURM_NNODES", "1"))),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(20000 + job % 20000)),
    }


def gpus() -> int:
    """How many GPUs torch sees here."""
    import torch

    return torch.cuda.device_count()


def run_on(devices: int, arguments: Sequence[str], *, gpu: bool) -> int:
    """`lrft` with `arguments` in as many processes. Returns the exit code of the first that fails, else 0.

    One that dies brings the others down within seconds. Signals are handed on, each once.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "lrft", *arguments],
            env=surroundings(rank, devices, port, gpu=gpu),
            start_new_session=True,  # a terminal's Ctrl-C comes here, and from here to each once
        )
        for rank in range(devices)
    ]

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return wait(processes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()


def surroundings(rank: int, devices: int, port: int, *, gpu: bool) -> dict[str, str]:
    """The environment of one process."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    given: Mapping[str, str] = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
        LAUNCHER: str(os.getpid()),
        **({} if gpu else {"ACCELERATE_USE_CPU": "true"}),
    }
    return {**os.environ, **given}


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended, or one has failed and the others are stopped. The exit code as a shell would say it."""
    failed: int | None = None
    since = 0.0
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = next((i for i, process in enumerate(processes) if process.poll() not in (None, 0)), None)
            since = time.monotonic()
        elif time.monotonic() - since > SECONDS_TO_NOTICE:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(LOOK_EVERY)
    if failed is None:
        failed = next((i for i, process in enumerate(processes) if process.returncode), None)
    if failed is None:
        return 0
    code = processes[failed].returncode
    if code < 0:
        print(
            f"process {failed + 1} of {len(processes)} was ended by signal {-code}; the others were stopped. "
            "Checkpoints are whole: go on with --resume.",
            file=sys.stderr,
        )
    return code if code > 0 else 128 - code
