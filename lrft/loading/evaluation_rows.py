"""The rows that a finished run, an adapter or a model is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft import data
from lrft import recipe as recipes
from lrft.errors import UsageError
from lrft.loading.from_recipe import prepare_data
from lrft.model.head import Head
from lrft.model.load import embedding_rows, position_limit
from lrft.model.weights import cache_dir
from lrft.recipe import DataEntry, DataSection
from lrft.runs.locate import adapter_of, run_of


def rows_for(
    target: str,
    path: str | None,
    reading: Mapping[str, str],
    section: DataSection | None,
    tokenizer: Any,
    folder: Path,
    config: Any,
    kind: str,
    head: Head | None,
    *,
    trained_template: bool = False,
) -> tuple[data.Rows, data.DataReport]:
    """The rows to measure on: the file given, else the run's own validation rows. Raises UsageError.

    reading: keys of an entry of data.train for that file. config, head: the model's. kind: of rows, for the
    objective. trained_template: a run's own rows, too, are put with the template of
    `tokenizer`, which may be another run's.
    """
    cache = cache_dir()
    if path is not None:
        # The template that trained is the tokenizer's own by now, wherever the run's recipe had it from.
        read_as = data.reading(section) if section else {}
        if "format" in reading:  # the run's prompts are of another
            read_as = {key: value for key, value in read_as.items() if key not in ("prompt", "completion", "tools")}
        plain = DataSection(train=(DataEntry(path=path),))
        settings = (section or plain.model_copy(update=as_served(head))).model_copy(
            update={"chat_template": "tokenizer"}
        )
        rows, report = data.prepare_file(
            recipes.parse_entry(path, read_as, reading) if reading else path,
            settings,
            tokenizer,
            seed=0,
            limit=position_limit(config),
            where=lambda key: "default",
            cache=cache,
            kind=kind,
            labels=None if head is None else head.labels,
        )
        data.refuse_missing_rows([rows], embedding_rows(config), tokenizer)
        return rows, report
    if section is None:
        raise UsageError("no evaluation data given: pass --data FILE")
    recipe = recipes.load(Path(run_of(adapter_of(Path(target))) or target) / "resolved.yaml")
    if trained_template:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"chat_template": "tokenizer"})})
    prepared = prepare_data(recipe, folder, tokenizer)
    if prepared.validation is None:
        raise UsageError(f"{target} was trained without validation rows: pass evaluation data with --data FILE")
    return prepared.validation, prepared.report


def as_served(head: Head | None) -> dict[str, Any]:
    """Keys of the data section by which a model that predicts no tokens reads texts, as it will be asked."""
    embedder = None if head is None else head.embedder
    if head is None:
        return {}
    if embedder is None:
        return {"too_long": "truncate"}
    prompts = {f"{side}_prompt": embedder.prompts.get(side, "") for side in ("query", "document")}
    length = {} if embedder.max_length is None else {"max_length": embedder.max_length}
    return {"too_long": "truncate", **length, **prompts}
