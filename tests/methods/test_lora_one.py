"""LoRA-One: the start is a step against the gradient's leading part, of a size of its own and evenly split."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import tiny
import torch
from gradient_init import (
    NAMES,
    RANK,
    attach,
    batch,
    gradients,
    losses,
    near,
    observed,
    place,
    resumed_without_a_look,
    truncated,
)
from runs import Place
from two_processes import KEYS, launch

import lrft
from lrft.adapters.adapter import Site
from lrft.adapters.compose import compose
from lrft.errors import RecipeError
from lrft.methods.lora_one import LoraOne

__all__ = ["place"]


@pytest.mark.parametrize(("gamma", "scale"), [(128.0, 2.0), (4.0, 0.5)])
def test_the_start_is_a_step_against_the_best_part_of_the_gradient(gamma: float, scale: float) -> None:
    attached = attach({"lora-one": {"gamma": gamma}}, scale=scale)
    for name, G in gradients(1).items():
        delta, pair = attached.delta(name), attached.modules[name]
        largest = torch.linalg.svdvals(G)[0]
        assert near(delta, -scale / (gamma * largest) * truncated(G, RANK)), name
        assert torch.linalg.matrix_norm(delta, 2).item() == pytest.approx(scale / gamma, rel=1e-6)
        assert near(pair.B.T @ pair.B, pair.A @ pair.A.T, 1e-8)
        assert (delta * G).sum() < 0, "down"


def test_the_base_is_untouched_and_the_model_is_not_it() -> None:
    before = tiny.make("llama").double()
    attached = attach("lora-one")
    for name, layer in attached.layers().items():
        assert torch.equal(layer.base.weight, before.get_submodule(name).weight)
    loss = before(**batch(1)).loss
    assert attached.model(**batch(1)).loss < loss
    with attached.disabled():
        assert attached.model(**batch(1)).loss == loss


def test_the_size_of_the_loss_does_not_matter() -> None:
    one, thousand = observed("lora-one", 1.0), observed("lora-one", 1000.0)
    adapter: Any
    for name in NAMES:
        starts = []
        for seen in (one[name], thousand[name]):
            adapter = compose([("lora", {})]).method.build(Site(name, len(seen["U"]), len(seen["V"]), RANK))
            with torch.no_grad():
                LoraOne().initialize_from(adapter, torch.empty(adapter.site.d, adapter.site.k), seen)
            starts.append(adapter.delta_weight())
        assert near(starts[1], starts[0]), name


@pytest.mark.parametrize("rank_of_gradient", [0, 2])
def test_directions_that_the_gradient_lacks_start_as_lora_does_and_can_move(rank_of_gradient: int) -> None:
    S = torch.tensor([3.0, 1.0, 0.0, 0.0]) if rank_of_gradient else torch.zeros(4)
    basis = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(1))).Q
    adapter: Any = compose([("lora", {})]).method.build(Site("x", 9, 9, 4))
    with torch.no_grad():
        LoraOne(gamma=4.0).initialize_from(adapter, torch.zeros(9, 9), {"U": basis, "S": S, "V": basis})
    A, B = adapter.A.detach(), adapter.B.detach()
    assert torch.allclose(A[rank_of_gradient:].norm(dim=1), torch.full((4 - rank_of_gradient,), 0.5))
    assert not B[:, rank_of_gradient:].any()
    expected = -(basis * S) @ basis.T / (4.0 * 3.0)
    assert torch.allclose(B @ A, expected, atol=1e-6)


def test_refused_with_another_start_without_a_pair_and_beyond_the_layer() -> None:
    for words, sentence in (
        ({"method": ["lora-xs", "lora-one"]}, "lora-one requires a pair of factors A and B"),
        ({"method": ["lora-one", "lora-ga"]}, "lora-one and lora-ga both set the init of A and B"),
        ({"method": "lora-one", "rank": 13}, "k_proj: rank 13 is larger than the layer's smaller side, 12"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words, batches=[batch(1)])


def test_a_run_starts_below_the_base_and_is_resumed_to_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = place.train("training.max_steps=1", out="plain-one")
    whole = resumed_without_a_look(place, monkeypatch, "[lora-one, rslora, preconditioned]", LoraOne)
    assert losses(whole)[0] < losses(plain)[0]
    assert losses(whole)[-1] < losses(whole)[0]


@pytest.mark.slow
def test_two_processes_start_and_train_as_one(place: Place) -> None:
    one = place.train(*KEYS, "adapter.method=lora-one", out="one-one")
    two = launch(place, "two-one", "adapter.method=lora-one")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-2
