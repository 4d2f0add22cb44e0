"""Custom key types with validators."""

from __future__ import annotations

import json
import re
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lrft.recipe.yaml_scalars import looks_like_number

LARGEST = 2**31 - 1
MOST_LAYERS = 10_000

Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*"


def refuse(sentence: str) -> PydanticCustomError:
    """The error of a validator below: its text is shown as it is."""
    return PydanticCustomError("plain", "{sentence}", {"sentence": sentence})


def said(value: Any) -> str:
    """A wrong value in a sentence. Numbers and texts are shown, what holds others is only named."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, int) and abs(value) > 10**40:
        return "a huge number"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "a map"
    return "a list" if isinstance(value, tuple | list) else f"a value of type {type(value).__name__}"


def is_number(value: Any) -> bool:
    """Finite, and small enough to become a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _every(value: Any) -> int | float | str:
    return _interval(value, "none")


def _every_or_auto(value: Any) -> int | float | str:
    return value if value == "auto" else _interval(value, "auto or none")


def _count_or_auto(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and 1 <= value <= LARGEST):
        return value
    raise refuse(f"expected auto or a whole number of at least 1; got {said(value)}")


def _interval(value: Any, words: str) -> int | float | str:
    """words: that are allowed as well."""
    if value == "none" or (is_number(value) and 0 < value < 1):
        return value
    if isinstance(value, float) and value == 1:  # the whole run, or each step?
        raise refuse("1.0 is no fraction below 1; write 1 for every step, or none: the end of a run always counts")
    if is_number(value) and 1 <= value <= LARGEST and value == int(value):
        return int(value)
    raise refuse(f"expected a fraction of the run below 1, a whole number of steps, or {words}; got {said(value)}")


def _validation(value: Any) -> int | float | str:
    if is_number(value) and 0 < value < 1:
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST:
        return value
    if isinstance(value, str) and value and not looks_like_number(value):
        return value
    raise refuse(f"expected a fraction below 1, a number of rows, a path, or none; got {said(value)}")


def _repository(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(REPOSITORY, value):
        return value
    raise refuse(f"expected OWNER/NAME, a repository of the hub; got {said(value)}")


def _layers(value: Any) -> str | tuple[int, ...]:
    if value == "all":
        return "all"
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,4})-(\d{1,4})", value, re.ASCII)):
        first, last = int(match[1]), int(match[2])
        if first > last:
            raise refuse(f"the range {value} is empty: write the smaller number first")
        return tuple(range(first, last + 1))
    indices = isinstance(value, tuple | list) and all(type(i) is int and 0 <= i < MOST_LAYERS for i in value)
    if not indices or not value:
        hint = f"; write [{value}] for this layer alone" if type(value) is int and value >= 0 else ""
        raise refuse(f"expected all, a range such as 0-7, or a list of layer numbers; got {said(value)}{hint}")
    if len(set(value)) < len(value):
        raise refuse("a layer is listed twice")
    return tuple(sorted(value))


def _pattern(value: Any) -> Any:
    """A module name, a glob, or re: with a regular expression that compiles."""
    if isinstance(value, str) and value.startswith("re:"):
        try:
            re.compile(value[3:])
        except (re.error, RecursionError, OverflowError) as error:
            raise refuse(f"'{value[3:60]}' is not a regular expression: {error}") from None
    return value


def _wording(value: Any) -> Any:
    """A text with names of columns in braces; {{ and }} are braces themselves."""
    if not isinstance(value, str):
        raise refuse(f"expected a text with columns in braces, such as 'Facts: {{facts}}'; got {said(value)}")
    try:
        parts = list(Formatter().parse(value))
    except ValueError as error:
        raise refuse(f"{error}. A brace that is no column is written twice: {{{{ or }}}}") from None
    columns = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if not columns:
        raise refuse("names no column, so all rows would have the same text: write the column in braces, as in {text}")
    if wrong := next((column for column in columns if not column[0] or column[1] or column[2]), None):
        name = wrong[0] or "no name"
        raise refuse(f"in braces stands the name of a column and nothing else; got {name} in one that does not")
    return value


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise refuse(f"expected a list of tools, or JSON text of one; the text is not JSON: {error}") from None
    if not isinstance(found, list | tuple) or not all(isinstance(tool, dict) for tool in found):
        raise refuse(f"expected a list of tools, each a map, or JSON text of one; got {said(value)}")
    return tuple(_lists(tool) for tool in found)


def _lists(value: Any) -> Any:
    """A value as JSON has it: the tree of a recipe has tuples for its lists."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _new_token(value: Any) -> str:
    if isinstance(value, str) and value and value == value.strip():
        return value
    raise refuse(f"expected a text without white space at its ends; got {said(value)}")


def named(value: Any) -> Any:
    """The short form of a list of new tokens: a text stands for {token: TEXT}."""
    entries = (value,) if isinstance(value, str | dict) else value
    if not isinstance(entries, list | tuple):
        return entries
    return tuple({"token": entry} if isinstance(entry, str) else entry for entry in entries)


def _train_tokens(value: Any) -> str | tuple[str, ...]:
    if value == "added":
        return "added"
    if isinstance(value, list | tuple) and all(isinstance(token, str) and token for token in value):
        if twice := next((token for k, token in enumerate(value) if token in value[:k]), None):
            raise refuse(f"{twice} is listed twice")
        return tuple(value)
    raise refuse(f"expected added, or a list of tokens as texts; got {said(value)}")


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _no_clipping(value: Any) -> Any:
    return None if value == "none" else value


def _alpha(value: Any) -> float | str:
    if value == "auto" or (is_number(value) and value > 0):
        return value if value == "auto" else float(value)
    raise refuse(f"expected a number above 0, or auto; got {said(value)}")


_FRACTION = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_COUNT = {"type": "integer", "minimum": 1}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_INDICES = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "integer", "minimum": 0}}
_RANGE = {"type": "string", "pattern": "^[0-9]{1,4}-[0-9]{1,4}$"}


def _any_of(*forms: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(forms)})


Every = Annotated[int | float | Literal["none"], PlainValidator(_every), _any_of(_FRACTION, _COUNT, {"const": "none"})]
EveryOrAuto = Annotated[
    int | float | Literal["none", "auto"],
    PlainValidator(_every_or_auto),
    _any_of({"const": "auto"}, _FRACTION, _COUNT, {"const": "none"}),
]
CountOrAuto = Annotated[int | Literal["auto"], PlainValidator(_count_or_auto), _any_of({"const": "auto"}, _COUNT)]
Validation = Annotated[int | float | str, PlainValidator(_validation), _any_of(_FRACTION, _COUNT, _TEXT)]
Alpha = Annotated[float | Literal["auto"], PlainValidator(_alpha), _any_of({"const": "auto"}, _POSITIVE)]
Layers = Annotated[
    Literal["all"] | tuple[int, ...], PlainValidator(_layers), _any_of({"const": "all"}, _RANGE, _INDICES)
]
Pattern = Annotated[str, Field(min_length=1), BeforeValidator(_pattern)]
Wording = Annotated[str, PlainValidator(_wording), WithJsonSchema(_TEXT)]
Values = Annotated[dict[str, Any], AfterValidator(_lists)]
Tools = Annotated[
    tuple[dict[str, Any], ...], PlainValidator(_tools), _any_of({"type": "array", "items": {"type": "object"}}, _TEXT)
]
Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(_as_tuple), _any_of(_TEXT, {"type": "array", "items": _TEXT})]
TokenText = Annotated[str, PlainValidator(_new_token), WithJsonSchema(_TEXT)]
TrainTokens = Annotated[
    Literal["added"] | tuple[str, ...],
    PlainValidator(_train_tokens),
    _any_of({"const": "added"}, {"type": "array", "items": _TEXT}),
]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), _any_of(_TEXT, {"type": "array", "items": _TEXT})]
Repository = Annotated[
    str, PlainValidator(_repository), WithJsonSchema({"type": "string", "pattern": f"^{REPOSITORY}$"})
]
Reports = Annotated[
    tuple[Literal["markdown", "html"], ...],
    Field(strict=False),
    BeforeValidator(_as_tuple),
    WithJsonSchema({"type": "array", "items": {"enum": ["markdown", "html"]}, "uniqueItems": True}),
]
GradNorm = Annotated[Positive | None, BeforeValidator(_no_clipping), _any_of(_POSITIVE, {"const": "none"})]
