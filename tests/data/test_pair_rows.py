"""Rows of queries with documents and negatives: layouts, the tokenizer's own tokens, prompts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
from prepared import check_conservation, lines, section

from lrft import data
from lrft.data.preview import render
from lrft.errors import DataError, RecipeError


def prepare(tmp_path: Path, *rows: Any, kind: str = "pairs", **options: Any) -> data.Prepared:
    found = data.prepare(
        section(lines(tmp_path / "rows.jsonl", *rows), **options),
        tiny_tokenizers.chatml(),
        seed=7,
        limit=None,
        where=lambda key: "default",
        cache=tmp_path / "cache",
        kind=kind,
    )
    check_conservation(found.report)
    return found


def texts(rows: data.Rows, i: int) -> list[list[int]]:
    return [tokens.tolist() for tokens, _ in rows.sequences(i)]


@pytest.mark.parametrize(
    ("row", "negatives"),
    [
        ({"anchor": "hello", "positive": "world"}, []),
        ({"query": "hello", "document": "world", "negative": "two"}, ["two"]),
        ({"question": "hello", "answer": "world", "negatives": ["two", "forty"]}, ["two", "forty"]),
        ({"query": "hello", "pos": ["world"], "neg": ["two"]}, ["two"]),
        ({"sentence1": "hello", "sentence2": "world", "negative_1": "two", "negative_2": "forty"}, ["two", "forty"]),
        ({"query": "hello", "passage": "world", "negatives": [], "negative": None}, []),
    ],
)
def test_layouts_are_found_and_tokenised_as_they_will_be_asked(
    row: dict[str, Any], negatives: list[str], tmp_path: Path
) -> None:
    found = prepare(tmp_path, row)
    source = found.report.sources[0]
    assert (source.format, source.decided, source.ignored) == ("pairs", "found", {})
    tokenizer = tiny_tokenizers.chatml()
    assert texts(found.train, 0) == tokenizer(["hello", "world", *negatives])["input_ids"]
    assert found.train.trained_tokens() == 0
    prompted = prepare(tmp_path, row, query_prompt="time: ", document_prompt="what: ")
    wanted = ["time: hello", *(f"what: {text}" for text in ("world", *negatives))]
    assert texts(prompted.train, 0) == tokenizer(wanted)["input_ids"]
    assert "before each query: 'time: '" in prompted.report.lines()
    assert prepare(tmp_path, row).cached


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": "a", "positive": "a"}, "anchor and positive are the same text"),
        ({"anchor": "a", "positive": "b", "negative": "b"}, "negative: is the same text as positive"),
        ({"anchor": "a", "positive": "b", "negatives": ["c", "a"]}, r"negatives\[1\]: is the same text as anchor"),
        ({"anchor": "a", "positive": " "}, "positive: is empty"),
        ({"anchor": "a", "positive": "b", "negatives": ["c", ""]}, r"negatives\[1\]: is empty"),
        ({"anchor": "a", "positive": 3}, "positive: must be text"),
        ({"query": "a", "pos": ["b", "c"]}, "pos: holds 2 texts: give each a row of its own"),
        ({"anchor": "a", "other": "b"}, "expected anchor and positive, or query and positive"),
    ],
)
def test_what_is_no_pair_is_refused_or_skipped(row: Any, message: str, tmp_path: Path) -> None:
    good = {"anchor": "hello", "positive": "world"}
    with pytest.raises(DataError, match=rf"rows\.jsonl:2  .*{message}"):
        prepare(tmp_path, good, row)
    assert prepare(tmp_path, good, row, on_bad_row="skip").report.train_rows == 1


def test_columns_that_fit_nothing_and_rows_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"match no format .*pairs: anchor and positive, or query and positive"):
        prepare(tmp_path, {"a": "b", "c": "d"})
    with pytest.raises(RecipeError, match=r"takes pairs of a text and another .* are texts with labels"):
        prepare(tmp_path, {"text": "a", "label": "x"})
    with pytest.raises(RecipeError, match=r"are pairs of a text and another .*training.objective: embedding takes"):
        prepare(tmp_path, {"anchor": "a", "positive": "b"}, kind="labelled")


def test_long_texts_are_cut_each_by_itself(tmp_path: Path) -> None:
    long = {"anchor": "hello " * 30, "positive": "two"}
    cut = prepare(tmp_path, long, max_length=8, too_long="truncate")
    assert texts(cut.train, 0) == [tiny_tokenizers.chatml()(text)["input_ids"][:8] for text in long.values()]
    assert (cut.train.cut(0), cut.report.truncated) == (
        len(tiny_tokenizers.chatml()("hello " * 30)["input_ids"]) - 8,
        1,
    )
    same = {"anchor": "two", "positive": "hello " * 30 + "a", "negative": "hello " * 30 + "b"}
    with pytest.raises(DataError, match="a negative has the tokens of the document"):
        prepare(tmp_path, long, same, max_length=8, too_long="truncate")


def test_the_preview_names_the_sides(tmp_path: Path) -> None:
    found = prepare(tmp_path, {"anchor": "hello", "positive": "world", "negatives": ["two", "forty"]})
    shown = render(found.train, found.report, tiny_tokenizers.chatml(), colour=False).plain
    assert "query\nhello\ndocument\nworld\nnegative\ntwo\nnegative\nforty" in shown
    assert "tokens per sequence (query, document and negative)" in shown
    assert "label" not in shown
