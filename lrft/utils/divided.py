"""Tensors that are divided over processes.

torch.distributed.tensor takes half a second to import, and no tensor is divided before something has imported it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_divided(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of all of it where it is divided; all processes must ask for it then."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
