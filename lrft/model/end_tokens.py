"""Stop tokens in the generation configuration of models and adapter folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrft.utils import files

FILE = "generation_config.json"


def stop_ids(model: Any) -> list[int]:
    """The ids of the model's generation configuration; none for a model without one."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return _as_list(configured)


def add_stops(model: Any, ids: Iterable[int]) -> None:
    """Generation of `model` stops at `ids` too. A model without a generation configuration is left alone."""
    found = getattr(model, "generation_config", None)
    if found is not None:
        found.eos_token_id = _as_value([*stop_ids(model), *ids])


def save_stops(model: Any, folder: Path) -> None:
    """Write the model's generation configuration into `folder`, where stock transformers reads it."""
    found = getattr(model, "generation_config", None)
    if found is not None:
        values = found.to_diff_dict()
        values.pop("_from_model_config", None)
        files.write_json(folder / FILE, values)


def saved_stops(folder: Path) -> list[int]:
    """The ids that `save_stops` wrote into `folder`; none without the file."""
    return _as_list(files.read_json(folder / FILE).get("eos_token_id")) if (folder / FILE).is_file() else []


def _as_list(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [int(value)]


def _as_value(ids: Iterable[int]) -> int | list[int] | None:
    """Each id once, in order; one alone as a number, which every reader knows."""
    unique = list(dict.fromkeys(ids))
    return unique if len(unique) > 1 else next(iter(unique), None)
