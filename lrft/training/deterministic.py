"""`training.deterministic`: torch's deterministic algorithms for the time of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrft.errors import CheckFailed


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Inside, the same run on the same machine gives the same bits; afterwards torch is as it was.

    Raises CheckFailed for an operation that torch has no deterministic algorithm for.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    # What cuBLAS wants to know before its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise CheckFailed(f"training.deterministic: {first}", "Set training.deterministic: false.") from error
    finally:
        torch.use_deterministic_algorithms(before)
