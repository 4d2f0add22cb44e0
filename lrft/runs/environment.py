"""environment.json: versions, CPU, GPU and threads that a run was made with."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lrft.version import __version__

PACKAGES = (
    *("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "huggingface-hub"),
    *("numpy", "pydantic", "peft", "gguf"),
)


def environment() -> dict[str, Any]:
    """Versions and machine, for the record of a run: nothing that names a person, a host or a folder.

    Torch's threads and devices are told only when torch is loaded already: this imports nothing heavy.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"lrft": __version__, **{name: _version(name) for name in PACKAGES}},
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        **({"torch": _torch()} if "torch" in sys.modules else {}),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _torch() -> dict[str, Any]:
    import torch

    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    devices = [torch.cuda.get_device_properties(index) for index in cuda]
    gpus = [{"name": device.name, "memory_gb": round(device.total_memory / 1e9, 1)} for device in devices]
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "devices": gpus,
    }
