"""What `lrft` says of a run or a model: its loss on rows, what it did to the weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from common.small_model import lrft


def loss_on(target: str | Path, rows: Path) -> float:
    """Mean loss of a run, an adapter or a model on the rows of a file, by `lrft eval`."""
    said = lrft("eval", str(target), "--data", str(rows), "--no-generate", "--batch-size", "64", "--json")
    return float(json.loads(said)["loss"])


@cache
def changed(folder: str) -> dict[str, Any]:
    """`lrft inspect` of a run's best checkpoint, of all adapted layers together."""
    total: dict[str, Any] = json.loads(lrft("inspect", folder, "--json"))["total"]
    return total
