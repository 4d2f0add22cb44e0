"""Held-out rows kept beside a run, on which a merged model is compared with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.model.load import load_tokenizer
from lrft.runs.locate import run_of, trusts_remote_code
from lrft.utils import files

PROBE = "probe.safetensors"
PROBE_ROWS = 64
PROBE_TOKENS = 512
NEUTRAL = (
    "The river was high that spring, and the ferry could not cross until the third of April.",
    "To make the dough, mix the flour with water and a little salt, then let it rest for an hour.",
    "def area(width, height):\n    return width * height\n",
    "Question: How many legs do four spiders have together?\nAnswer: 32",
)


def save_probe(rows: Any, folder: Path, n: int = PROBE_ROWS) -> None:
    """Keep some held-out rows of a run beside it. Not in the adapter's folder, which people share."""
    first = [rows.sequences(i)[0][0] for i in range(min(n, len(rows)))]
    chosen = {f"{i}": torch.from_numpy(tokens[:PROBE_TOKENS].copy()) for i, tokens in enumerate(first)}
    files.write_tensors(folder / PROBE, chosen)


def probe(adapter: Path, base_folder: Path) -> list[Tensor]:
    """Token ids of held-out rows of the adapter's run; of a few neutral sentences when the run is not at hand."""
    run = run_of(adapter)
    if run is not None and (run / PROBE).is_file():
        found = files.read_tensors(run / PROBE)
        return [found[key].long() for key in sorted(found, key=int)]
    source = adapter if (adapter / "tokenizer_config.json").is_file() else base_folder
    tokenizer = load_tokenizer(source, trust_remote_code=trusts_remote_code(adapter))
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in NEUTRAL]
