"""What the data section, the tokenizer and the model decide together, checked before any row is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lrft.data.format import COLUMNS
from lrft.data.readers import find
from lrft.data.records import Source
from lrft.errors import Problem, RecipeError, nearest

Where = Callable[[str], str]


@dataclass(frozen=True)
class Input:
    """One entry of data.train, or the validation data. `key`: of the recipe, such as data.train.0."""

    key: str
    role: str
    sources: tuple[Source, ...]
    format: str
    columns: dict[str, str]
    limit: int | None


@dataclass(frozen=True)
class Settings:
    """max_length: in tokens; `max_from` says who set it. template: jinja text, None without one."""

    template: str | None
    train_on: str
    max_length: int
    max_from: str
    too_long: str
    on_bad_row: str
    seed: int


def settings(section: Any, tokenizer: Any, *, seed: int, limit: int | None, where: Where) -> Settings:
    """limit: positions of the model. Raises RecipeError."""
    length, origin = section.max_length, "data.max_length"
    if limit is not None and limit < length:
        if where(origin) != "default":
            refuse(where, origin, f"is {length}, but the model has {limit} positions: at most {limit}")
        length, origin = limit, "the model"
    if length < 2:
        refuse(where, "data.max_length", "is 1: a row of one token has nothing to predict. At least 2")
    return Settings(
        template=resolve_chat_template(section, tokenizer, where=where),
        train_on=section.train_on,
        max_length=length,
        max_from=origin,
        too_long=section.too_long,
        on_bad_row=section.on_bad_row,
        seed=seed,
    )


def resolve_chat_template(section: Any, tokenizer: Any, *, where: Where) -> str | None:
    """The jinja text of data.chat_template: the tokenizer's own (None without one) or that of the file.

    Raises RecipeError when the file cannot be read or is not a template.
    """
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    if section.chat_template == "tokenizer":
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    path = Path(section.chat_template).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        probe = [{"role": "user", "content": "x"}]
        tokenizer.apply_chat_template(probe, chat_template=text, tokenize=False)
    except OSError as error:
        refuse(
            where,
            "data.chat_template",
            f"{path}: {error.strerror or error}. Wanted: tokenizer, or a .jinja file",
        )
    except UnicodeDecodeError:
        refuse(where, "data.chat_template", f"{path} is not UTF-8 text")
    except TemplateSyntaxError as error:
        refuse(where, "data.chat_template", f"{path}:{error.lineno} is not a jinja template: {error.message}")
    except TemplateError:
        pass  # it refuses the probe, not every row; rows are judged one by one
    return text


def inputs(section: Any, *, where: Where) -> list[Input]:
    """The train entries and, when validation is a path, that. Raises DataError, RecipeError."""
    found = [read_input(entry, f"data.train.{k}", "train", where=where) for k, entry in enumerate(section.train)]
    if isinstance(section.validation, str) and section.validation != "none":
        found.append(validation_input(section.validation, section, where=where))
    return found


def validation_input(path: str, section: Any, *, where: Where) -> Input:
    """Other data, read as the train entries are when these agree on format and columns, else by itself."""
    first, *others = section.train
    alike = all((e.format, e.columns) == (first.format, first.columns) for e in others)
    sources = tuple(find(path, "validation" if path.startswith("hub:") else "train"))
    form, columns = (first.format, dict(first.columns)) if alike else ("auto", {})
    return Input("data.validation", "validation", sources, form, columns, None)


def read_input(entry: Any, key: str, role: str, *, where: Where) -> Input:
    """One data entry. Raises DataError, RecipeError."""
    columns = dict(entry.columns)
    for theirs, ours in columns.items():
        if ours not in COLUMNS:
            close = nearest(ours, COLUMNS)
            hint = f" Did you mean {close[0]}?" if close else ""
            refuse(
                where,
                f"{key}.columns",
                f"{theirs}: {ours} names no column of a format.{hint} Columns: {', '.join(COLUMNS)}",
            )
    if twice := [ours for ours in columns.values() if list(columns.values()).count(ours) > 1]:
        refuse(where, f"{key}.columns", f"two columns are renamed to {twice[0]}")
    sources = tuple(find(entry.path, entry.split))
    return Input(key, role, sources, entry.format, columns, entry.limit)


def refuse(where: Where, key: str, text: str) -> NoReturn:
    """Raise the RecipeError of one key, with the place of the key or of the nearest one that was written."""
    parts = key.split(".")
    places = [where(".".join(parts[:n])) for n in range(len(parts), 0, -1)]
    place = next((p for p in places if p != "default"), "default")
    shown = re.sub(r"\.(\d+)", r"[\1]", key)
    raise RecipeError([Problem(place, f"{shown}: {text}")])
