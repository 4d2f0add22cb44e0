"""What a run on this machine would use: devices, number formats, attention, threads, folders."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def used() -> dict[str, Any]:
    """Devices, and what `auto` of a recipe means on them. Loads torch."""
    import torch

    from lrft.utils import hardware, threads

    compute = hardware.computation("auto")
    gpus = [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]
    return {
        "devices": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus] or ["cpu"],
        "precision": compute,
        "frozen_weights": hardware.frozen_dtype("auto", compute),
        "attention": ["sdpa", "eager", *(["flash_attention_2"] if find_spec("flash_attn") else [])],
        "threads": torch.get_num_threads(),
        "threads_note": threads.note(),
        "memory_available_bytes": hardware.available(),
    }


def folders() -> dict[str, dict[str, Any]]:
    """{the environment variable that moves it: its path and the free bytes of its disk} of the caches of a run."""
    from huggingface_hub import constants

    from lrft.distributed import compile_lock
    from lrft.model.weights import cache_dir

    found = {
        "LRFT_CACHE": cache_dir(),
        "HF_HUB_CACHE": Path(constants.HF_HUB_CACHE),
        "TORCH_EXTENSIONS_DIR": compile_lock.folder(),
    }
    return {name: {"path": str(path), "free_bytes": _free(path)} for name, path in found.items()}


def _free(path: Path) -> int | None:
    """Bytes that are free where `path` is, or would be made."""
    existing = next((above for above in (path, *path.parents) if above.exists()), None)
    return shutil.disk_usage(existing).free if existing else None


def writable(path: Path) -> bool:
    """Whether a file could be made in `path`, or in the first folder above it that there is."""
    existing = next((above for above in (path, *path.parents) if above.exists()), None)
    return existing is not None and existing.is_dir() and os.access(existing, os.W_OK)


def has_token() -> bool:
    """Whether a token of the hub is set or stored; the token itself is never shown."""
    from huggingface_hub import get_token

    return get_token() is not None
