"""Rows made while a run goes on: each comes once in an epoch, from its window, and a stream goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import answers, lines, prepare, texts

from lrft.data.config import Input
from lrft.data.dataset import Row
from lrft.data.records import Record, Source
from lrft.data.report import DataReport
from lrft.data.streaming import RowStream
from lrft.errors import DataError

# How many rows each record of each source of each entry gives.
ENTRIES = st.lists(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=2), min_size=1, max_size=2
).filter(lambda entries: any(n for entry in entries for source in entry for n in source))


def inputs(entries: list[list[list[int]]]) -> list[Input]:
    def source(name: str, counts: list[int]) -> Source:
        def records() -> Iterator[Record]:
            return (Record(3 * k + 1, {"rows": n}, "") for k, n in enumerate(counts))

        return Source(name, ".jsonl", str, records)

    return [
        Input(f"data.train.{k}", "train", tuple(source(f"{s}:", c) for s, c in enumerate(entry)), "text", {}, None)
        for k, entry in enumerate(entries)
    ]


def rows_of(items: Sequence[Input]) -> Iterator[Row]:
    for item in items:
        for source in item.sources:
            for record in source.records():
                for part in range(record.value["rows"]):  # type: ignore[index, call-overload]
                    name = f"{item.number}/{source.name}{record.number}/{part}"
                    yield Row(
                        np.zeros(1, np.int32), np.zeros(1, bool), 1, name, source.name, record.number, entry=item.number
                    )


def stream(entries: list[list[list[int]]], window: int, shuffle: bool = True, seed: int = 0) -> RowStream:
    return RowStream(inputs(entries), rows_of, DataReport(), window=window, seed=seed, shuffle=shuffle)


def taken(made: RowStream, steps: int, n: int) -> list[list[str]]:
    return [answers(made.take(n)) for _ in range(steps)]


@given(ENTRIES, st.integers(1, 12), st.integers(1, 4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_an_epoch_has_each_row_once_from_its_window(
    entries: list[list[list[int]]], window: int, n: int, shuffle: bool
) -> None:
    written = [row.answer for row in rows_of(inputs(entries))]
    made, steps = stream(entries, window, shuffle), -(-len(written) // n)
    for epoch in range(3):
        assert made.epoch == epoch
        found = [answer for step in taken(made, steps, n) for answer in step]
        assert sorted(found) == sorted(written)
        if window == 1 or not shuffle:
            assert found == written
        assert all(written.index(answer) < k + window for k, answer in enumerate(found))


@given(ENTRIES, st.integers(1, 12), st.integers(1, 4), st.integers(0, 9), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_stream_goes_on_where_another_stood(
    entries: list[list[list[int]]], window: int, n: int, done: int, shuffle: bool
) -> None:
    first = stream(entries, window, shuffle)
    taken(first, done, n)
    saved = json.loads(json.dumps(first.state()))
    second = stream(entries, window, shuffle)
    second.load_state(saved)
    assert second.state() == first.state()
    assert taken(second, 8, n) == taken(first, 8, n)
    assert second.epoch == first.epoch


def test_orders_depend_on_seed_and_epoch() -> None:
    many = [[[1] * 30]]
    made = stream(many, 30)
    one, two = taken(made, 1, 30), taken(made, 1, 30)
    other = taken(stream(many, 30, seed=1), 1, 30)
    assert len({tuple(found[0]) for found in (one, two, other)}) == 3


def test_files_that_lack_the_rows_of_a_checkpoint_are_refused() -> None:
    first = stream([[[1] * 9]], 4)
    first.take(2)
    with pytest.raises(DataError, match="have changed"):
        stream([[[1, 1]]], 4).load_state(first.state())


def test_a_stream_has_the_rows_that_preparing_makes(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(5), {"text": ""}, *texts(4, start=5))
    lines(tmp_path / "v.jsonl", *texts(2))
    keys: dict[str, Any] = {"on_bad_row": "skip", "validation": str(tmp_path / "v.jsonl")}
    whole, made = prepare(tmp_path, path, **keys), streamed(tmp_path, path, **keys)
    assert made.stream is not None
    found = [made.stream.take(4) for _ in range(3)]
    assert [len(rows) for rows in found] == [4, 4, 1]
    assert sorted(answer for rows in found for answer in answers(rows)) == sorted(answers(whole.train))
    assert sorted(answers(made.train)) == sorted(answers(whole.train))
    assert answers(made.validation) == answers(whole.validation)
    assert made.stream.counts == "10 rows read, 1 dropped: empty"
    assert [source.role for source in made.report.sources] == ["train", "validation"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [([{"text": ""}], "1 of 7 rows are invalid"), ([{"text": "x " * 200}], "are longer than 50 tokens")],
)
def test_a_row_that_cannot_be_used_is_refused_when_it_comes(
    tmp_path: Path, rows: list[dict[str, str]], says: str
) -> None:
    path = lines(tmp_path / "a.jsonl", *texts(6), *rows, *texts(9000))

    def seven() -> list[Any]:
        made = streamed(tmp_path, path, max_length=50, window=2)
        return [made.stream.take(1) for _ in range(7)]

    with pytest.raises(DataError, match=says):
        seven()


def streamed(tmp_path: Path, path: Path, **keys: Any) -> Any:
    return prepare(tmp_path, path, streaming=True, **keys)


def test_all_orders_come_where_the_window_holds_all_rows() -> None:
    assert len({tuple(*taken(stream([[[1] * 3]], 3, seed=seed), 1, 3)) for seed in range(100)}) == 6
