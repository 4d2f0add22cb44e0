"""Frozen base sharded over devices with torch's FSDP2. Adapters are replicated: they are small, and
their methods need their factors whole.

The weights of a block are gathered while it computes. What is used outside of the blocks stays whole as well, the
embedding and the head: they are often one tensor, and the loss takes the head some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from lrft.adapters.attached import Attached
from lrft.distributed import processes
from lrft.distributed.sizes import MESSAGE, copy_size
from lrft.model.layers import blocks_of, decoder_of
from lrft.model.placement import exceeds

NO_BLOCKS = "transformers declares no blocks for this model, so it cannot be sharded"


def strategy(wanted: str, weights: int, memory: int | None) -> str:
    """ddp or fsdp: the recipe's `distributed.strategy`; for auto, fsdp where whole weights leave a GPU too little for a
    step.

    weights: bytes. memory: of a GPU, in bytes; None for a CPU, whose memory is that of its other processes, too: there
    dividing is left to the recipe.
    """
    if wanted != "auto":
        return wanted
    return "fsdp" if exceeds(weights, memory) else "ddp"


def mesh_over(kind: str, world: int, over: str) -> DeviceMesh:
    """The devices that share one copy of the base: those of one node, or all.

    kind: cuda or cpu. over: `distributed.shard_over`, node or all. Raises ValueError when nodes have unequal numbers of
    processes.
    """
    each = copy_size(world, processes.local_world_size(), over)
    if each == world:
        return init_device_mesh(kind, (world,))
    return init_device_mesh(kind, (world // each, each), mesh_dim_names=("nodes", "devices"))


def within_blocks(model: Any) -> set[nn.Parameter]:
    """The parameters that `shard` divides."""
    return {p for block in blocks_of(decoder_of(model)) for p in block.parameters()}


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Divide the blocks' weights, in place. To be done before adapters are attached, and before the model is moved to
    its device. Raises ValueError for a model without blocks that transformers knows."""
    decoder = decoder_of(model)
    blocks = blocks_of(decoder)
    if not blocks:
        raise ValueError(NO_BLOCKS)
    within = within_blocks(model)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # The root of the blocks: they are gathered in turn, each while the one before it computes.
    fully_shard(decoder, mesh=mesh, ignored_params={p for p in model.parameters() if p not in within})


def same_everywhere(attached: Attached) -> None:
    """Give every process the first one's adapters: a decomposition may round otherwise on another device."""
    for tensor in attached.tensors().values():
        broadcast(tensor.data)


def mean_gradients(parameters: Iterable[nn.Parameter], accelerator: Any) -> None:
    """Replace each gradient by its mean over processes. A process that none has reached counts as zero."""
    for group in in_messages([p for p in parameters if p.requires_grad]):
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        mean: Tensor = accelerator.reduce(torch.cat([g.flatten() for g in found]), reduction="mean")
        for parameter, part in zip(group, mean.split([p.numel() for p in group]), strict=True):
            parameter.grad = part.view_as(parameter)


def in_messages(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in groups of one dtype and of about MESSAGE."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if group and (size > MESSAGE or parameter.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if group:
        yield group
