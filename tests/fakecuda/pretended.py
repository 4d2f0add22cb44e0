"""A pretended GPU for a process: "cuda:0" with the machine's own memory and the CPU's arithmetic.

`device.cpp` and `accelerator.cpp` are compiled once for a version of torch and of themselves. `pretend` loads them and
has `torch.cuda` answer as on a machine with one GPU; it must come before torch is imported.

    python tests/fakecuda/pretended.py lora dora     # what `gpu_worker` says of these cases
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
SOURCES = ("accelerator.cpp", "device.cpp")
MEMORY = 80 * 10**9


def compiler() -> str | None:
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def libraries() -> list[Path]:
    """The compiled sources, in the order to load them in. Raises CalledProcessError where they do not compile."""
    said = [importlib.metadata.version("torch"), *((HERE / name).read_text() for name in SOURCES)]
    key = hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fakecuda-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return [compiled(HERE / name, folder) for name in SOURCES]


def compiled(source: Path, folder: Path) -> Path:
    library = folder / f"lib{source.stem}.so"
    if not library.exists():
        headers = [f"-I{torch_folder() / 'include'}", f"-I{torch_folder() / 'include/torch/csrc/api/include'}"]
        part = folder / f"{source.stem}-{os.getpid()}.so"
        command = [str(compiler()), "-std=c++20", "-O0", "-shared", "-fPIC", *headers, str(source), "-o", str(part)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        part.rename(library)  # another process may have been as quick
    return library


def pretend() -> None:
    """This process has a GPU from here on."""
    assert "torch" not in sys.modules
    first, second = libraries()
    ctypes.CDLL(str(first), mode=ctypes.RTLD_GLOBAL)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(second), mode=ctypes.RTLD_GLOBAL).install()
    import torch

    torch.autograd.set_multithreading_enabled(False)  # else backward passes have a thread that no dispatch mode sees
    for name, answer in answers().items():
        setattr(torch.cuda, name, answer)


def queue() -> Any:
    """A class of streams and events. Work is done when it is asked for, so there is nothing to wait for."""
    import torch

    class Queue(torch.Stream):
        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            return super().__new__(cls, device="cuda:0")

        def record(self, *arguments: Any) -> None:
            pass

        wait = wait_stream = wait_event = record_event = synchronize = record

    return Queue


def answers() -> dict[str, Any]:
    """What functions of `torch.cuda` say that ask a driver."""
    properties = SimpleNamespace(name="pretended", total_memory=MEMORY, major=9, minor=0, multi_processor_count=132)
    constant = {
        "is_available": True,
        "_lazy_init": None,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_name": "pretended",
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "synchronize": None,
        "empty_cache": None,
        "mem_get_info": (MEMORY, MEMORY),
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "set_per_process_memory_fraction": None,
        "reset_peak_memory_stats": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "memory_stats": {},
        "get_rng_state": None,  # kernels of the CPU draw from its generator, which who saves numbers saves anyway
        "set_rng_state": None,
    }
    made: dict[str, Any] = {name: lambda *_, _said=said, **__: _said for name, said in constant.items()}
    streams = dict.fromkeys(("Stream", "Event", "current_stream", "default_stream"), queue())
    return made | streams | {"stream": lambda _: nullcontext()}


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]
    pretend()
    import gpu_worker

    gpu_worker.main()
