"""Sizes of the messages in which processes exchange gradients and weights."""

from __future__ import annotations

# DistributedDataParallel sums gradients in buckets of this size (its bucket_cap_mb).
BUCKET = 25 * 2**20
# fsdp and zero2 send gradients in messages of about this size.
MESSAGE = 2**26


def copy_size(devices: int, on_a_node: int, over: str) -> int:
    """How many devices hold one copy of a divided base together: those of a node, or all.

    over: `distributed.shard_over`, node or all. Nodes of one device each have nothing to divide over inside: then it is
    all devices as well. Raises ValueError when nodes have unequal numbers.
    """
    if over == "all" or on_a_node in (1, devices):
        return devices
    if devices % on_a_node:
        raise ValueError(
            f"{devices} processes on nodes of {on_a_node} each: every node must have the same number of processes"
        )
    return on_a_node
