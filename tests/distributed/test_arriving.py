"""Gradients that an optimiser takes as they arrive: the same results, one gradient at a time, and what it rules out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
from runs import Place

from lrft.adapters.part import Run
from lrft.distributed import arriving
from lrft.errors import NonFinite, RecipeError

WHOLE = ("training.max_grad_norm=none", "training.micro_batch_size=4")
LAYERWISE = "adapter.method=[{galore: {layerwise: true, every: 2}}]"
PROJECTED = "adapter.method=[{flora: {accumulation: projected, every: 2}}]"
KEPT = ("checkpoint.every=1", "checkpoint.keep=9")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("arriving"))


def norms(run: Path) -> list[float]:
    return [record["grad_norm"] for record in runs.records(run)]


def test_layer_by_layer_galore_makes_the_steps_of_the_plain_mode(place: Place) -> None:
    plain = place.train("adapter.method=[{galore: {every: 2}}]", *WHOLE, *KEPT, out="plain")
    run = place.train(LAYERWISE, *WHOLE, *KEPT, out="layerwise")
    assert runs.differing(runs.tensors(plain), runs.tensors(run)) == []
    assert norms(run) == pytest.approx(norms(plain), rel=1e-5)
    one, other = ([record["gradient"]["D"] for record in runs.records(r)] for r in (plain, run))
    assert one == pytest.approx(other, rel=1e-5)
    part = runs.cut(run, 3, place.root / "layerwise-cut")
    place.train(LAYERWISE, *WHOLE, *KEPT, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(run)) == []
    again = place.train(LAYERWISE, *WHOLE, "training.gradient_checkpointing=full", out="layerwise-again")
    assert runs.distance(runs.tensors(again), runs.tensors(run), ".D") < 1e-5


def test_projected_sums_of_flora_are_those_of_the_passes_whatever_their_number(place: Place) -> None:
    each = [
        place.train(PROJECTED, "training.max_grad_norm=none", f"training.micro_batch_size={n}", *KEPT, out=f"sum-{n}")
        for n in (1, 4)
    ]
    assert runs.distance(*(runs.tensors(run) for run in each), ".D") < 1e-4
    assert norms(each[0]) == pytest.approx(norms(each[1]), rel=1e-4)
    whole = place.train("adapter.method=[{flora: {every: 2}}]", "training.max_grad_norm=none", out="whole")
    assert runs.distance(runs.tensors(whole), runs.tensors(each[0]), ".D") > 1e-3, "a sum that is projected is noisy"
    part = runs.cut(each[0], 2, place.root / "sum-cut")
    place.train(
        PROJECTED, "training.max_grad_norm=none", "training.micro_batch_size=1", *KEPT, out=part.name, resume="last"
    )
    assert runs.differing(runs.tensors(part), runs.tensors(each[0])) == []


@pytest.mark.parametrize("method", [LAYERWISE, PROJECTED, "adapter.method=galore"])
def test_one_gradient_at_a_time_is_alive(method: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    def watch(run: Run) -> None:
        trained = [p for group in run.optimizer.param_groups for p in group["params"]]
        for p in trained:
            p.register_post_accumulate_grad_hook(lambda _: alive.append(sum(q.grad is not None for q in trained)))

    runs.add_parts(monkeypatch, runs.At("before_step", 1, watch))
    place.train(method, *WHOLE, "training.max_steps=1", out=f"alive-{len(method)}")
    assert len(alive) > 2
    assert max(alive) == (len(alive) if method.endswith("galore") else 0), "taken before the next one is made"


def test_a_gradient_that_is_not_finite_ends_the_run_and_moves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(run: Run) -> None:
        p = next(iter(run.optimizer.param_groups[-1]["params"]))
        p.register_hook(lambda gradient: gradient * float("nan"))

    runs.add_parts(monkeypatch, runs.At("before_step", 2, spoil))
    for method, out in ((LAYERWISE, "nan"), (PROJECTED, "nan-sum")):
        with pytest.raises(NonFinite, match="the norm of the gradient became nan at step 2"):
            place.train(method, *WHOLE, *KEPT, out=out)
        assert all(t.isfinite().all() for t in runs.tensors(place.root / out).values() if t.is_floating_point())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ((LAYERWISE, WHOLE[1]), "max_grad_norm: galore with layerwise: true takes each gradient as it arrives, before "
         "the norm of all is known: expected none; got 1.0"),
        ((PROJECTED, "training.max_grad_norm=0.5"), "max_grad_norm: flora with accumulation: projected .* got 0.5"),
        ((LAYERWISE, WHOLE[0]), "micro_batch_size: .* makes its step in one backward pass: expected 4, the global batch"
         " size; got 2"),
        ((PROJECTED, WHOLE[0], "training.micro_batch_size=auto"), "micro_batch_size: .* expected a number; got auto"),
        ((LAYERWISE, *WHOLE, "training.precision=fp16"), "precision: .* expected bf16 or fp32; got fp16"),
    ],
)  # fmt: skip
def test_keys_that_need_all_gradients_at_once_are_refused(keys: Any, said: str, place: Place) -> None:
    with pytest.raises(RecipeError, match=said):
        place.recipe(*keys)


def test_the_plain_modes_are_not(place: Place) -> None:
    for method in ("galore", "flora", "[{galore: {layerwise: false}}]", "[{flora: {accumulation: whole}}]"):
        arriving.refuse(place.recipe(f"adapter.method={method}"), 2)


@pytest.mark.parametrize(
    ("method", "processes", "said"),
    [
        ("[{galore: {layerwise: true}}]", 2, "before 2 processes could exchange them: train in one process"),
        ("[{galore: {layerwise: true}}, sam]", 1, "adversarial-model-perturbation looks at all of a step"),
        ("[{flora: {accumulation: projected}}, gradient-regularization]", 1, "gradient-regularization looks at all"),
        ("[{galore: {layerwise: true}}, tempbalance, ba-lora]", 1, ""),
    ],
)
def test_parts_and_processes_that_need_them_are_refused(method: str, processes: int, said: str, place: Place) -> None:
    recipe = place.recipe(f"adapter.method={method}", *WHOLE)
    if not said:
        return arriving.refuse(recipe, processes)
    with pytest.raises(RecipeError, match=said):
        arriving.refuse(recipe, processes)
    return None


def test_a_term_of_the_loss_has_a_backward_pass_of_its_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.add_parts(monkeypatch, runs.Penalty(0.1))
    with pytest.raises(RecipeError, match="galore takes gradients as they arrive, and penalty looks at all of a step"):
        arriving.refuse(place.recipe(LAYERWISE, *WHOLE), 1)
    arriving.refuse(place.recipe(PROJECTED, *WHOLE), 1)


def test_a_run_refuses_before_it_loads_anything(place: Place) -> None:
    with pytest.raises(RecipeError, match="looks at all of a step"):
        place.train("adapter.method=[{galore: {layerwise: true}}, sam]", *WHOLE, "model=/nowhere", out="refused")


def test_what_another_optimiser_trains_beside_is_refused(place: Place) -> None:
    with pytest.raises(
        RecipeError, match=r"galore takes gradients .* lm_head.* is trained beside by another optimiser"
    ):
        place.train(LAYERWISE, *WHOLE, "adapter.modules_to_save=[lm_head]", out="beside")
