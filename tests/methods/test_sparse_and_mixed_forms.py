"""road, shira, supertuning, vblora, waveft, deft, glora and peanut: what their formulas keep, and what they refuse.

That layers, gradients and files are PEFT's is in tests/adapters/test_peft_types.py."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lrft.errors import RecipeError


def test_a_turn_of_pairs_keeps_their_lengths() -> None:
    model, attached = tiny.layer({"road": {"group_size": 4}}, 12, 7)
    adapter, W = attached.modules["0"], model[0].base.weight.detach()
    torch.nn.init.normal_(adapter.theta)
    turned = adapter.weight(W).detach()
    lengths = [weight.unflatten(0, (-1, 2, 2)).norm(dim=1) for weight in (turned, W)]
    torch.testing.assert_close(*lengths)
    assert (turned - W).abs().max() > 0.1


def test_entries_are_where_the_seed_says_and_as_many_as_a_lora_has() -> None:
    found = []
    for seed in (3, 3, 4):
        _, attached = tiny.layer({"shira": {"random_seed": seed}}, 9, 8, rank=2)
        tiny.disturb(list(attached.trained().values()))
        found.append(attached.modules["0"].delta_weight().detach() != 0)
    assert found[0].sum() == 2 * (9 + 8)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_largest_entries_are_trained_and_their_places_saved() -> None:
    for top in (True, False):
        model, attached = tiny.layer({"supertuning": {"sparsity": 0.9, "select_top": top}}, 9, 8)
        tiny.disturb(list(attached.trained().values()))
        adapter, size = attached.modules["0"], model[0].base.weight.detach().abs()
        chosen = adapter.delta_weight().detach() != 0
        assert chosen.sum() == int(72 * 0.1)
        assert top == bool(size[chosen].min() > size[~chosen].max())
        assert top != bool(size[chosen].max() < size[~chosen].min())
        assert adapter.tensors()["places"].dtype == torch.int32


def test_a_small_network_makes_the_update_of_the_weight() -> None:
    words = {"peanut": {"depth": 1, "act_fn": "tanh", "scaling": 0.7}}
    model, attached = tiny.layer(words, 5, 8, rank=3)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    own, W = attached.modules["0"].tensors(), model[0].base.weight
    first = torch.tanh(own["A"] @ W)
    last = torch.tanh(own["decoder_0"] @ torch.tanh(own["encoder_0"] @ first)) + first
    assert tiny.same_function(model, attached, 0.7 * own["B"] @ last)


def test_codes_are_drawn_around_their_mean_in_training_alone() -> None:
    model, attached = tiny.layer("pvera", 5, 8, rank=3)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    adapter, x = attached.modules["0"], torch.randn(1, 8, dtype=torch.float64).expand(20000, 8)
    with torch.no_grad():
        mean = model.eval()(x[:1]) - model[0].base(x[:1])
        torch.manual_seed(1)
        drawn = model.train()(x) - model[0].base(x)
    B, _, A_spread = adapter.projections()
    spread = (adapter.d[3:] * (A_spread @ x[0])).exp()  # the variance
    variance = (adapter.b[:, None] * B).square() @ spread
    torch.testing.assert_close(drawn.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.var(0), variance.detach(), rtol=0.05, atol=0)


def test_a_factor_and_a_number_for_each_weight() -> None:
    model, attached = tiny.layer("glora", 5, 8, rank=2)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    own, W = attached.modules["0"].tensors(), model[0].base.weight
    update = torch.einsum("dk,dr,rk->dk", W, own["factor_out"], own["factor_in"])
    assert tiny.same_function(model, attached, update + own["added_out"] @ own["added_in"])


def test_two_layers_mix_one_bank() -> None:
    words = {"vblora": {"num_vectors": 5, "vector_length": 3, "topk": 1}}
    _, attached = tiny.layer(words, 6, 9, rank=2)
    B, A, _ = attached.modules["0"].factors()
    bank = attached.shared.bank
    vectors = torch.cat([A.unflatten(1, (-1, 3)).flatten(0, 1), B.T.unflatten(1, (-1, 3)).flatten(0, 1)])
    assert all((vector == bank).all(dim=1).any() for vector in vectors)  # of one vector the mixture is itself


def test_a_transform_keeps_lengths_and_one_coefficient_of_the_mean_is_a_block() -> None:
    _, attached = tiny.layer({"waveft": {"n_frequency": 48, "scaling": 2.0}}, 6, 8)
    adapter = attached.modules["0"]
    tiny.disturb(list(attached.trained().values()), size=1.0)
    torch.testing.assert_close(adapter.delta_weight().norm(), 2.0 * adapter.c.norm())
    with torch.no_grad():
        adapter.c.zero_()[adapter.entries == 0] = 1.0  # the first entry of the quarter of means
    expected = torch.zeros(6, 8, dtype=torch.float64)
    expected[:2, :2] = 2.0 / 2
    torch.testing.assert_close(adapter.delta_weight(), expected)


def test_an_orthonormal_basis_takes_its_whole_subspace_away() -> None:
    model, attached = tiny.layer({"deft": {"decomposition_method": "qr"}}, 9, 8, rank=3)
    adapter, W = attached.modules["0"], model[0].base.weight.detach()
    torch.testing.assert_close(adapter.weight(W), W)
    with torch.no_grad():
        adapter.R.zero_()
    assert (adapter.P.T @ adapter.weight(W)).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"road": {"group_size": 8}}, "do not divide 12 outputs: set group_size to 6"),
        ("shira", "more than the 12 x 10 layer has"),
        ({"supertuning": {"sparsity": 0.999}}, "leaves no entry of a 12 x 10 layer"),
        ({"vblora": {"vector_length": 4}}, "do not divide 12 outputs and 10 inputs"),
        ({"vblora": {"vector_length": 2, "num_vectors": 1}}, "mixes 2 of 1 vectors"),
        ({"waveft": {"n_frequency": 121}}, "more than the 12 x 10 = 120"),
    ],
)
def test_what_does_not_fit_a_layer_is_refused(words: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny.layer(words, 12, 10, rank=9)
    with pytest.raises(RecipeError, match="at most as many directions"):
        tiny.layer("deft", 4, 10, rank=9)
