"""Cache of linear-layer outputs for selective checkpointing: recorded in the first pass, reused in the second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Tape:
    """Outputs of one pass through one block, in their order; None for an output that is to be computed again."""

    widest: float
    outputs: list[Tensor | None] = field(default_factory=list)
    at: int = 0

    def record(self, x: Tensor, y: Tensor) -> None:
        self.outputs.append(y.detach() if y.shape[-1] <= self.widest * x.shape[-1] else None)

    def next(self) -> Tensor | None:
        self.at += 1
        return self.outputs[self.at - 1]


class _Now:
    """The tapes of the pass that is under way. (A context variable would end a compiled graph.)"""

    recording: Tape | None = None
    playing: Tape | None = None


def contexts(widest: float) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the first pass and of the second one through one block."""
    tape = Tape(widest)
    return _recording(tape), _playing(tape)


def record(x: Tensor, y: Tensor) -> None:
    """Note the output of a linear layer, where somebody wants it."""
    if _Now.recording is not None:
        _Now.recording.record(x, y)


def played() -> Tensor | None:
    """The output that the next linear layer had in the first pass, or None: compute it."""
    return None if _Now.playing is None else _Now.playing.next()


@contextmanager
def _recording(tape: Tape) -> Iterator[None]:
    before, _Now.recording = _Now.recording, tape
    try:
        yield
    finally:
        _Now.recording = before


@contextmanager
def _playing(tape: Tape) -> Iterator[None]:
    before, _Now.playing = _Now.playing, tape
    tape.at = 0
    try:
        yield
    finally:
        _Now.playing = before
