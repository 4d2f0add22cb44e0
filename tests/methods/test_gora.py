"""GoRA: ranks by the weight times its gradient, and a start that is the gradient on the rows of A."""

from __future__ import annotations

import math
from typing import Any

import pytest
import runs
import tiny
import torch
from gradient_init import NAMES, RANK, attach, batch, gradients, losses, near, place, resumed_without_a_look
from runs import Place
from two_processes import KEYS, launch

import lrft
from lrft.adapters.adapter import Site
from lrft.errors import RecipeError
from lrft.methods.gora import Gora

__all__ = ["place"]
SHAPES = {"a": (40, 20), "b": (30, 30), "c": (100, 50)}


def sites(rank: int = 8) -> list[Site]:
    return [Site(name, d, k, rank) for name, (d, k) in SHAPES.items()]


def test_ranks_are_shares_of_the_budget_within_bounds() -> None:
    """Worked by hand: 8 (60 + 60 + 150) = 2160 numbers; shares 0.2, 0.5 and 0.3 of them by 60, 60 and 150."""
    assert Gora().ranks(sites(), {"a": 2.0, "b": 5.0, "c": 3.0}) == {"a": 7, "b": 18, "c": 4}
    # 0.01, 0.98 and 0.01: below and above the bounds.
    assert Gora().ranks(sites(), {"a": 1.0, "b": 98.0, "c": 1.0}) == {"a": 4, "b": 30, "c": 4}
    assert Gora(least=0.01, most=2.0).ranks(sites(), {"a": 0.0, "b": 98.0, "c": 1.0}) == {"a": 1, "b": 16, "c": 1}


def test_equal_weight_gives_every_layer_the_recipes_rank() -> None:
    by_size = {name: 0.3 * (d + k) for name, (d, k) in SHAPES.items()}
    assert Gora().ranks(sites(), by_size) == dict.fromkeys(SHAPES, 8)
    assert Gora().ranks(sites(), dict.fromkeys(SHAPES, 0.0)) == dict.fromkeys(SHAPES, 8)


def test_ranks_follow_the_weight_times_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}
    ranks_of = Gora.ranks
    monkeypatch.setattr(Gora, "ranks", lambda self, sites, found: seen.update(found) or ranks_of(self, sites, found))
    attached, model = attach("gora", rows=2, rank=4), tiny.make("llama").double()
    sizes = {name: (model.get_submodule(name).weight * G).abs().mean().item() for name, G in gradients(2).items()}
    assert seen == pytest.approx(sizes, rel=1e-4)
    whole, shapes = sum(sizes.values()), {site.name: (site.d, site.k) for site in attached.sites}
    budget = sum(4 * (d + k) for d, k in shapes.values())
    ranks = {site.name: site.rank for site in attached.sites}
    for name, (d, k) in shapes.items():
        wanted = int(round(budget * sizes[name] / whole) / (d + k))
        assert ranks[name] == min(max(wanted, 2), 16, d, k), name
        assert attached.modules[name].A.shape == (ranks[name], k)
    assert len(set(ranks.values())) > 1


@pytest.mark.parametrize(("more", "at_rank_3"), [({}, 16 / math.sqrt(3)), ({"alpha": 8.0}, 8 / math.sqrt(3))])
def test_the_start_is_the_gradient_on_the_rows_of_A(more: dict[str, Any], at_rank_3: float) -> None:
    attached, lr = attach("gora", **more), 0.05
    for name, G in gradients(1).items():
        own, delta = attached.modules[name], attached.delta(name)
        A, s, r, k = own.A.detach(), own.site.scale, own.site.rank, own.site.k
        assert s == pytest.approx(at_rank_3 * math.sqrt(3 / r)), "alpha / sqrt(r) at the layer's own rank"
        assert A.abs().max() <= 1 / math.sqrt(k)
        assert A.var().item() == pytest.approx(1 / (3 * k), rel=0.4)
        rows = torch.linalg.svd(A, full_matrices=False).Vh
        assert near(delta, -lr * math.sqrt(k / r) * G @ rows.T @ rows), name
        assert (delta * G).sum() <= 0
        least_squares = torch.linalg.lstsq(A.T, G.T).solution.T
        assert near(own.B.detach(), -lr * math.sqrt(k / r) / s * least_squares), name
        assert 0.4 < delta.norm() / (lr * G.norm()) < 2.5, "about `step` times as long as the gradient"


def test_B_is_what_the_gradient_of_a_plain_loras_B_gives() -> None:
    """g_B = s G A' at B = 0: by autograd through lora's own adapters, with GoRA's A put into them."""
    started = attach({"gora": {"least": 1.0, "most": 1.0}}, scale=2.0)
    plain = attach("lora", scale=2.0)
    with torch.no_grad():
        for name in NAMES:
            plain.modules[name].A.copy_(started.modules[name].A)
    plain.model(**batch(1)).loss.backward()
    for name in NAMES:
        A, k = started.modules[name].A.detach(), started.modules[name].site.k
        product = plain.modules[name].B.grad / 2.0 @ torch.linalg.inv(A @ A.T)
        assert near(started.modules[name].B.detach(), -0.05 * math.sqrt(k / RANK) / 2.0 * product), name


def test_ranks_alone_and_start_alone() -> None:
    ranks_only = attach({"gora": {"step": 0.0}}, rank=4)
    assert len({site.rank for site in ranks_only.sites}) > 1
    assert not any(ranks_only.delta(name).any() for name in NAMES)
    start_only = attach({"gora": {"least": 1.0, "most": 1.0}}, rank=4)
    assert {site.rank for site in start_only.sites} == {4}
    assert all(start_only.delta(name).any() for name in NAMES)


def test_without_ranks_no_whole_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrft.adapters.calibration.CalibrationContext.gradients", lambda *_: pytest.fail("not needed"))
    attach({"gora": {"least": 1.0, "most": 1.0}})


def test_the_base_is_untouched() -> None:
    before = tiny.make("llama").double()
    attached = attach("gora")
    for name, layer in attached.layers().items():
        assert torch.equal(layer.base.weight, before.get_submodule(name).weight)


def test_refused_with_another_start_another_factor_and_other_ranks() -> None:
    for words, sentence in (
        ({"method": ["mora", "gora"]}, "gora requires a pair of factors A and B"),
        ({"method": ["gora", "pissa"]}, "gora and pissa both set the init of A and B"),
        ({"method": ["gora", "rslora"]}, "gora and rslora both set the scaling factor"),
        ({"method": ["gora", "prilora"]}, "gora and prilora both set the ranks"),
        (
            {"method": {"gora": {"least": 1.0, "most": 1.0}}, "rank": 25},
            "q_proj: rank 25 is larger than the layer's 24 inputs",
        ),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words, batches=[batch(1)])


def test_a_run_has_its_ranks_and_is_resumed_to_the_same_bits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resumed_without_a_look(place, monkeypatch, "gora", Gora)
    assert losses(whole)[-1] < losses(whole)[0]
    ranks = {len(tensor) for name, tensor in runs.tensors(whole).items() if "lora_A" in name}
    assert len(ranks) > 1


@pytest.mark.slow
def test_two_processes_have_the_ranks_of_one_and_train_as_one(place: Place) -> None:
    one = place.train(*KEYS, "adapter.method=gora", out="one-gora")
    two = launch(place, "two-gora", "adapter.method=gora")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-2
