"""Activation memory of a training step, without weights: the model runs on fake tensors, which have shapes
and no content, and what autograd keeps for the backward pass is counted as it is kept.

No formula of an architecture is in here: a new one is counted as well as an old one. What cannot be seen that way, the
chunks of logits and the recomputed block, is added from shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters import gradient_checkpointing
from lrft.adapters.adapter import AdapterLinear
from lrft.adapters.targets import depth_of
from lrft.errors import LrftError
from lrft.model.fake_kernels import imagined_kernels
from lrft.model.layers import decoder_of, head_of
from lrft.model.linear import named_linears, shape
from lrft.model.quantized import QuantizedLinear
from lrft.objectives.cross_entropy import LOGITS_AT_ONCE, MORE_LOGITS_AT_ONCE

# Tokens of short passes, at equal distances.
SHORT = (16, 32, 48)
# The C library takes larger pieces from the system and gives them back (mallopt(3): DEFAULT_MMAP_THRESHOLD_MAX). Among
# smaller ones lie holes: what a pass lets go of between what it keeps. Measured, not derived: so much of what is kept.
PIECE = 32 * 2**20
HOLES = 0.25


@dataclass(frozen=True)
class Activations:
    """Bytes that one pass over one micro-batch keeps, and what the loss and one block need on top for a moment."""

    kept: int
    logits: int
    moment: int


@dataclass(frozen=True)
class Batch:
    """What a pass is made over."""

    rows: Sequence[int]
    """tokens of each"""
    dtype: torch.dtype = torch.float32
    """in which activations are computed"""
    device: str = "cpu"
    """cpu or cuda: which kernels attention has, and how many logits are made at once"""
    packed: bool = True
    """rows are laid end to end, by a model that takes their positions; else they are padded, side by side"""

    @property
    def tokens(self) -> int:
        return sum(self.rows)


@dataclass(frozen=True)
class Kept:
    """What autograd keeps of a pass, in bytes."""

    row: int
    """of the last hidden states, for each token"""
    size: int
    pieces: int
    """in tensors smaller than PIECE"""
    largest: int
    """of the largest tensor"""


def activations(model: Any, batch: Batch, *, kind: str) -> Activations:
    """Activations of one micro-batch, on a fake `model` with its adapters.

    kind: gradient checkpointing: none, light, medium or full.

    Logits are taken to be made in chunks, as they are where a model's own are no more than a product.
    """
    tokens, dtype, device, found = batch.tokens, batch.dtype, batch.device, kept_for(model, batch)
    head = head_of(model)
    vocabulary = 1 if head is None else shape(head)[0]  # a head for whole rows answers with few numbers
    model = decoder_of(model)  # without the towers of one that also sees or hears
    blocks = max(1, len({depth for name, _ in named_linears(model) if (depth := depth_of(name)) is not None}))
    row = found.row * tokens
    one_block = max(0, found.size - row) // blocks
    moment = 2 * max(found.largest, widest(model) * tokens * dtype.itemsize)
    if kind == "none":
        kept = found.size
    else:  # the input of each block, what is played back, and one block made again
        played = replayed(model, gradient_checkpointing.KEPT[kind]) if kind in gradient_checkpointing.KEPT else 0
        kept = blocks * row + played * tokens * dtype.itemsize
        moment += one_block
    moment += max((m.making(dtype) for m in model.modules() if isinstance(m, QuantizedLinear)), default=0)
    if device == "cpu":
        holes = left_in_heap(model) * tokens * dtype.itemsize + round(HOLES * found.pieces)
        kept += holes if kind == "none" else holes // blocks
    most = LOGITS_AT_ONCE.get(device, MORE_LOGITS_AT_ONCE)
    at_once = min(tokens, max(64, most // vocabulary))
    # The logits, their logarithms in float32 and the slope; and the gradient of the hidden states.
    logits = at_once * vocabulary * (2 * dtype.itemsize + 4) + row
    return Activations(kept, logits, moment)


def kept_for(model: Any, batch: Batch) -> Kept:
    """`kept_by`, from three short passes where the model computes token by token, as recurrences in plain torch do.

    Such a model keeps more tensors of more tokens, and a pass over many takes minutes without content as well. Bytes
    grow with a row's tokens, and with their square where attention is not fused.
    """
    if batch.tokens <= SHORT[-1]:
        return kept_by(model, batch)
    passes = [kept_in_pass(model, replace(batch, rows=[n])) for n in SHORT[:2]]
    if len(passes[0][1]) == len(passes[1][1]):
        return kept_by(model, batch)
    passes.append(kept_in_pass(model, replace(batch, rows=[SHORT[-1]])))
    size = round(sum(continued([size_of(kept) for _, kept in passes], n) for n in batch.rows))
    largest = max(t.untyped_storage().nbytes() for t in passes[-1][1].values())
    return Kept(row_of(passes[-1][0]), size, size, largest * batch.tokens // SHORT[-1])


def continued(sizes: Sequence[int], tokens: int) -> float:
    """The value at `tokens` of the parabola that has `sizes` at SHORT."""
    once, twice = sizes[1] - sizes[0], sizes[2] - 2 * sizes[1] + sizes[0]
    n = (tokens - SHORT[0]) / SHORT[0]
    return sizes[0] + n * once + n * (n - 1) / 2 * twice


def kept_by(model: Any, batch: Batch) -> Kept:
    """What autograd keeps of one pass."""
    hidden, kept = kept_in_pass(model, batch)
    sizes = [t.untyped_storage().nbytes() for t in kept.values()]
    return Kept(row_of(hidden), sum(sizes), sum(n for n in sizes if n < PIECE), max(sizes, default=0))


def row_of(hidden: Tensor) -> int:
    """Bytes for each token of hidden states (..., width)."""
    return hidden.shape[-1] * hidden.itemsize


def kept_in_pass(model: Any, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
    """The last hidden states (1 or rows, tokens, width) and what autograd keeps for them, each storage once.

    Raises LrftError for a fake model that cannot do without the content of its tensors.
    """
    packed = batch.packed and takes_positions(model)
    rows = batch.rows if packed else [max(batch.rows)]  # within one of the sequences
    shape = (1, batch.tokens) if packed else (len(batch.rows), rows[0])
    ids = torch.zeros(shape, dtype=torch.long, device=next(model.parameters()).device)
    trained = [p for p in model.parameters() if p.requires_grad]
    with (
        imagined_kernels(model, rows if batch.device == "cpu" else None),
        keeping(model) as kept,
        torch.enable_grad(),
        torch.autocast("cpu", dtype=batch.dtype, enabled=batch.dtype != torch.float32),
    ):
        try:
            hidden = hidden_states(model, ids, kept)
        except Exception as error:  # whatever a model's code may raise where tensors have no content
            said = str(error).strip().partition("\n")[0]
            raise LrftError(
                f"cannot estimate the memory of {type(model).__name__}: planning uses tensors without "
                f"values, and this model's code reads values ({type(error).__name__}: {said})"
            ) from error
    if trained and not hidden.requires_grad:
        raise ValueError("no gradient reaches an adapter")
    return hidden, kept


def takes_positions(model: Any) -> bool:
    """Whether its text can be given positions. Without, rows laid end to end are one row to it, and a run pads them."""
    return "position_ids" in inspect.signature(decoder_of(model).forward).parameters


def hidden_states(model: Any, ids: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """The last ones of ids (B, T): (B, T, width). kept: emptied where the pass has to begin anew."""
    decoder = decoder_of(model)
    try:
        found: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
    except TypeError:  # sparse attention looks into the mask, which kernels of attention do without
        kept.clear()
        mask = ids.new_ones(len(ids), 1, *2 * ids.shape[1:], dtype=torch.bool)
        found = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return found


@contextmanager
def keeping(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """What autograd keeps for the backward pass inside, each storage once, without what belongs to `model`."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        yield kept


def size_of(kept: dict[int, Tensor]) -> int:
    """Bytes."""
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def replayed(model: nn.Module, widest_kept: float) -> int:
    """Outputs for each token of the linear layers inside blocks that checkpointing keeps."""
    total = 0
    for name, module in named_linears(model):
        d, k = shape(module)
        if depth_of(name) is not None and d <= widest_kept * k:
            total += d
    return total


def left_in_heap(model: nn.Module) -> int:
    """Numbers for each token that the C library's heap holds beyond what is in use, over a quantised base.

    Measured, not derived: about the outputs of the adapted layers. Their steps are not fused, so what they let go lies
    between what they keep. A fixed MALLOC_MMAP_THRESHOLD_ makes it vanish, and the step slower.
    """
    adapted = (m for m in model.modules() if isinstance(m, AdapterLinear))
    return sum(shape(m.base)[0] for m in adapted if isinstance(m.base, QuantizedLinear))


def widest(model: nn.Module) -> int:
    """The most outputs, for each token, of a linear layer inside a block."""
    return max((shape(m)[0] for n, m in named_linears(model) if depth_of(n) is not None), default=0)
