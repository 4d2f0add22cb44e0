"""JSON Schema of comparison files, for editors."""

from __future__ import annotations

from typing import Any

from lrft.compare.config import BUDGETS, KEYS, SEEDS

SCHEMA_ID = "urn:lrft:compare:1"

_TEXT = {"type": "string", "minLength": 1}
_FORMS: dict[str, dict[str, Any]] = {
    "recipe": {"anyOf": [_TEXT, {"type": "object"}]},
    "runs": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [{"type": "null"}, _TEXT, {"type": "array"}, {"type": "object"}]},
    },
    "grid": {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}},
    "seeds": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}, "default": list(SEEDS)},
    "budget": {"enum": list(BUDGETS), "default": BUDGETS[0]},
    "baseline": _TEXT,
    "metric": {**_TEXT, "default": "loss"},
    "forgetting": _TEXT,
    "output_dir": _TEXT,
}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a comparison file; a recipe's own keys are not looked into."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "lrft comparison",
        "type": "object",
        "additionalProperties": False,
        "properties": {key: {**_FORMS[key], "description": text} for key, text in KEYS.items()},
        "required": [key for key, text in KEYS.items() if text.endswith("Required.")],
    }
