"""Recipes: read, checked, explained and written out. Needs neither torch nor the network."""

from lrft.recipe.document import describe, json_schema, reference
from lrft.recipe.load import load, parse_adapter
from lrft.recipe.schema import (
    AdapterSection,
    DataEntry,
    DataSection,
    EarlyStopping,
    LrScheduler,
    MethodEntry,
    ModuleOverride,
    Optimizer,
    Recipe,
    TrainingSection,
)
from lrft.recipe.show import differences, resolved

__all__ = [
    "AdapterSection",
    "DataEntry",
    "DataSection",
    "EarlyStopping",
    "LrScheduler",
    "MethodEntry",
    "ModuleOverride",
    "Optimizer",
    "Recipe",
    "TrainingSection",
    "describe",
    "differences",
    "json_schema",
    "load",
    "parse_adapter",
    "reference",
    "resolved",
]
