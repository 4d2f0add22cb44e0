"""This process among the others of its run: rank, world size, and how they part."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number, as a launcher (torchrun, accelerate, SLURM through either) has set it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the launcher has started; 1 where none has said anything."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """How many processes the launcher has started on this machine; 1 also where none has said anything."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def leave() -> None:
    """Part from the other processes at the end of a run, when all have come here: one that is gone before takes with it
    the connections on which others still listen, and these may then end in a crash."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
