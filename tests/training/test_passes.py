"""Gradients that a part composes from several passes: exact over micro-batches, at displaced tensors, of other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from passes import Composing
from runs import Place
from torch import Tensor

from lrft.adapters.gradients import Gradients, combined, displaced, norm
from lrft.adapters.part import Part, Run
from lrft.errors import DataError, RecipeError
from lrft.training.setup import set_up
from lrft.training.state import Options

ONE = ("training.max_steps=1", "training.max_grad_norm=none")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


def bits(run: Run) -> list[Tensor]:
    """Every trained tensor and every tensor of the optimiser's state."""
    tensors = [p for group in run.optimizer.param_groups for p in group["params"]]
    states = [value for p in tensors for value in run.optimizer.state.get(p, {}).values()]
    return [tensor.detach().clone() for tensor in (*tensors, *states)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one: Gradients, other: Gradients, rtol: float = 1e-4) -> bool:
    size = max(g.abs().max().item() for g in one.values())
    assert size > 0
    return one.keys() == other.keys() and all(torch.allclose(one[p], other[p], rtol, 1e-6 * size) for p in one)


def test_asked_again_the_own_gradient_has_the_same_bits_with_dropout_and_penalties(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    class Penalty(Part):
        name = "penalty"

        def loss(self, run: Run) -> Tensor:
            return sum((adapter.A**2).sum() for adapter in run.adapters.values())

    def act(run: Run, gradient: Gradients, passes: Any) -> None:
        again = passes.own()
        seen.append(all(torch.equal(gradient[p], again[p]) for p in gradient) and gradient.keys() == again.keys())

    runs.add_parts(monkeypatch, Composing(act), Penalty())
    place.train("training.max_steps=2", "adapter.dropout=0.3")
    assert seen == [True, True]


def test_a_part_that_asks_and_changes_nothing_leaves_the_run_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("training.max_steps=3", "adapter.dropout=0.3")
    with monkeypatch.context() as patch:
        runs.add_parts(patch, Composing(lambda *_: None))
        plain = runs.tensors(place.train(*keys, out="plain"))
    alone = runs.tensors(place.train(*keys, out="alone"))

    def act(run: Run, gradient: Gradients, passes: Any) -> None:
        before = bits(run)
        with displaced(combined((0.1, gradient))):
            assert not same(bits(run), before)
            passes.own()
        assert same(bits(run), before)
        with passes.stepped(gradient):
            assert not same(bits(run), before)
            passes.own()
        assert same(bits(run), before)

    runs.add_parts(monkeypatch, Composing(act))
    asked = runs.tensors(place.train(*keys, out="asked"))
    assert runs.differing(alone, plain) == []
    assert runs.differing(alone, asked) == []


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_gradients_do_not_depend_on_the_micro_batches(
    micro: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own and auxiliary, as those of the whole batch at once."""
    found: dict[int, list[Gradients]] = {}

    def act(run: Run, gradient: Gradients, passes: Any) -> None:
        places = {p: place for place, p in enumerate(gradient)}
        found[len(found)] = [{places[p]: g for p, g in each.items()} for each in (gradient, passes.auxiliary())]

    runs.add_parts(monkeypatch, Composing(act, runs.other_rows()))
    for rows in (4, micro):
        place.train(*ONE, f"training.micro_batch_size={rows}", out=f"run{rows}", fresh=True)
    for whole, cut in zip(*found.values(), strict=True):
        assert close(whole, cut)


def test_the_auxiliary_gradient_is_that_of_the_mean_loss_of_its_rows(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd over all rows of the file at once; nothing that parts add to the loss counts."""
    runs.add_parts(monkeypatch, Composing(lambda *_: None, runs.other_rows()))
    session = set_up(place.recipe("training.global_batch_size=8"), Options())
    rows_of_the_file = session.inputs.auxiliary
    assert rows_of_the_file is not None
    assert len(rows_of_the_file) == 5
    trained = list(session.adapted.attached.trained().values())
    found: list[Gradients] = []

    def act(run: Run, gradient: Gradients, passes: Any) -> None:
        found.append(passes.auxiliary())

    monkeypatch.undo()
    runs.add_parts(monkeypatch, Composing(act, runs.other_rows()), Added())
    place.train(*ONE, "training.global_batch_size=8", out="run")
    session.engine.model.train()
    batch = session.engine.batch(rows_of_the_file, range(5))
    expected = torch.autograd.grad(session.engine.answer(batch) / session.engine.objective.batch_weight(batch), trained)
    (got,) = found
    size = max(g.abs().max().item() for g in expected)
    for mine, theirs in zip(expected, got.values(), strict=True):
        assert torch.allclose(mine, theirs, 1e-4, 1e-6 * size)


class Added(Part):
    name = "added"

    def output_loss(self, run: Run, outputs: Any) -> Tensor:
        return outputs.logits.square().mean()


def test_a_trial_step_is_the_optimisers_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step, and later, when it has running means."""
    trials: dict[int, list[Tensor]] = {}

    def act(run: Run, gradient: Gradients, passes: Any) -> None:
        with passes.stepped(gradient):
            trials[run.step] = bits(run)

    seen: list[bool] = []
    after = runs.At("after_step", 0, lambda run: seen.append(same(trials[run.step], bits(run))))
    runs.add_parts(monkeypatch, Composing(act), after)
    place.train("training.max_steps=3", "training.max_grad_norm=none")
    assert seen == [True, True, True]


def test_a_share_of_the_training_rows_is_set_apart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.add_parts(monkeypatch, Composing(lambda *_: None, 0.3))
    session = set_up(place.recipe(), Options())
    train, apart = session.inputs.train, session.inputs.auxiliary
    assert apart is not None
    assert (len(train), len(apart)) == (7, 3)
    places = {rows.source(i) for rows in (train, apart) for i in range(len(rows))}
    assert len(places) == 10
    assert session.notes.checks["auxiliary rows"] == "3 beside the 7 to train on"
    schedule = session.inputs.auxiliary_batches
    assert schedule is not None
    assert schedule.total_steps == session.inputs.batches.total_steps
    assert sorted(np.concatenate([schedule.rows(0)]).tolist()) == [0, 1, 2]
    other = set_up(place.recipe("training.seed=5"), Options()).inputs.auxiliary
    assert other is not None
    assert [other.source(i) for i in range(3)] != [apart.source(i) for i in range(3)]


def test_equal_rows_stay_on_one_side_and_some_are_left_to_train_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.add_parts(monkeypatch, Composing(lambda *_: None, 0.3))
    runs.write_rows(place.root / "train.jsonl", runs.rows(5) * 3)
    inputs = set_up(place.recipe(), Options()).inputs
    assert inputs.auxiliary is not None
    sides = [{rows.tokens(i).tobytes() for i in range(len(rows))} for rows in (inputs.train, inputs.auxiliary)]
    assert not sides[0] & sides[1]
    runs.write_rows(place.root / "train.jsonl", runs.rows(1) * 4)
    with pytest.raises(DataError, match="4 training rows: 1 of them set apart, with those equal to them, leave none"):
        set_up(place.recipe(), Options())


def test_another_file_of_auxiliary_rows_is_another_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        runs.add_parts(patch, Composing(lambda *_: None, runs.other_rows()))
        one = set_up(place.recipe(), Options()).inputs.prepared.key
        again = set_up(place.recipe(), Options()).inputs.prepared.key
    runs.add_parts(monkeypatch, Composing(lambda *_: None, str(place.root / "validation.jsonl")))
    assert one == again != set_up(place.recipe(), Options()).inputs.prepared.key


def test_zero2_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrft.distributed import zero2

    monkeypatch.setattr(zero2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="adversarial-model-perturbation acts on gradients"):
        zero2.refuse(place.recipe("adapter.method=sam", "distributed.strategy=zero2"), 2)


def test_sums_and_lengths() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    one, other = {a: torch.tensor([3.0, 0.0])}, {a: torch.tensor([0.0, 2.0]), b: torch.tensor([0.0, 4.0])}
    total = combined((1.0, one), (2.0, other))
    assert total[a].tolist() == [3.0, 4.0]
    assert total[b].tolist() == [0.0, 8.0]
    assert norm({a: one[a], b: other[b]}) == 5.0
