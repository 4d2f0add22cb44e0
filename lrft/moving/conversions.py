"""Conversions of values, by the name that a line of a table gives: `how` of `lrft.foreign.entries.To`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.moving import adapter_values, plain_values, row_values, sources, torchtune_values, training_values
from lrft.moving.conversion import Conversion
from lrft.moving.draft import Nothing, Unsaid
from lrft.moving.python_calls import Computed

CONVERSIONS: Mapping[str, Conversion] = {
    **plain_values.CONVERSIONS,
    **adapter_values.CONVERSIONS,
    **training_values.CONVERSIONS,
    **row_values.CONVERSIONS,
    **torchtune_values.CONVERSIONS,
    **sources.CONVERSIONS,
}


def convert(how: str, value: Any, by: Any, folder: Path) -> Any:
    """`value` by the conversion `how`. Raises Unsaid or Nothing, with the reason."""
    if isinstance(value, Computed):
        if re.search(r"bf(loat)?16_supported", value):
            raise Nothing("training.precision: auto takes bf16 where the GPU has it")
        raise Unsaid("computed in the file, which is read and not run")
    if isinstance(value, str) and re.search(r"\$[({A-Za-z_]|^<.*>$", value):
        raise Unsaid("a value that only the shell or the user knows")
    return CONVERSIONS[how](value, by, folder)
