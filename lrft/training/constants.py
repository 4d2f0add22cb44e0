"""What an objective asks of its reference once, before training: kept with the rows, and in the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrft.data import Rows
from lrft.data.collate import micro_batches
from lrft.errors import CheckFailed
from lrft.model.weights import cache_dir
from lrft.objectives.base import START
from lrft.recipe import Recipe
from lrft.training.engine import Engine
from lrft.training.state import Base, Inputs
from lrft.utils import files

FORMAT = 1
"""raised with every change of what is computed"""


def with_constants(recipe: Recipe, inputs: Inputs, base: Base, engine: Engine) -> Inputs:
    """The inputs, their rows with what the objective asks of its reference; as they are where it asks nothing."""
    if not engine.losses.constant:
        return inputs
    train, validation = inputs.train, inputs.validation
    train = of_rows(train, kept_at(recipe, inputs, base, "train"), engine)
    if validation is not None:
        validation = of_rows(validation, kept_at(recipe, inputs, base, "validation"), engine)
    return replace(inputs, prepared=replace(inputs.prepared, train=train, validation=validation))


def kept_at(recipe: Recipe, inputs: Inputs, base: Base, part: str) -> Path | None:
    """The file of the cache for these rows on this base; None with data.cache: false."""
    if not recipe.data.cache:
        return None
    deciding = {
        "format": FORMAT,
        "rows": [inputs.prepared.key, part],
        "base": {key: base.info[key] for key in ("fingerprint", "dtype", "quantization")},
        "compute": [base.compute, base.accelerator.device.type, recipe.model.attention],
        "objective": recipe.training.objective.name,
        **{other.key: other.fingerprint for other in inputs.others if other.option == START},
        "libraries": {name: version(name) for name in ("torch", "transformers")},
    }
    key = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "reference" / f"{key}.safetensors"


def of_rows(rows: Rows, path: Path | None, engine: Engine) -> Rows:
    """`rows` with the numbers of all of them, read where they are kept, else asked for and written by the first
    process. What cannot be read is asked for again."""
    found = None if path is None else read(path, rows, engine.losses.constant)
    # All processes ask, or none: they make their passes together.
    lacking = engine.reduce(torch.tensor([float(found is None)], device=engine.device)).item()
    if found is None or lacking:
        found = asked(rows, engine)
        if path is not None and engine.accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_tensors(path, found)
    for name, values in found.items():
        rows = rows.with_numbers(name, list(values.numpy()))
    return rows


def read(path: Path, rows: Rows, names: tuple[str, ...]) -> dict[str, Tensor] | None:
    try:
        found = files.read_tensors(path)
    except CheckFailed:  # a file of the cache that is missing or damaged is made again
        return None
    return found if found.keys() == set(names) and all(len(v) == len(rows) for v in found.values()) else None


def asked(rows: Rows, engine: Engine) -> dict[str, Tensor]:
    """float64 (N, m) on the CPU by name: each process asks about its own rows, and all get all."""
    losses = engine.losses
    if losses.as_reference is None:
        raise ValueError("the base is asked through as_base")
    found: dict[str, Tensor] = {}
    ids = np.arange(len(rows))
    with losses.as_reference(), losses.computing():
        for micro in micro_batches(ids, rows.lengths, micro=engine.micro, rank=engine.rank, world=engine.world):
            for name, values in losses.constants(engine.batch(rows, micro or [0])).items():
                if name not in found:
                    found[name] = torch.zeros(len(rows), values.shape[1], dtype=torch.float64, device=engine.device)
                if micro:
                    found[name][micro] = values.double()
    return {name: engine.reduce(values).cpu() for name, values in found.items()}
