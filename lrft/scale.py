"""What devices hold, send and wait for: the arithmetic of distributed training, from sizes alone.

`lrft plan` uses it with the sizes of a recipe, docs/scale.md with those of published models. Nothing here is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

STRATEGIES = {
    "ddp": "nothing divided",
    "zero2": "gradients, state divided",
    "fsdp": "frozen base divided",
    "zero3": "everything divided",
}
# Bits of a weight in nf4: 4, a scale of 8 for each 64 weights, and one of 32 for each 256 of these (QLoRA, 2.2 and 3).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
# DistributedDataParallel sums gradients in buckets of this size (its bucket_cap_mb).
BUCKET = 25 * 2**20
# Operations in the backward pass that checkpointing adds, for each weight and token.
AGAIN = {"none": 0.0, "light": 0.0, "medium": 1.0, "full": 2.0}


@dataclass(frozen=True)
class Memory:
    """Bytes of one device during a step, by part."""

    process: int
    """Python, its libraries, tokenizer and data; none on a GPU"""
    weights: int
    """frozen"""
    adapter: int
    """what is trained"""
    gradients: int
    optimizer: int
    activations: int
    logits: int
    moment: int
    """for a moment of the backward pass"""

    @property
    def at_the_end(self) -> int:
        """Logits, and what one layer's backward pass takes. A GPU's allocator gives the memory of the one to the other;
        a process keeps small pieces for small pieces, and asks for the large ones anew."""
        return self.logits + self.moment if self.process else max(self.logits, self.moment)

    @property
    def total(self) -> int:
        parts = asdict(self)
        return sum(parts.values()) - self.logits - self.moment + self.at_the_end


@dataclass(frozen=True)
class Links:
    """How fast devices send to each other."""

    inside: float
    """bytes a second from one device to another of its node, in one direction"""
    between: float
    """bytes a second from one device through its own adapter to another node"""
    reached: float
    """share of both that large transfers reach"""
    hop_inside: float
    """seconds until the next device of a ring has the first piece"""
    hop_between: float


# NVLink 4: 900 GB/s in both directions (NVIDIA H100 datasheet, SXM5). One InfiniBand NDR adapter for each GPU: 400 Gb/s
# (NVIDIA DGX H100 datasheet). Hops: NCCL's own table for rings, src/graph/tuning.cc. `reached` is an assumption.
H100_LINKS = Links(inside=450e9, between=50e9, reached=0.8, hop_inside=3.4e-6, hop_between=14e-6)
# NVIDIA H100 datasheet, SXM5: dense bf16; memory.
H100_FLOPS = 989e12
H100_MEMORY = 80e9
# Share of H100_FLOPS that the computation reaches. The Llama 3 Herd of Models, table 4: 0.38 to 0.43.
MFU = 0.4


def over_devices(whole: Memory, blocks: int, devices: int) -> dict[str, Memory]:
    """Memory of each device, by strategy. fsdp leaves adapters whole: methods need their factors so.

    blocks: of the model. One is gathered while it is used and the next while it is waited for; the gradients of one are
    whole until they are summed.
    """
    if devices == 1:
        return {"one device": whole}

    def part(size: int, whole_blocks: int) -> int:
        return min(size, size // devices + whole_blocks * size // blocks)

    divided = replace(whole, gradients=part(whole.gradients, 1), optimizer=whole.optimizer // devices)
    gathered = part(whole.weights, 2)
    return {
        "ddp": whole,
        "zero2": divided,
        "fsdp": replace(whole, weights=gathered),
        "zero3": replace(divided, weights=gathered, adapter=part(whole.adapter, 2)),
    }


def sent(whole: Memory, passes: int, devices: int) -> dict[str, float]:
    """Bytes that each device sends in an optimiser step, by strategy.

    Rings: a sum over devices is 2 (n - 1) / n of its size, a gathering or the sum of a division half of that.
    Gradients are summed once a step; divided weights are gathered in each pass, forward and backward.
    """
    if devices == 1:
        return {}
    share = (devices - 1) / devices
    return {
        "ddp": 2 * share * whole.gradients,
        "zero2": 2 * share * whole.gradients,
        "fsdp": share * (2 * whole.gradients + 2 * passes * whole.weights),
        "zero3": share * (whole.gradients + 2 * passes * (whole.weights + whole.adapter)),
    }


def rounds(whole: Memory, passes: int, blocks: int) -> dict[str, int]:
    """How often a ring is gone round in a step, by strategy: each time costs its hops, however little it moves."""
    buckets = 2 * math.ceil(whole.gradients / BUCKET)
    gathered = 2 * passes * blocks
    return {"ddp": buckets, "zero2": buckets, "fsdp": buckets + gathered, "zero3": blocks + gathered}


def sending_seconds(size: float, times: int, devices: int, nodes: int, links: Links = H100_LINKS) -> float:
    """Seconds in which each device sends `size` bytes to its neighbour in rings that are gone round `times` times.

    Each device of a node has an adapter to the other nodes, and as many rings leave the node, each with its part.
    """
    if devices == 1:
        return 0.0
    inside = size / links.inside
    between = size / (devices / nodes) / links.between if nodes > 1 else 0.0
    hops = (devices - nodes) * links.hop_inside + (nodes - 1) * links.hop_between
    return max(inside, between) / links.reached + times * hops


def exchange(whole: Memory, passes: int, blocks: int, devices: int, nodes: int) -> dict[str, float]:
    """Seconds that an optimiser step's communication takes by itself, by strategy."""
    times = rounds(whole, passes, blocks)
    return {
        name: sending_seconds(size, times[name], devices, nodes) for name, size in sent(whole, passes, devices).items()
    }


def efficiency(compute: float, communication: float, hidden: float = 1.0) -> float:
    """Share of the time in which a device computes.

    hidden: share of the communication that goes on behind the computation: of it, only what takes longer is waited for.
    """
    return compute / (max(compute, hidden * communication) + (1 - hidden) * communication)


def operations(tokens: int, matrix: int, trained: int, kind: str) -> float:
    """Of linear layers: two for each weight and token forward, as many backward for the inputs, as many again for the
    weights that are trained, and what checkpointing computes again. Attention's own products are left out."""
    return tokens * ((4.0 + AGAIN[kind]) * matrix + 2.0 * trained)


def nf4_bytes(numbers: int) -> int:
    """Of so many weights in nf4 with its scales quantised as well."""
    return math.ceil(numbers * NF4_BITS / 8)


def best(memory: dict[str, Memory], speed: dict[str, float], limit: float = H100_MEMORY) -> str | None:
    """The fastest strategy that stays within `limit`; the plainest of those that are equally fast; None for none."""
    fitting = [name for name, part in memory.items() if part.total <= limit]
    return max(plainest_first(fitting), key=lambda name: speed[name], default=None)


def plainest_first(names: Iterable[str]) -> list[str]:
    """Least to set up first. fsdp comes before zero2, which saves next to nothing where the base is frozen."""
    order = ("one device", "ddp", "fsdp", "zero2", "zero3")
    return sorted(names, key=order.index)
