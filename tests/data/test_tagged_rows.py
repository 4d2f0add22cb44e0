"""Rows of words with labels: layouts, the words of tokens, labels by name, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
from prepared import check_conservation, lines, section

from lrft import data
from lrft.errors import DataError


def prepare(tmp_path: Path, *rows: Any, tokenizer: Any = None, **options: Any) -> data.Prepared:
    found = data.prepare(
        section(lines(tmp_path / "rows.jsonl", *rows), **options),
        tokenizer or tiny_tokenizers.chatml(),
        seed=7,
        limit=None,
        where=lambda key: "default",
        cache=tmp_path / "cache",
        kind="tagged",
    )
    check_conservation(found.report)
    return found


WORDS = ["hello", "forty", "two", "(", "what", ")"]
TAGS = ["O", "B-N", "I-N", "O", "B-Q", "O"]
TEXT = "hello forty two (what)"
SPANS = [{"start": 6, "end": 15, "label": "N"}, {"start": 17, "end": 21, "label": "Q"}]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"tokens": WORDS, "tags": TAGS}, " ".join(WORDS)),
        ({"tokens": WORDS, "ner_tags": TAGS, "id": "7"}, " ".join(WORDS)),
        ({"words": WORDS, "labels": TAGS}, " ".join(WORDS)),
        ({"text": TEXT, "entities": SPANS}, TEXT),
    ],
)
def test_layouts_are_found_and_each_token_knows_its_word(row: Any, text: str, tmp_path: Path) -> None:
    """The tokens are those of the text, which is what a pipeline is asked."""
    tokenizer = tiny_tokenizers.chatml()
    found = prepare(tmp_path, row)
    assert (found.report.sources[0].format, found.report.sources[0].decided) == ("tagged", "found")
    assert list(found.report.labels) == ["B-N", "B-Q", "I-N", "O"]
    rows = found.train
    stock = tokenizer(text, return_offsets_mapping=True)
    assert rows.tokens(0).tolist() == stock["input_ids"]
    names = list(found.report.labels)
    assert [names[int(k)] for k in rows.numbers("label", 0)] == TAGS
    for (first, last), word in zip(stock["offset_mapping"], rows.numbers("word", 0).astype(int), strict=True):
        assert text[first:last].strip() in WORDS[word]
    assert rows.answer(0) == "forty B-N, two I-N, what B-Q"


def test_special_tokens_and_words_without_a_token_have_no_label(tmp_path: Path) -> None:
    from tokenizers import normalizers, processors

    tokenizer = tiny_tokenizers.chatml()
    number = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_end|> $A <|im_end|>", special_tokens=[("<|im_end|>", number)]
    )
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("q", "")
    found = prepare(tmp_path, {"tokens": ["hello", "q", "two"], "tags": ["A", "B", "A"]}, tokenizer=tokenizer)
    word = found.train.numbers("word", 0).astype(int).tolist()
    assert (word[0], word[-1], sorted(set(word))) == (-1, -1, [-1, 0, 2])
    assert "1 word of which the tokenizer makes no token, so without a label" in found.report.lines()


def test_numbers_with_names_given(tmp_path: Path) -> None:
    made = [{"tokens": ["a", "b"], "tags": [0, 2]}, {"tokens": ["c"], "tags": [0]}]
    found = prepare(tmp_path, *made, labels=["O", "B-X", "I-X"])
    assert found.report.labels == {"O": 2, "B-X": 0, "I-X": 1}
    assert found.train.numbers("label", 0).tolist() == [0.0, 2.0]
    assert "without a train row, so never learnt: label B-X" in found.report.lines()
    with pytest.raises(DataError, match=r"1 labels are none of data\.labels, such as '2'"):
        prepare(tmp_path, *made, labels=["O", "B-X"])
    assert list(prepare(tmp_path, *made).report.labels) == ["0", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tags: has 1 labels for 2 tokens"),
        ({"tokens": [], "tags": []}, "tokens: holds nothing"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "tokens: must be a list"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, r"tokens\[1\]: is empty"),
        ({"tokens": ["a"], "tags": [0.5]}, r"tags\[0\]: is 0.5, neither a name nor a whole number"),
        ({"text": "hello you", "entities": [{"start": 0, "end": 99, "label": "X"}]}, "is no part of a text of 9"),
        ({"text": "hello you", "entities": [{"start": 1, "end": 5, "label": "X"}]}, "1 to 5 cuts a word"),
        ({"text": "hello you", "entities": [{"start": 5, "end": 6, "label": "X"}]}, "holds no word"),
        ({"text": "hello you", "entities": [{"start": 0, "label": "X"}]}, "must have start, end and label"),
        ({"text": "you", "entities": [{"start": 0, "end": 3, "label": "X"}] * 2}, "overlaps another one"),
    ],
)
def test_what_is_no_row_of_words_is_refused_with_its_place(row: Any, message: str, tmp_path: Path) -> None:
    good = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
    with pytest.raises(DataError, match=rf"rows\.jsonl:2  .*{message}"):
        prepare(tmp_path, good, row)
    assert prepare(tmp_path, good, row, on_bad_row="skip").report.train_rows == 1


def test_words_beyond_a_cut_have_no_token(tmp_path: Path) -> None:
    row = {"tokens": ["hello"] * 30, "tags": ["O", "X"] * 15}
    found = prepare(tmp_path, row, max_length=8, too_long="truncate").train
    assert (len(found.tokens(0)), found.numbers("word", 0).max() < 29, len(found.numbers("label", 0))) == (8, True, 30)
