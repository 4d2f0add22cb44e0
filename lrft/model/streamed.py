"""A frozen base larger than the device: the blocks' tensors wait outside and are copied while they are used.

Waiting tensors lie in the machine's memory, pinned where a GPU asks for them, or in the checkpoint's mapped files, in
the dtype that they are stored in; codes of a quantised layer wait as codes. Two blocks are on the device: the one that
computes, and the one that follows in the direction of the pass, copied meanwhile on a stream of its own.

A block leaves by emptying the memory of its tensors, and comes back into the same tensors. What autograd keeps of them,
views too, is whole again when the backward pass gets there, with checkpointing and without. Meanwhile the parameters
are NaN: a read that nobody has seen to cannot pass for a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.layers import blocks_of

# Bytes up to which a tensor stays on the device: norms, biases, scales of scales.
SMALL = 2**16
# Bytes to which the places of tensors in a block's memory are rounded up: kernels read them in such pieces.
ALIGNED = 256
NO_BLOCKS = "transformers declares no blocks for this model, so it cannot be streamed"


class Waiting:
    """One frozen parameter, what it is copied from, and its place in the block's memory on the device."""

    def __init__(self, parameter: nn.Parameter, host: Tensor, buffer: Tensor) -> None:
        self.parameter, self.host, self.buffer = parameter, host, buffer
        self.absent = _not_a_number(buffer.device, buffer.dtype).expand(host.shape)
        parameter.waiting = self  # type: ignore[attr-defined]

    @property
    def is_here(self) -> bool:
        return self.buffer.untyped_storage().nbytes() > 0


class Block:
    """The tensors of one block, and one piece of memory for all of them on the device, empty while they wait.

    One piece, since the C library gives large ones back to the system. Of smaller ones, each time between others, it
    would make holes into which the next do not fit.
    """

    def __init__(self, tensors: Sequence[tuple[nn.Parameter, Tensor, torch.dtype]], device: torch.device) -> None:
        sizes = [host.numel() * dtype.itemsize for _, host, dtype in tensors]
        ends = list(accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes))
        memory = torch.empty(ends[-1], dtype=torch.uint8, device=device)
        self.storage, self.size = memory.untyped_storage(), ends[-1]
        self.tensors = [
            Waiting(parameter, host, memory[begin : begin + size].view(dtype).view(host.shape))
            for (parameter, host, dtype), begin, size in zip(tensors, [0, *ends], sizes, strict=False)
        ]
        self.leave()

    @torch.no_grad()
    def come(self) -> None:
        self.storage.resize_(self.size)
        for each in self.tensors:
            each.buffer.copy_(each.host, non_blocking=True)
            each.parameter.data = each.buffer

    def leave(self) -> None:
        for each in self.tensors:
            each.parameter.data = each.absent
        self.storage.resize_(0)


class Streamed:
    """The blocks of a model, of which at most two are on the device. It acts through hooks on the blocks."""

    def __init__(self, blocks: Sequence[tuple[nn.Module, Block]], device: torch.device) -> None:
        self.blocks = [block for _, block in blocks]
        self.here: dict[int, Any] = {}
        """blocks on the device -> the event that follows their copy, None on a CPU"""
        self.at, self.step = 0, 1
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        for number, (module, _) in enumerate(blocks):
            module.register_forward_pre_hook(partial(self._forward, number), prepend=True)
            module.register_forward_hook(partial(self._back, number))

    def __deepcopy__(self, memo: Any) -> Streamed:
        """A copy of one of the blocks' modules has weights of its own, and its hooks are for those that it is of."""
        return self

    @property
    def size(self) -> int:
        """Bytes that all blocks would take on the device."""
        return sum(block.size for block in self.blocks)

    def use(self, number: int) -> None:
        """Have a block on the device, the next one on its way, and no other."""
        if number != self.at:
            self.step = 1 if number > self.at else -1
        self.at = number
        following = number + self.step
        if not 0 <= following < len(self.blocks):  # the pass turns round here, or begins anew
            following = number - self.step
        wanted = [n for n in (number, following) if 0 <= n < len(self.blocks)]
        for other in self.here.keys() - set(wanted):
            self._leave(other)
        self._come(number)
        if self.copies is not None:
            torch.cuda.current_stream(self.copies.device).wait_event(self.here[number])
        for other in wanted[1:]:
            self._come(other)

    def _come(self, number: int) -> None:
        if number in self.here:
            return
        self.here[number] = None
        with self._aside():
            self.blocks[number].come()
            if self.copies is not None:
                self.here[number] = self.copies.record_event()

    def _leave(self, number: int) -> None:
        del self.here[number]
        self.blocks[number].leave()

    def _aside(self) -> AbstractContextManager[Any]:
        """Copies go on beside the computation. They get the memory of what has left, so what used that comes first."""
        if self.copies is None:
            return nullcontext()
        self.copies.wait_stream(torch.cuda.current_stream(self.copies.device))
        return torch.cuda.stream(self.copies)

    def _forward(self, number: int, _: nn.Module, __: Any) -> None:
        self.use(number)

    def _back(self, number: int, _: nn.Module, __: Any, output: Any) -> None:
        """Its backward pass, and what checkpointing computes again in that, begin with a gradient of its output."""
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self.use(number))


def content(parameter: Tensor, part: int | None = None) -> Tensor:
    """A parameter that can be read, or the part of this index: itself, or a copy on its device where it waits.

    Not to be written to.
    """
    waiting: Waiting | None = getattr(parameter, "waiting", None)
    if waiting is None or waiting.is_here:
        return parameter if part is None else parameter[part]
    host = waiting.host if part is None else waiting.host[part]
    return host.to(parameter.device, parameter.dtype)


def stream(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    small: int,
    always: bool = False,
) -> Streamed:
    """Move a frozen model without adapters to `device`, but for its blocks, which are streamed from where they are.

    dtype   of the floating-point weights on the device; None leaves each its own
    small   bytes up to which tensors are moved for good
    always  copy also what the device reads where it lies: a CPU the tensors of its own dtype

    A tensor that belongs to two blocks, or to the rest of the model as well, is moved; so is one with gaps.
    Raises ValueError for a model without blocks.
    """
    blocks = _outermost(blocks_of(model))
    if not blocks:
        raise ValueError(NO_BLOCKS)
    movable = _of_one_block(model, blocks)
    found = []
    for block in blocks:
        tensors = []
        for p in block.parameters():
            own = p.dtype if dtype is None or not p.is_floating_point() else dtype
            near = p.device == device and p.dtype == own
            if p in movable and p.is_contiguous() and p.numel() * own.itemsize > small and (always or not near):
                tensors.append((p, _pinned(p.data, device), own))
        if tensors:
            found.append((block, Block(tensors, device)))
    model.to(device, dtype)
    return Streamed(found, device)


def _outermost(blocks: list[nn.Module]) -> list[nn.Module]:
    inside = {id(module) for block in blocks for module in block.modules() if module is not block}
    return [block for block in blocks if id(block) not in inside]


def _of_one_block(model: nn.Module, blocks: Iterable[nn.Module]) -> set[nn.Parameter]:
    """The frozen parameters that have one place in the model, and that in a block."""
    places: dict[nn.Parameter, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[parameter] = places.get(parameter, 0) + 1
    return {p for block in blocks for p in block.parameters() if places[p] == 1 and not p.requires_grad}


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor where a GPU can fetch it by itself; as it is for a CPU, and where no more memory can be pinned."""
    if device.type != "cuda":
        return tensor
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor


def _not_a_number(device: torch.device, dtype: torch.dtype) -> Tensor:
    """NaN, also where a float32 is kept as its bits; the zero of other integers."""
    if dtype == torch.int32:
        return torch.tensor(float("nan"), device=device).view(torch.int32)
    return torch.full((), float("nan") if dtype.is_floating_point else 0, device=device, dtype=dtype)
