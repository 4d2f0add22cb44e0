"""One process for each device of this machine, all running the same command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from lrft.distributed.watchdog import LAUNCHER
from lrft.errors import UsageError

# What the others are given to notice by themselves that one is gone, before they are stopped.
SECONDS_TO_NOTICE = 10.0
LOOK_EVERY = 0.1
# What a process learns of its place from its environment.
PLACE = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "ACCELERATE_USE_CPU",
)
# What `accelerate launch` says of how its own configuration divides a run.
FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "its own parallelism",
}


def refuse_foreign() -> None:
    """Raises UsageError where accelerate's configuration would divide what the recipe divides."""
    for name, tool in FOREIGN.items():
        if os.environ.get(name, "").lower() == "true":
            raise UsageError(
                f"accelerate's configuration enables {tool} ({name}); lrft shards a run with "
                "distributed.strategy: fsdp or zero2 in the recipe",
                "Remove it from the configuration, e.g.: accelerate launch --multi_gpu -m lrft train RECIPE",
            )


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate, or this one) has given this process its rank."""
    return "RANK" in os.environ


def adopt_slurm() -> None:
    """Take over the rank that `srun` has given, where it started several tasks and no other launcher has spoken."""
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if is_launched() or tasks < 2 or "SLURM_PROCID" not in os.environ:
        return
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    # With --gpus-per-task=1 each task sees one GPU, its own, which is number 0 to it.
    alone = len([name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]) == 1
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": "0" if alone else os.environ.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // int(os.environ.get("SLURM_NNODES", "1"))),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")),
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(20000 + job % 20000)),
    }


@dataclass(frozen=True)
class Process:
    """One process of a run."""

    rank: int
    local_rank: int
    world: int
    node: str
    device: str
    """device of the process"""
    given: dict[str, str]
    """rank variables from its environment"""


def planned(devices: int, *, gpu: bool) -> list[Process]:
    """The processes that `run_on` would start; this one where a run on one device needs no other."""
    node = socket.gethostname()
    if devices == 1:
        return [Process(0, 0, 1, node, "cuda:0" if gpu else "cpu", {})]
    port = free_port()
    return [
        Process(rank, rank, devices, node, f"cuda:{rank}" if gpu else "cpu", given(rank, devices, port, gpu=gpu))
        for rank in range(devices)
    ]


def this_process() -> Process:
    """This process, as its launcher has placed it."""
    g = {name: os.environ[name] for name in PLACE if name in os.environ}
    rank, world = int(g["RANK"]), int(g.get("WORLD_SIZE", "1"))
    local, seen = int(g.get("LOCAL_RANK", "0")), gpus()
    missing = f", which does not exist: this process sees {seen}" if seen <= local else ""
    return Process(rank, local, world, socket.gethostname(), f"cuda:{local}{missing}" if seen else "cpu", g)


def gpus() -> int:
    """How many GPUs torch sees here."""
    import torch

    return torch.cuda.device_count()


def run_on(devices: int, arguments: Sequence[str], *, gpu: bool) -> int:
    """`lrft` with `arguments` in as many processes. Returns the exit code of the first that fails, else 0.

    One that dies brings the others down within seconds. Signals are handed on, each once.
    """
    port = free_port()
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


def free_port() -> int:
    """One that nobody uses at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def surroundings(rank: int, devices: int, port: int, *, gpu: bool) -> dict[str, str]:
    """The environment of one process."""
    return {**os.environ, **given(rank, devices, port, gpu=gpu)}


def given(rank: int, devices: int, port: int, *, gpu: bool) -> dict[str, str]:
    """What the environment of one process says of its place."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    return {
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
            f"process {failed + 1} of {len(processes)} was killed by signal {-code}; the others were stopped. "
            "Checkpoints are intact: continue with --resume.",
            file=sys.stderr,
        )
    return code if code > 0 else 128 - code
