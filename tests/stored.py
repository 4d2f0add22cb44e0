"""An adapter folder, and changes to it that its checksums do not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lrft
from lrft.adapters.attached import Attached
from lrft.adapters.storage import _checksum, save_adapter
from lrft.utils import files


def save(folder: Path, words: Any = "lora", model: nn.Module | None = None, **more: Any) -> Attached:
    attached = lrft.attach(model or tiny.make("llama"), {"method": words, "rank": 2, **more})
    tiny.disturb(list(attached.trained().values()), size=0.05)
    folder.mkdir(exist_ok=True)
    save_adapter(attached, folder, base={"name": "tiny", "revision": None, "fingerprint": "0" * 64})
    return attached


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change lrft.json as somebody could who makes its checksum fit again."""
    info = json.loads((folder / "lrft.json").read_text())
    change(info)
    info["checksum"] = _checksum({k: v for k, v in info.items() if k != "checksum"})
    (folder / "lrft.json").write_text(json.dumps(info))


def replace_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Other tensors under a checksum that fits: what is left to find is the content."""
    name = json.loads((folder / "lrft.json").read_text())["tensors"]
    save_file(change(load_file(folder / name)), folder / name)
    edit(folder, lambda info: info["sha256"].update({name: files.sha256(folder / name)}))
