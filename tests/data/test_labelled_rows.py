"""Rows of texts with labels or numbers: layouts, labels by name, the tokenizer's own layout, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
from prepared import check_conservation, lines, section
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from lrft import data, registry
from lrft.errors import DataError, RecipeError


def prepare(tmp_path: Path, *rows: Any, kind: str = "labelled", tokenizer: Any = None, **options: Any) -> data.Prepared:
    places = {f"data.{name}": f"recipe.yaml:{k}:3" for k, name in enumerate(options, 1)}
    found = data.prepare(
        section(lines(tmp_path / "rows.jsonl", *rows), **options),
        tokenizer or tiny_tokenizers.chatml(),
        seed=7,
        limit=None,
        where=lambda key: places.get(key, "default"),
        cache=tmp_path / "cache",
        kind=kind,
    )
    check_conservation(found.report)
    return found


def bert_like() -> PreTrainedTokenizerFast:
    """[CLS] first [SEP] second [SEP], token types 0 and 1."""
    tokenizer = tiny_tokenizers.chatml()
    pair = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        pair="<|endoftext|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[(word, tokenizer.convert_tokens_to_ids(word)) for word in ("<|endoftext|>", "<|im_end|>")],
    )
    tokenizer.backend_tokenizer.post_processor = pair
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def labels(rows: data.Rows) -> list[list[int]]:
    return [rows.numbers("label", i).astype(int).tolist() for i in range(len(rows))]


@pytest.mark.parametrize(
    ("first", "second"),
    [("text", ""), ("sentence", ""), ("text", "text_pair"), ("premise", "hypothesis"), ("sentence1", "sentence2")],
)
def test_layouts_are_found_and_laid_out_by_the_tokenizer(first: str, second: str, tmp_path: Path) -> None:
    tokenizer = bert_like()
    texts = [("hello world", "time"), ("two", "the <|im_end|> answer")]
    made = [
        {first: one, **({second: two} if second else {}), "label": label}
        for (one, two), label in zip(texts, ("yes", "no"), strict=True)
    ]
    found = prepare(tmp_path, *made, tokenizer=tokenizer)
    source = found.report.sources[0]
    assert (source.format, source.decided, found.report.labels) == ("labelled", "found", {"no": 1, "yes": 1})
    assert labels(found.train) == [[1], [0]]
    for i, (one, two) in enumerate(texts):
        stock = tokenizer(one, two or None, split_special_tokens=True) if second else tokenizer(one)
        if second and i == 1:  # a special token's text is text, so it is longer than stock would have it
            assert len(found.train.tokens(i)) > len(tokenizer(one, two)["input_ids"])
            continue
        assert found.train.tokens(i).tolist() == stock["input_ids"]
        start = found.train.numbers("second", i).astype(int).tolist()
        assert start == ([stock["token_type_ids"].index(1)] if second else [])


def test_labels_by_number_by_name_several_and_scores(tmp_path: Path) -> None:
    made = [{"text": f"t {k}", "label": k} for k in (10, 9, True, 2.0)]
    found = prepare(tmp_path, *made)
    assert list(found.report.labels) == ["10", "2", "9", "true"]  # names, as one is none of a number
    found = prepare(tmp_path, *({"text": f"t {k}", "label": k} for k in (10, 9, "2")))
    assert list(found.report.labels) == ["2", "9", "10"]
    found = prepare(tmp_path, *({"text": f"t {k}", "label": k} for k in (["b", "a"], [], ["c"])))
    assert labels(found.train) == [[0, 1], [], [2]]
    assert found.report.several
    found = prepare(tmp_path, {"text": "a", "label": 0.25}, {"text": "b", "label": "-3"}, kind="scored")
    assert [found.train.numbers("label", i).tolist() for i in range(2)] == [[0.25], [-3.0]]
    assert found.report.labels == {}
    again = prepare(tmp_path, {"text": "a", "label": 0.25}, {"text": "b", "label": "-3"}, kind="scored")
    assert again.cached
    assert again.train.numbers("label", 1).tolist() == [-3.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 0.5}], r"neither a name nor a whole number: .*problem: regression"),
        ([{"text": "a", "label": None}], "label: must be text, this is null"),
        ([{"text": " ", "label": "x"}], "text: is empty"),
        ([{"body": "a", "label": "x"}], "no text; expected text and text_pair, premise and hypothesis"),
        ([{"text": "a", "label": "x"}] * 3, "nothing to tell apart: of 3 train rows all have the label x"),
        ([{"text": "a", "sentiment": "x"}], "the columns text, sentiment match no format"),
    ],
)
def test_bad_rows_are_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, *rows)


def test_rare_absent_and_unknown_labels(tmp_path: Path) -> None:
    many = [{"text": f"{word} {k}", "label": word} for word in ("alpha", "beta") for k in range(20)]
    found = prepare(tmp_path, *many, {"text": "once", "label": "gamma"}, validation=0.9)
    in_train = {label for row in labels(found.train) for label in row}
    assert in_train == {0, 1, 2}  # whatever the split says, no label is there to be validated alone
    assert "seen once, so learnt from one row and never validated: label gamma" in found.report.lines()
    lines(tmp_path / "other.jsonl", {"text": "x", "label": "alpha"})
    found = prepare(tmp_path, *many, validation=str(tmp_path / "other.jsonl"))
    assert "without a validation row: label beta" in found.report.lines()
    lines(tmp_path / "other.jsonl", {"text": "x", "label": "alpa"})
    with pytest.raises(
        DataError, match=r"1 labels are none of the train rows, such as 'alpa' in .*other.jsonl:1"
    ) as raised:
        prepare(tmp_path, *many, validation=str(tmp_path / "other.jsonl"))
    assert raised.value.hint == "Did you mean alpha? Labels of the train rows: alpha, beta"


def test_long_texts_are_cut_by_default_and_counted(tmp_path: Path) -> None:
    """As pipelines with truncation=True do: the special tokens at the end stay."""
    tokenizer = bert_like()
    made = [{"text": "hello " * 30, "text_pair": "time", "label": "x"}, {"text": "a", "text_pair": "b", "label": "y"}]
    found = prepare(tmp_path, *made, tokenizer=tokenizer, max_length=16, too_long="truncate")
    stock = tokenizer(made[0]["text"], "time", truncation=True, max_length=16)
    assert found.train.tokens(0).tolist() == stock["input_ids"]
    assert found.train.cut(0) == len(tokenizer(made[0]["text"], "time")["input_ids"]) - 16
    assert found.report.truncated == 1
    more = [*made, {"text": "c", "label": "x"}]
    assert prepare(tmp_path, *more, max_length=16, too_long="drop").report.dropped == {"longer than max_length": 1}
    with pytest.raises(DataError, match="1 of 2 rows") as raised:
        prepare(tmp_path, *made, max_length=16, too_long="error")
    assert "data.too_long: truncate | drop" in str(raised.value.hint)
    with pytest.raises(RecipeError, match="split is for format text"):
        prepare(tmp_path, *made, max_length=16, too_long="split")
    assert registry.declared("objectives")["classification"].defaults == {"data.too_long": "truncate"}


def test_rows_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes texts with labels .* are conversations, prompts"):
        prepare(tmp_path, {"prompt": "a", "completion": "b"})
