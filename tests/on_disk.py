"""A base and an adapter on it, each saved into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import lrft
from lrft.adapters import storage
from lrft.adapters.attached import Attached
from lrft.model.weights import fingerprint, weight_files


def save_base(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    return tiny.save(tiny.make(name).to(dtype), folder, **options)


def save_adapter(folder: Path, base: Path, words: Any = "lora", size: float = 0.05, **more: Any) -> Attached:
    """An adapter on the model in `base`, saved into `folder`."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    attached = lrft.attach(model.eval(), {"method": words, "rank": 2, **more})
    if size:
        tiny.disturb(list(attached.trained().values()), size=size)
    folder.mkdir()
    storage.save_adapter(attached, folder, base={"name": str(base), "revision": None, "fingerprint": fingerprint(base)})
    return attached


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in weight_files(folder) for name, t in load_file(path).items()}
