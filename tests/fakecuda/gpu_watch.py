"""What a GPU is asked to do, operation by operation, and where the machine waits for it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lrft

ROOT = f"{Path(lrft.__file__).parent}/"
aten = torch.ops.aten
# Operations that only look at memory in another way, or only reserve it: no kernel is started.
FREE = {
    *(
        "alias",
        "as_strided",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "lift",
        "new_empty",
    ),
    *(
        "new_empty_strided",
        "permute",
        "reshape",
        "select",
        "set_",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
    ),
    *("transpose", "unbind", "unfold", "unsqueeze", "view", "_local_scalar_dense", "_reshape_alias", "_unsafe_view"),
    *("is_same_size", "record_stream", "is_pinned"),
}
# Answers whose shape or value the machine needs before it can go on.
READING = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"),
    *("_linalg_check_errors", "_linalg_svd", "_linalg_eigh", "is_nonzero", "bincount"),
}


class Watch(TorchDispatchMode):
    """Counts from the last `clear` on; each by the function of lrft that is running, as "room.file:function"."""

    def __init__(self) -> None:
        super().__init__()
        self.makers = Makers(self)
        self.clear()

    def clear(self) -> None:
        self.operations: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        """values of the device that the machine waits for"""
        self.sends: Counter[str] = Counter()
        """copies to the device that the machine waits for: not from pinned memory, or not asked to go on"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        of_device = on_device(args[0]) if args else False
        if of_device and (name in READING or chooses(name, args)):
            self.reads[place()] += 1
        elif name in ("_to_copy", "copy_"):
            self.copied(args[0], out, args, kwargs) if name == "_to_copy" else self.copied(args[1], out, args, kwargs)
        if name not in FREE and (of_device or on_device(out)):
            self.operations[name] += 1
        return out

    def __enter__(self) -> Any:
        self.makers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.makers.__exit__(*error)

    def copied(self, source: Tensor, target: Tensor, args: Any, kwargs: Any) -> None:
        goes_on = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
        if source.is_cuda and not target.is_cuda and not goes_on:
            self.reads[place()] += 1
        if target.is_cuda and not source.is_cuda and not (goes_on and source.is_pinned()):
            self.sends[place()] += 1


class Makers(TorchFunctionMode):
    """Sees numbers of Python made a tensor of the device, which no dispatch mode does: they are sent there."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and out.is_cuda:
            self.watch.sends[place()] += not isinstance(args[-1], Tensor)
        return out


def on_device(value: Any) -> bool:
    """Whether a tensor, or the first of several, is on the device."""
    first = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(first, Tensor) and first.is_cuda


def chooses(name: str, args: Any) -> bool:
    """Whether an operation selects by a mask: how much that is, the device has to say."""
    return name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def place() -> str:
    """The innermost function of lrft that is running."""
    frame = sys._getframe(1)
    while frame:
        code = frame.f_code
        if code.co_filename.startswith(ROOT):
            return f"{code.co_filename.removeprefix(ROOT).removesuffix('.py').replace('/', '.')}:{code.co_qualname}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
