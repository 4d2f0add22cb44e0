"""Methods, objectives, optimisers, trackers, metrics, exporters: what they declare, read without importing them."""

from lrft.registry.composition import QUANTIZED, Conflict, compose, conflicts, over_quantized
from lrft.registry.declarations import (
    BelowOne,
    Betas,
    Declaration,
    Knob,
    Source,
    fault_of,
    found_spec,
    reading,
    sources,
)
from lrft.registry.methods import (
    DEFAULT_METHOD,
    FOLDER,
    NO_DROPOUT,
    PROPERTIES,
    SLOTS,
    VALIDATION,
    MethodCard,
    methods,
    read_card,
)
from lrft.registry.presets import PRESETS, Preset
from lrft.registry.rates import DEFAULT_RATE, Rate, default_rate
from lrft.registry.rooms import PYTHON, ROOMS, Chosen, declared, missing_package
from lrft.registry.rows import DEFAULT_ROWS, ROWS, RowKind, head_of, objectives_for, rate_factor, rows_of

__all__ = [
    "DEFAULT_METHOD",
    "DEFAULT_RATE",
    "DEFAULT_ROWS",
    "FOLDER",
    "NO_DROPOUT",
    "PRESETS",
    "PROPERTIES",
    "PYTHON",
    "QUANTIZED",
    "ROOMS",
    "ROWS",
    "SLOTS",
    "VALIDATION",
    "BelowOne",
    "Betas",
    "Chosen",
    "Conflict",
    "Declaration",
    "Knob",
    "MethodCard",
    "Preset",
    "Rate",
    "RowKind",
    "Source",
    "compose",
    "conflicts",
    "declared",
    "default_rate",
    "fault_of",
    "found_spec",
    "head_of",
    "methods",
    "missing_package",
    "objectives_for",
    "over_quantized",
    "rate_factor",
    "read_card",
    "reading",
    "rows_of",
    "sources",
]
