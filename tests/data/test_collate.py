"""Order, micro-batches, tensors: every row once, nothing trained across a border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrft.data import BatchSchedule, Row, Rows, epoch_order
from lrft.data.collate import collate, micro_batches


def rows_of(*lengths: int) -> Rows:
    """Rows 0, 1, ... of the given lengths; row i holds the tokens 100 i, 100 i + 1, ...; all trained."""
    return Rows.of(
        [
            Row(np.arange(100 * i, 100 * i + n), np.ones(n, dtype=bool), 1, f"answer {i}", "f.jsonl:", i + 1)
            for i, n in enumerate(lengths)
        ]
    )


# --- order ---


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.booleans(), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_each_row_comes_once_per_epoch(n: int, batch: int, epochs: int, shuffle: bool, seed: int) -> None:
    schedule = BatchSchedule(n, batch, epochs, None, seed, shuffle)
    steps = [schedule.rows(s) for s in range(schedule.total_steps)]
    assert schedule.total_steps == epochs * schedule.steps_per_epoch
    for epoch in range(epochs):
        ids = np.concatenate([r for s, r in enumerate(steps) if schedule.epoch(s) == epoch])
        assert sorted(ids.tolist()) == list(range(n))
    assert all(1 <= len(r) <= batch for r in steps)


def test_a_step_needs_no_history() -> None:
    """Trust 37."""
    whole = BatchSchedule(17, 4, 3, None, 7, True)
    rows = [whole.rows(s).tolist() for s in range(whole.total_steps)]
    for step in (14, 3, 9, 0):
        assert BatchSchedule(17, 4, 3, None, 7, True).rows(step).tolist() == rows[step]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = epoch_order(50, 1, 0, True).tolist()
    assert first == epoch_order(50, 1, 0, True).tolist()
    assert first != epoch_order(50, 1, 1, True).tolist()
    assert first != epoch_order(50, 2, 0, True).tolist()
    assert epoch_order(5, 1, 3, False).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [
        (3, None, 90),
        (0.1, None, 3),
        (1.5, None, 45),
        (0.001, None, 1),
        (3, 10, 10),
        (None, 99, 99),
        (1, 99, 30),
    ],
)
def test_total_steps(epochs: float | None, max_steps: int | None, expected: int) -> None:
    assert BatchSchedule(30, 1, epochs, max_steps, 0, True).total_steps == expected


def test_a_fraction_of_epochs_is_not_rounded_up_by_the_computer() -> None:
    assert BatchSchedule(50, 1, 1.1, None, 0, True).total_steps == 55


def test_steps_outside_the_run_are_refused() -> None:
    schedule = BatchSchedule(4, 2, 1, None, 0, True)
    with pytest.raises(IndexError):
        schedule.rows(2)
    with pytest.raises(ValueError):
        BatchSchedule(0, 2, 1, None, 0, True)


# --- micro-batches ---


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_ranks_share_the_rows_in_equally_many_passes(lengths: list[int], micro: int, world: int) -> None:
    """Trust 46."""
    ids = list(range(len(lengths)))[::-1]
    shares = [micro_batches(ids, np.array(lengths), micro=micro, rank=r, world=world) for r in range(world)]
    assert sorted(i for share in shares for part in share for i in part) == sorted(ids)
    assert len({len(share) for share in shares}) == 1
    assert all(len(part) <= micro for share in shares for part in share)
    assert any(share[-1] for share in shares), "a pass that is empty on every rank"
    for share in shares:
        dealt = [lengths[i] for part in share for i in part]
        assert dealt == sorted(dealt, reverse=True)


def test_a_rank_without_rows_gets_an_empty_list() -> None:
    assert micro_batches([0], np.array([5]), micro=2, rank=1, world=2) == [[]]


# --- tensors ---


def test_padded_tensors_are_masked_by_place_not_by_token() -> None:
    """Trust 7."""
    rows = rows_of(2, 4)
    batch = collate(rows, [0, 1], pad_id=1, form="padded")  # 1 is also a trained token of row 0
    assert batch["input_ids"].tolist() == [[0, 1, 1, 1], [100, 101, 102, 103]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 1, -100, -100], [-100, 101, 102, 103]]
    assert all(t.dtype == torch.int64 for t in batch.values())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_packed_rows_do_not_predict_their_neighbours(lengths: list[int]) -> None:
    """Trust 13."""
    rows = rows_of(*lengths)
    batch = collate(rows, range(len(lengths)), pad_id=0, form="packed")
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    labels, positions = batch["labels"][0], batch["position_ids"][0]
    assert batch["input_ids"].shape == (1, sum(lengths))
    assert int((labels != -100).sum()) == sum(n - 1 for n in lengths)
    assert (labels[positions == 0] == -100).all()
    assert positions.tolist() == [j for n in lengths for j in range(n)]


def test_no_rows_no_tensors() -> None:
    with pytest.raises(ValueError):
        collate(rows_of(2), [], pad_id=0, form="packed")


# --- rows ---


def test_rows_come_back_from_the_file(tmp_path) -> None:
    rows = rows_of(3, 1, 5)
    rows.save(tmp_path / "rows.safetensors")
    for again in (Rows.load(tmp_path / "rows.safetensors"), rows.slice([0, 1, 2])):
        assert again.lengths.tolist() == [3, 1, 5]
        for i in range(3):
            assert again.tokens(i).tolist() == rows.tokens(i).tolist()
            assert again.trained(i).tolist() == rows.trained(i).tolist()
            assert again.source(i) == f"f.jsonl:{i + 1}"
            assert again.answer(i) == f"answer {i}"
            assert again.prompt(i).tolist() == rows.prompt(i).tolist()
    assert [rows.slice([2, 0]).source(i) for i in range(2)] == ["f.jsonl:3", "f.jsonl:1"]
    assert isinstance(Rows.load(tmp_path / "rows.safetensors")._arrays["tokens"].base, np.memmap)


def test_the_first_token_of_a_row_is_never_trained() -> None:
    rows = rows_of(3, 1, 2)
    assert [rows.trained(i)[0] for i in range(3)] == [False] * 3
    assert rows.trained_tokens() == 3


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path, keep: float) -> None:
    path = tmp_path / "rows.safetensors"
    rows_of(*[50] * 20).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if keep > 1 or keep == 0 else int(keep * len(raw))])
    with pytest.raises(ValueError):
        Rows.load(path)
