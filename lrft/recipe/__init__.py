"""Recipes: read, checked, explained and written out. Needs neither torch nor the network."""

from lrft.recipe.dump import differences, plain, resolved
from lrft.recipe.json_schema import describe, json_schema, reference
from lrft.recipe.load import load, parse_adapter, parse_entry
from lrft.recipe.schema import (
    AdapterSection,
    CheckpointSection,
    DataEntry,
    DataSection,
    EarlyStopping,
    EvaluationSection,
    LoggingSection,
    LrScheduler,
    ModelSection,
    ModuleOverride,
    Named,
    Recipe,
    TrainingSection,
)

__all__ = [
    "AdapterSection",
    "CheckpointSection",
    "DataEntry",
    "DataSection",
    "EarlyStopping",
    "EvaluationSection",
    "LoggingSection",
    "LrScheduler",
    "ModelSection",
    "ModuleOverride",
    "Named",
    "Recipe",
    "TrainingSection",
    "describe",
    "differences",
    "json_schema",
    "load",
    "parse_adapter",
    "parse_entry",
    "plain",
    "reference",
    "resolved",
]
