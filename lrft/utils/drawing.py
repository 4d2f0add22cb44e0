"""torch's own random generator, set for one purpose."""

from __future__ import annotations

import torch


def begin_drawing(seed: int, *, gpu: bool = False) -> None:
    """What is drawn next of torch's default generator depends on `seed` alone. gpu: of those of all GPUs too.

    torch.manual_seed tells each kind of device that torch knows, and those that are not in use write down the stack of
    the call, to be told later: a millisecond, where hundreds of layers begin anew one after the other.
    """
    if gpu:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
