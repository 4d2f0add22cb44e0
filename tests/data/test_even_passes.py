"""Passes of a step by tokens: every row once, none too large, even, and as many on each rank."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrft.data.collate import micro_batches
from lrft.data.passes import PassSize


def made(lengths: list[int], sequences: int = 1) -> Any:
    """What is asked of rows: `sequences` of one length each."""
    longest = np.array(lengths, dtype=np.int64)
    return SimpleNamespace(lengths=longest * sequences, longest=longest, counts=np.full(len(lengths), sequences))


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 150), st.integers(1, 4), st.booleans(), st.integers(1, 2))
def test_every_row_once_and_no_pass_too_large(
    lengths: list[int], tokens: int, world: int, padded: bool, sequences: int
) -> None:
    rows, size = made(lengths, sequences), PassSize(1, tokens, padded)
    ids = np.arange(len(lengths))
    ranks = [size.passes(rows, ids, rank=rank, world=world) for rank in range(world)]
    assert len({len(passes) for passes in ranks}) == 1, "ranks wait for each other"
    every = [some for passes in ranks for some in passes]
    assert sorted(row for some in every for row in some) == ids.tolist()
    assert all(len(some) <= 1 or size.tokens_of(rows, some) <= tokens for some in every)
    assert max(map(len, (*ranks, []))) <= max(1, math.ceil(len(lengths) / world))
    first = max((passes[0] for passes in ranks), key=lambda some: size.tokens_of(rows, some))
    assert all(size.tokens_of(rows, some) <= size.tokens_of(rows, first) for some in every), "memory runs out at once"


@given(st.lists(st.integers(1, 20), min_size=24, max_size=60), st.integers(1, 3))
def test_passes_are_even_and_few(lengths: list[int], world: int) -> None:
    """By so many rows a pass, the first is several times as large as the last."""
    rows, tokens, ids = made(lengths), 80, np.arange(len(lengths))
    every = [some for rank in range(world) for some in PassSize(1, tokens).passes(rows, ids, rank=rank, world=world)]
    sizes = [int(rows.lengths[some].sum()) for some in every]
    assert max(sizes) - min(sizes) <= max(lengths)
    needed = math.ceil(sum(lengths) / tokens / world)
    assert len(every) <= (needed + 1) * world


@pytest.mark.parametrize("world", [1, 3])
def test_so_many_rows_are_dealt_as_before(world: int) -> None:
    rows, ids = made([5, 9, 2, 7, 7, 1, 30]), np.array([6, 0, 2, 3, 5])
    for rank in range(world):
        found = PassSize(2).passes(rows, ids, rank=rank, world=world)
        assert found == micro_batches(ids, rows.lengths, micro=2, rank=rank, world=world)
