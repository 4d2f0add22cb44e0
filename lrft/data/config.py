"""Settings derived from data section, tokenizer and model, checked before any row is read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from lrft.data.chat_template import template_names
from lrft.data.format import COLUMNS, LEFT_OUT
from lrft.data.readers import find, has_splits
from lrft.data.records import BadRow, Source
from lrft.data.tools import tools_of
from lrft.errors import Problem, RecipeError, nearest
from lrft.registry import DEFAULT_ROWS

Where = Callable[[str], str]
OF_MODEL = "the model"
"""Whose labels rows have that a trained model is asked about"""


@dataclass(frozen=True)
class Input:
    """One entry of data.train, or the validation data. `key`: of the recipe, such as data.train.0, or --data.

    prompt, completion: as in the recipe. tools: for rows that bring none of their own.
    """

    key: str
    role: str
    sources: tuple[Source, ...]
    format: str
    columns: dict[str, str]
    limit: int | None
    special_tokens: str = "auto"
    prompt: str | None = None
    completion: str | None = None
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def number(self) -> int:
        """Of the entry of data.train; 0 for other data."""
        last = self.key.rsplit(".", 1)[-1]
        return int(last) if last.isdigit() else 0

    @property
    def wordings(self) -> dict[str, str]:
        """{prompt or completion: text with columns of the file in braces} (`lrft.data.wording`)."""
        found = {"prompt": self.prompt, "completion": self.completion}
        return {key: text for key, text in found.items() if text is not None}

    @property
    def as_it_is(self) -> bool:
        """Its records are read under their own names."""
        return not self.columns and self.prompt is None and self.completion is None

    def advice(self, **keys: Any) -> str:
        """How to set keys of this entry, as they are written on the command line."""
        if self.key == "--data":
            return " ".join(f"--{name.replace('_', '-')} {shlex.quote(_flow(value))}" for name, value in keys.items())
        # Validation data are read as data.train says.
        key = self.key if self.key.startswith("data.train.") else "data.train.0"
        return " ".join(shlex.quote(f"{key}.{name}={_flow(value)}") for name, value in keys.items())


def _flow(value: Any) -> str:
    """A value in YAML's short form."""
    if not isinstance(value, dict):
        return str(value)
    return "{" + ", ".join(f"{_name(theirs)}: {ours}" for theirs, ours in value.items()) + "}"


def _name(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_][\w-]*", text) else json.dumps(text)


@dataclass(frozen=True)
class Settings:
    """max_length: in tokens; `max_from` says who set it. template: jinja text, None without one, which is given
    `template_options`. kind: of rows, one of `registry.ROWS`."""

    template: str | None
    template_options: dict[str, Any]
    train_on: str
    max_length: int
    max_from: str
    too_long: str
    on_bad_row: str
    seed: int
    kind: str = DEFAULT_ROWS
    labels: tuple[str, ...] | None = None
    """that rows may have, in the order of their numbers; None: those of the train rows"""
    at_once: bool = False
    """whether the first row that cannot be used is refused when it comes, not behind all others"""
    labels_from: str = "the train rows"
    """whose they are"""
    prompts: tuple[str, str] = ("", "")
    """texts before a query and before a document"""


def settings(
    section: Any,
    tokenizer: Any,
    *,
    seed: int,
    limit: int | None,
    where: Where,
    kind: str = DEFAULT_ROWS,
    labels: Sequence[str] | None = None,
) -> Settings:
    """limit: positions of the model. labels: those of a model that is asked, else data.labels. Raises RecipeError."""
    length, origin = section.max_length, "data.max_length"
    if limit is not None and limit < length:
        if where(origin) != "default":
            refuse(where, origin, f"is {length}, but the model has {limit} positions: at most {limit}")
        length, origin = limit, "the model"
    if length < 2:
        refuse(where, "data.max_length", "is 1: a row of one token has nothing to predict. Minimum: 2")
    template = resolve_chat_template(section, tokenizer, where=where)
    options = dict(section.template_options)
    require_options(options, template, where)
    whose = OF_MODEL if labels is not None else "data.labels" if section.labels else Settings.labels_from
    return Settings(
        template=template,
        template_options=options,
        train_on=section.train_on,
        max_length=length,
        max_from=origin,
        too_long=section.too_long,
        on_bad_row=section.on_bad_row,
        seed=seed,
        kind=kind,
        labels=tuple(section.labels) or None if labels is None else tuple(labels),
        labels_from=whose,
        prompts=(section.query_prompt, section.document_prompt),
    )


def require_options(options: Mapping[str, Any], template: str | None, where: Where) -> None:
    """Raise RecipeError for a value that the chat template does not read."""
    for name in options:
        key = f"data.template_options.{name}"
        if template is None:
            refuse(where, key, "there is no chat template that could read it")
        names = template_names(template)
        if name not in names:
            close = nearest(name, names)
            hint = f" Did you mean {close[0]}?" if close else f" It reads {', '.join(sorted(names)) or 'no such value'}"
            refuse(where, key, f"the chat template does not read it.{hint}")


def resolve_chat_template(section: Any, tokenizer: Any, *, where: Where) -> str | None:
    """The jinja text of data.chat_template: the tokenizer's own (None without one), that of a name, or a file's.

    Raises RecipeError when the file cannot be read or is not a template, or when the tokenizer has several templates
    and none is called default.
    """
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    chosen, own = section.chat_template, tokenizer.chat_template
    named: dict[str, str] = own if isinstance(own, dict) else {}
    if chosen == "tokenizer" and named and "default" not in named:
        text = f"the tokenizer has several chat templates and no default. Choose one: {', '.join(named)}"
        refuse(where, "data.chat_template", text)
    if chosen == "tokenizer":
        return (named["default"] if named else own) or None
    if chosen in named:
        return named[chosen]
    path = Path(chosen).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        probe = [{"role": "user", "content": "x"}]
        tokenizer.apply_chat_template(probe, chat_template=text, tokenize=False)
    except OSError as error:
        refuse(
            where,
            "data.chat_template",
            f"{path}: {error.strerror or error}. Expected: {', '.join(['tokenizer', *named])}, or a .jinja file",
        )
    except UnicodeDecodeError:
        refuse(where, "data.chat_template", f"{path} is not UTF-8 text")
    except TemplateSyntaxError as error:
        refuse(where, "data.chat_template", f"{path}:{error.lineno} is not a valid Jinja template: {error.message}")
    except TemplateError:
        pass  # it refuses the probe, not every row; rows are judged one by one
    return text


def with_template(tokenizer: Any, template: str) -> Any:
    """The templates to keep with a tokenizer that was trained with `template`: that one first, and all named ones."""
    own = tokenizer.chat_template
    if not isinstance(own, dict):
        return template
    before = {"base_default": own["default"]} if own.get("default") not in (None, template) else {}
    return {**own, **before, "default": template}


def with_options(template: str, options: Mapping[str, Any]) -> str:
    """The template with data.template_options as what it reads where nobody gives it another value: whoever generates
    with the result begins as it was trained."""
    made = "".join(f"{{% if {k} is not defined %}}{{% set {k} = {v!r} %}}{{% endif %}}" for k, v in options.items())
    return f"{made}{{{{ '' }}}}{template}" if made else template  # what stands first keeps its white space


def inputs(section: Any, *, where: Where) -> list[Input]:
    """The train entries and, when validation is a path, that. Raises DataError, RecipeError."""
    found = [read_input(entry, f"data.train.{k}", "train", where=where) for k, entry in enumerate(section.train)]
    if isinstance(section.validation, str) and section.validation != "none":
        found.append(validation_input(section.validation, section, where=where))
    return found


def validation_input(path: str, section: Any, *, where: Where) -> Input:
    """Other data, read as the train entries are when these agree on format and columns, else by itself."""
    made = Input("data.validation", "validation", tuple(find(path, "validation")), limit=None, **reading(section))
    return replace(made, tools=tools_of(list(made.tools), "data.train.tools"))


SHARED: Mapping[str, Any] = {
    **{"format": "auto", "columns": {}, "special_tokens": "auto"},
    **{"prompt": None, "completion": None, "tools": ()},
}
"""The keys of an entry that say how its rows are read, with their defaults"""


def reading(section: Any) -> dict[str, Any]:
    """How other data are read: the keys that all train entries share, else those of an entry that says nothing."""
    found = [{key: getattr(entry, key) for key in SHARED} for entry in section.train]
    return dict(found[0] if all(each == found[0] for each in found) else SHARED)


def read_input(entry: Any, key: str, role: str, *, where: Where) -> Input:
    """One data entry. Raises DataError, RecipeError."""
    columns = dict(entry.columns)
    for theirs, ours in columns.items():
        if ours not in (*COLUMNS, LEFT_OUT):
            close = nearest(ours, COLUMNS)
            hint = f" Did you mean {close[0]}?" if close else ""
            refuse(
                where,
                f"{key}.columns",
                f"{theirs}: {ours} is not a column of any format.{hint} Columns: {', '.join(COLUMNS)}; "
                f"{LEFT_OUT} drops a column",
            )
    renamed = [ours for ours in columns.values() if ours != LEFT_OUT]
    if twice := [ours for ours in renamed if renamed.count(ours) > 1]:
        refuse(where, f"{key}.columns", f"two columns are renamed to {twice[0]}")
    made = Input(key, role, (), limit=entry.limit, **{name: getattr(entry, name) for name in SHARED})
    wordings = made.wordings
    if wordings and entry.format not in ("auto", "completion"):
        given = next(iter(wordings))
        refuse(where, f"{key}.{given}", f"is for format completion, not {entry.format}: remove one of them")
    if taken := [ours for ours in renamed if ours in wordings]:
        refuse(where, f"{key}.columns", f"a column is renamed to {taken[0]}, which {key}.{taken[0]} writes: keep one")
    if entry.split != "train" and not has_splits(entry.path):
        have = "hub datasets and what save_to_disk makes of a DatasetDict have some"
        refuse(where, f"{key}.split", f"{entry.path} has no splits; {have}. To use fewer rows: {key}.limit")
    try:
        tools = tools_of(list(entry.tools), "")
    except BadRow as bad:
        refuse(where, f"{key}.tools", f"{bad.field}: {bad.detail}")
    return replace(made, sources=tuple(find(entry.path, entry.split)), tools=tools)


def refuse(where: Where, key: str, text: str) -> NoReturn:
    """Raise the RecipeError of one key, with the place of the key or of the nearest one that was written."""
    parts = key.split(".")
    places = [where(".".join(parts[:n])) for n in range(len(parts), 0, -1)]
    place = next((p for p in places if p != "default"), parts[0] if key.startswith("--") else "default")
    raise RecipeError([Problem(place, f"{key}: {text}")])
