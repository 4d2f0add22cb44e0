"""Memory and communication of distributed training, computed from sizes.

`lrft plan` uses it with the sizes of a recipe, docs/scale.md with those of published models. Nothing here is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from lrft.distributed.sizes import BUCKET, MESSAGE, copy_size

# Bits of a weight in nf4: 4, a scale of 8 for each 64 weights, and one of 32 for each 256 of these (QLoRA, 2.2 and 3).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
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
    """trainable parameters"""
    gradients: int
    optimizer: int
    activations: int
    logits: int
    moment: int
    """temporary, in the backward pass"""
    others: int = 0
    """frozen models that answer beside the trained one; never divided"""

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
    """bandwidth between two devices of a node, bytes/s, one direction"""
    between: float
    """bandwidth of one device to another node, bytes/s"""
    reached: float
    """share of the bandwidth that large transfers reach"""
    hop_inside: float
    """latency of one hop in a ring, seconds"""
    hop_between: float


# NVLink 4: 900 GB/s in both directions (NVIDIA H100 datasheet, SXM5). One InfiniBand NDR adapter for each GPU: 400 Gb/s
# (NVIDIA DGX H100 datasheet). Hops: NCCL's own table for rings, src/graph/tuning.cc. `reached` is an assumption.
H100_LINKS = Links(inside=450e9, between=50e9, reached=0.8, hop_inside=3.4e-6, hop_between=14e-6)
# NVIDIA H100 datasheet, SXM5: dense bf16; memory.
H100_FLOPS = 989e12
H100_MEMORY = 80e9
# Share of H100_FLOPS that the computation reaches. The Llama 3 Herd of Models, table 4: 0.38 to 0.43.
MFU = 0.4


@dataclass(frozen=True)
class Ring:
    """What goes round a ring of devices in an optimiser step."""

    size: float
    """bytes each device sends to the next"""
    times: int
    """number of ring operations, each with the latency of its hops"""
    devices: int
    nodes: int
    """number of nodes"""
    behind: bool = True
    """whether it overlaps with computation"""

    def seconds(self, links: Links = H100_LINKS) -> float:
        """That this takes by itself. Each device of a node has an adapter to the other nodes, and as many rings leave
        the node, each with its part."""
        inside = self.size / links.inside
        between = self.size / (self.devices / self.nodes) / links.between if self.nodes > 1 else 0.0
        hops = (self.devices - self.nodes) * links.hop_inside + (self.nodes - 1) * links.hop_between
        return max(inside, between) / links.reached + self.times * hops


def copies(devices: int, nodes: int) -> dict[str, int]:
    """Devices that hold one copy of the base together, by strategy that divides it: those that differ."""
    node = copy_size(devices, devices // nodes, "node")
    return {"fsdp": node} | ({"fsdp over all": devices} if node < devices else {})


def divided(size: int, blocks: int, devices: int, whole_blocks: int) -> int:
    """Bytes of a device that holds its part of each block, and so many blocks whole."""
    return min(size, size // devices + whole_blocks * size // blocks)


def over_devices(whole: Memory, blocks: int, outside: int, devices: int, nodes: int) -> dict[str, Memory]:
    """Memory of each device, by strategy.

    blocks: that the model can be divided by; one is gathered while it is used and the next while it is waited for.
    With 0 it cannot be divided. outside: bytes of frozen weights that are in no block. They stay whole, as adapters do.
    """
    if devices == 1:
        return {"one device": whole}
    fsdp = {
        name: replace(whole, weights=outside + divided(whole.weights - outside, blocks, size, 2))
        for name, size in copies(devices, nodes).items()
        if blocks
    }
    # DeepSpeed's optimiser steps on a float32 copy of trainable parameters.
    copied = replace(whole, optimizer=whole.optimizer + whole.gradients)
    return {"ddp": whole, "zero2": zero2(copied, devices)} | fsdp


def zero2(whole: Memory, devices: int) -> Memory:
    """Each device has its part of the gradients, beside a message that is on its way, and of the optimiser's state."""
    gradients = whole.gradients // devices + min(whole.gradients, MESSAGE)
    return replace(whole, gradients=gradients, optimizer=whole.optimizer // devices)


def rings(
    whole: Memory,
    passes: int,
    blocks: int,
    outside: int,
    devices: int,
    nodes: int,
    sums: int = 1,
    forward: int = 0,
) -> dict[str, tuple[Ring, ...]]:
    """What devices exchange in an optimiser step, by strategy.

    passes: micro-batches of a device. sums: how often they go forward and backward. forward: how often forward alone.

    Gradients are summed over all devices each time: ddp does so in the last backward pass, fsdp after it. Divided
    blocks are gathered in each pass, forward and backward, by the devices that hold them together. zero2 sums gradients
    in each pass, leaving each device the sums of its part, and gathers what each has made of its own after the step.
    """
    if devices == 1:
        return {"one device": ()}
    summed = repeated(summing(whole.gradients, BUCKET, devices, nodes), sums)
    after = replace(repeated(summing(whole.gradients, MESSAGE, devices, nodes), sums), behind=False)
    gathers = passes * (2 * sums + forward)
    fsdp: dict[str, tuple[Ring, ...]] = {
        name: (
            gathering(whole.weights - outside, gathers, blocks, size, nodes if size == devices else 1),
            after,
        )
        for name, size in copies(devices, nodes).items()
        if blocks
    }
    return {"ddp": (summed,), "zero2": zero2_rings(whole, passes, devices, nodes)} | fsdp


def repeated(ring: Ring, times: int) -> Ring:
    return replace(ring, size=times * ring.size, times=times * ring.times)


def zero2_rings(whole: Memory, passes: int, devices: int, nodes: int) -> tuple[Ring, ...]:
    """Half of a sum in each pass, and the other half after the step."""
    summed = summing(whole.gradients, MESSAGE, devices, nodes)
    return (replace(summed, size=(passes + 1) * summed.size / 2, times=(passes + 1) * summed.times // 2, behind=False),)


def summing(size: int, message: int, devices: int, nodes: int) -> Ring:
    """A sum over devices: 2 (n - 1) / n of its size from each, in two rounds for each message."""
    return Ring(2 * (devices - 1) / devices * size, 2 * math.ceil(size / message), devices, nodes)


def gathering(size: int, times: int, blocks: int, devices: int, nodes: int) -> Ring:
    """All blocks gathered so many times: (n - 1) / n of their size from each device, in a round for each block."""
    return Ring(times * (devices - 1) / devices * size, times * blocks, devices, nodes)


def sent(found: Iterable[Ring]) -> float:
    """Bytes that each device sends."""
    return sum(ring.size for ring in found)


def exchange(found: Iterable[Ring]) -> float:
    """Seconds that communication takes by itself."""
    return sum(ring.seconds() for ring in found)


def alone(found: Iterable[Ring]) -> float:
    """Seconds of these in which no device can compute."""
    return exchange(ring for ring in found if not ring.behind)


def efficiency(compute: float, behind: float, after: float) -> float:
    """Share of the time in which a device computes, all in seconds.

    behind: communication that goes on behind the computation: only what takes longer is waited for. after: the rest.
    """
    return compute / (max(compute, behind) + after)


def operations(tokens: int, matrix: int, trained: int, kind: str) -> float:
    """Operations of linear layers, without attention's own products.

    Two for each weight and token forward, as many backward for the inputs, as many again for the weights that are
    trained, and what checkpointing computes again.
    """
    return tokens * ((4.0 + AGAIN[kind]) * matrix + 2.0 * trained)


def nf4_bytes(numbers: int) -> int:
    """Bytes of so many weights in nf4, with double quantisation of the scales."""
    return math.ceil(numbers * NF4_BITS / 8)
