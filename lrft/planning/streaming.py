"""A base streamed block by block to one device: its memory, bytes over the link to the device, and time.

Two blocks are on the device (`lrft.model.streamed`). A pass turns round with both of them in place, so forward and
backward each copy all blocks but two; a pass that only goes forward finds none of its first blocks, and copies all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lrft.planning.communication import Memory

HELD = 2
"""blocks on the device"""


@dataclass(frozen=True)
class Link:
    """Between the memory that blocks wait in and the device."""

    name: str
    speed: float
    """bytes a second, in one direction, that large copies reach"""
    behind: bool
    """whether copies go on behind the computation"""


# PCI Express 4.0, 16 lanes: 31.5 GB/s in each direction, of which large copies from pinned memory reach four fifths.
# A CPU widens weights out of mapped files itself. Measured: 3 to 6 GB/s where the system has the file in memory.
PCIE = Link("PCIe 4.0 x16", 31.5e9 * 0.8, behind=True)
MEMORY = Link("the mapped files in memory", 4e9, behind=False)


@dataclass(frozen=True)
class Placement:
    """One way to hold the base on one device."""

    memory: Memory
    copied: float
    """bytes over the link in an optimiser step"""
    seconds: float
    """of an optimiser step"""


def held(whole: Memory, blocks: int, outside: int) -> Memory:
    """Memory of the device, of a model that takes `whole` when nothing is streamed.

    outside: bytes of frozen weights in no block
    """
    within = whole.weights - outside
    return replace(whole, weights=outside + min(within, -(-HELD * within // max(1, blocks))))


def copied(within: int, blocks: int, *, both: int, forward: int = 0) -> float:
    """Bytes over the link. within: of all blocks. both: passes forward and backward; forward: passes forward alone."""
    return within / max(1, blocks) * (2 * both * max(0, blocks - HELD) + forward * blocks)


def seconds(compute: float, moved: float, link: Link) -> float:
    """Of a step that computes for so long and copies so many bytes."""
    return max(compute, moved / link.speed) if link.behind else compute + moved / link.speed


def tokens_at_par(within: int, blocks: int, compute: float, link: Link) -> float:
    """Tokens of a pass whose computation takes as long as its copies. compute: seconds of one token, both ways.

    With more of them the link limits nothing. Infinite for copies that nothing goes on beside.
    """
    return copied(within, blocks, both=1) / link.speed / compute if link.behind else math.inf


def placements(
    whole: Memory, blocks: int, outside: int, compute: float, link: Link, *, both: int, forward: int
) -> dict[str, Placement]:
    """By `model.placement`. compute: seconds of a step's computation. both, forward: passes of a step.

    A model without blocks is resident.
    """
    found = {"resident": Placement(whole, 0.0, compute)}
    if blocks > HELD:
        moved = copied(whole.weights - outside, blocks, both=both, forward=forward)
        found["streamed"] = Placement(held(whole, blocks, outside), moved, seconds(compute, moved, link))
    return found
