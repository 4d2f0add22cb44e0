"""Restarts: the sum is unchanged by one, training begins anew after it, and the base is never written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place

import lrft
from lrft.adapters import compose
from lrft.adapters.attach import rebuild_site
from lrft.adapters.part import Run
from lrft.adapters.restarts import Folded
from lrft.adapters.storage import read_adapter, save_adapter
from lrft.errors import RecipeError
from lrft.methods.relora import Relora

REMORA = [{"mora": {"type": 1, "switch": 4}}, {"relora": {"restarts": 3}}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("relora"))


def folded(attached: Any) -> list[Folded]:
    return [module for module in attached.model.modules() if isinstance(module, Folded)]


def fold_all(attached: Any, number: int) -> None:
    composition = compose.compose((e["name"], e["options"]) for e in attached.methods)
    for module in folded(attached):
        fresh = rebuild_site(module.site, number, composition=composition, seed=7)
        module.fold(fresh)


@pytest.mark.parametrize("method", [["lora", "relora"], REMORA, ["gralora", "relora"]], ids=str)
def test_a_restart_changes_no_output_and_leaves_a_fresh_update(method: Any) -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": method, "rank": 4})
    for number in (1, 2, 3):
        tiny.disturb(list(attached.trained().values()), seed=number, size=0.05)
        before = tiny.logits(model, ids)
        fold_all(attached, number)
        assert (tiny.logits(model, ids) - before).abs().max() <= 1e-5 * before.abs().max()
        assert all(not module.inner.delta_weight().any() for module in folded(attached))


def test_each_restart_adds_its_rank_and_the_export_is_one_lora() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": ["lora", {"relora": {"restarts": 3}}], "rank": 2})
    name = next(iter(attached.modules))
    for number in (1, 2, 3):
        tiny.disturb(list(attached.trained().values()), seed=number)
        assert torch.linalg.matrix_rank(attached.delta(name)) == 2 * number
        fold_all(attached, number)
    form = attached.modules[name].peft()
    assert form is not None
    assert form.A.shape[0] == 8
    assert torch.allclose(form.scale * form.B @ form.A, attached.delta(name), atol=1e-5)


def test_new_random_values_differ_from_the_first_and_depend_on_the_seed_alone() -> None:
    one, two = (lrft.attach(tiny.make("llama"), {"method": ["lora", "relora"], "rank": 2}) for _ in range(2))
    first = folded(one)[0].inner.A.detach().clone()
    for attached in (one, two):
        fold_all(attached, 1)
    assert not torch.equal(folded(one)[0].inner.A, first)
    assert all(torch.equal(a.inner.A, b.inner.A) for a, b in zip(folded(one), folded(two), strict=True))


def test_mora_switches_its_operator_at_each_restart_and_saves_it(tmp_path: Path) -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": REMORA, "rank": 4})
    for number in (1, 2, 3):
        tiny.disturb(list(attached.trained().values()), seed=number, size=0.05)
        fold_all(attached, number)
    module = folded(attached)[0]
    assert [int(link.operator) for link in module.links] == [1, 2, 3]
    assert int(module.inner.operator) == 4
    plain = {operator: compose.compose([("mora", {"type": operator})]) for operator in (1, 2, 3)}
    for link, (_operator, composition) in zip(module.links, plain.items(), strict=True):
        alone = composition.method.build(module.site)
        alone.load({"M": link.M})
        assert torch.allclose(alone.delta_weight(), link.delta_weight(), atol=1e-6)
    save_adapter(attached, tmp_path, base={"name": "x"})
    again = tiny.make("llama")
    lrft.load_adapter(again, tmp_path)
    assert torch.equal(tiny.logits(again, tiny.tokens()), tiny.logits(attached.model, tiny.tokens()))


def run_at(step: int, total: int) -> Run:
    return Run(step, total, torch.nn.Identity(), {}, None, 0, lambda t: t)  # type: ignore[arg-type]


def test_the_rate_rises_again_from_zero_after_each_restart() -> None:
    part = Relora(restarts=3, warmup=0.2)
    rates = [part.rate(run_at(step, 42), "") for step in range(42)]
    assert rates[:10] == [1.0] * 10
    for start in (10, 20, 30):
        assert rates[start : start + 3] == [0.0, 0.5, 1.0]
    assert rates[33:] == [1.0] * 9, "what is left over after the last part is no restart"
    assert [step for step in range(42) if part.since(run_at(step, 42)) == 0] == [10, 20, 30]


@pytest.mark.parametrize(("moments", "kept"), [("zero", (0, 5.0)), ("forget", (0, 0.0)), ("prune", (1, 5.0))], ids=str)
def test_what_becomes_of_adams_state(moments: Any, kept: tuple[int, float]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(10))
    run, optimizer = run_at(0, 42), torch.optim.AdamW([parameter])
    run.optimizer = optimizer
    state = {"step": torch.tensor(5.0), "exp_avg": torch.arange(1.0, 11.0), "exp_avg_sq": torch.arange(1.0, 11.0)}
    optimizer.state[parameter] = state
    Relora(moments=moments).forget(run, parameter)
    assert (int((state["exp_avg"] > 0).sum()), state["step"].item()) == kept


def test_a_run_restarts_where_it_should_and_never_writes_to_the_base(place: Place) -> None:
    run = place.train("adapter.method=[lora, {relora: {restarts: 2, warmup: 0}}]", out="whole")
    adapter = read_adapter(run / "last")
    for named in adapter.tensors.values():
        assert named["folds"] == 2
        assert named["links.0.B"].any()
        assert named["links.1.B"].any()
        assert named["B"].any()


def test_resumed_at_and_between_restarts_it_ends_in_the_same_bits(place: Place) -> None:
    method = "adapter.method=[lora, {relora: {restarts: 2, warmup: 0.5}}]"
    straight = place.train(method, "checkpoint.every=1", "checkpoint.keep=9", out="straight")
    for step in (1, 2, 3, 4):
        cut = runs.cut(straight, step, place.root / f"cut{step}")
        resumed = place.train(method, "checkpoint.every=1", "checkpoint.keep=9", out=cut.name, resume="last")
        assert runs.differing(runs.tensors(straight), runs.tensors(resumed)) == []


def test_no_restart_at_all_is_the_method_alone(place: Place) -> None:
    plain = runs.records(place.train(out="plain"))
    none = runs.records(place.train("adapter.method=[lora, {relora: {restarts: 0}}]", out="none"))
    assert [r["loss"] for r in plain] == [r["loss"] for r in none]


@pytest.mark.parametrize("method", [["pissa", "relora"], ["hra", "relora"]], ids=str)
def test_what_it_cannot_restart_is_refused(method: Any) -> None:
    with pytest.raises(RecipeError, match="relora"):
        lrft.attach(tiny.make("llama"), {"method": method, "rank": 4})
