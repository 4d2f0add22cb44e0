"""Liger's kernels in the place of a model's norms and gated activations, through transformers' own switch.

transformers' other switch, `use_kernels`, fetches code from the hub when a run starts. Liger is a package that is
installed, or not.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

LIGER = "liger"
PACKAGE = "liger_kernel"
# The loss is made in pieces anyway, and a rotary function can only be replaced for all models of the process.
CONFIG = {
    "rms_norm": True,
    "swiglu": True,
    "geglu": True,
    "rope": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def use_liger(model: Any) -> int:
    """Let modules of a transformers model compute with Liger's kernels. Returns how many do: 0 of a family without.

    Liger also replaces classes of the family for models that are made later, which may lie on the CPU, where its
    kernels do not run: those are put back.
    """
    from transformers.integrations.liger import apply_liger_kernel

    files = {type(module).__module__: sys.modules[type(module).__module__] for module in model.modules()}
    before = {name: dict(vars(file)) for name, file in files.items()}
    others = replaced(model)
    apply_liger_kernel(model, dict(CONFIG))
    for name, file in files.items():
        for word, value in before[name].items():
            if vars(file)[word] is not value:
                setattr(file, word, value)
    return len(replaced(model) - others)


def replaced(model: Any) -> set[str]:
    """Names of the modules whose computation is no longer that of their class."""
    return {name for name, module in model.named_modules() if "forward" in vars(module)}
