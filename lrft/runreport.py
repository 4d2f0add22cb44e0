"""report.md and loss.png of a run folder, from its run.json and metrics.jsonl; and the environment."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lrft import __version__, runfacts
from lrft.figures import loss_picture
from lrft.files import write_bytes, write_text
from lrft.metrics import read_metrics
from lrft.runfacts import Block, Cell, Points, Table
from lrft.text import visible

PACKAGES = (
    *("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "huggingface-hub"),
    *("numpy", "pydantic", "peft", "gguf"),
)


def write_report(run_dir: Path) -> Path:
    """Writes report.md and loss.png into a run folder; returns the path of report.md.

    Raises CheckFailed when run.json is missing or broken, LrftError when the disk is full.
    """
    run = runfacts.read_run(run_dir)
    records, unreadable = read_metrics(run_dir / "metrics.jsonl")
    write_bytes(run_dir / "loss.png", loss_picture(records))
    write_text(run_dir / "report.md", _markdown(run, records, unreadable))
    return run_dir / "report.md"


def escape(text: str) -> str:
    """`text` as the same characters in Markdown, also within a table: no markup, no HTML, no line end."""
    lines = [visible(line) for line in text.splitlines()]
    plain = "<br>".join(re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", _entities(line)) for line in lines)
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", plain.strip())  # would start a list


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown(run: Mapping[str, Any], records: Sequence[dict[str, Any]], unreadable: int) -> str:
    sections = [
        *runfacts.recorded(run),
        runfacts.pace(records, unreadable),
        *runfacts.evaluations(records),
        *runfacts.samples(records),
    ]
    blocks = [f"# {escape(str(run.get('title', 'Run')))}", "![Losses and learning rate](loss.png)"]
    for section in sections:
        blocks += [f"## {escape(section.name)}", *(text for block in section.blocks for text in _block(block))]
    return "\n\n".join(blocks) + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        if block.title:
            yield f"**{escape(block.title)}**"
        yield table([escape(name) for name in block.head], [[_cell(cell) for cell in row] for row in block.rows])
    elif isinstance(block, Points):
        yield "\n".join(f"- {escape(item)}" for item in block.items)
    else:
        yield escape(block.text)


def _cell(cell: Cell) -> str:
    return " ".join([*([escape(cell.text)] if cell.text else []), *([f"*{cell.remark}*"] if cell.remark else [])])


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
