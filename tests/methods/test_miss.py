"""MiSS against its formula entry by entry, and against PEFT's layer."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_site
from lrft.errors import RecipeError

# (d, k, r, mini): r divides k and does not; all columns of D and some
SHAPES = pytest.mark.parametrize(
    ("d", "k", "r", "mini"),
    [(12, 24, 4, 0), (12, 26, 4, 0), (12, 26, 4, 3), (12, 24, 6, 1), (7, 5, 5, 0), (8, 11, 7, 4)]
)  # fmt: skip


def adapter_of(d: int, k: int, r: int, mini: int = 0) -> Any:
    site = Site("layer", d, k, r, dtype=torch.float64)
    adapter = build_site(site, compose.compose([("miss", {"mini": mini})]), None, fresh=True)
    tiny.disturb(list(adapter.parameters()), size=1.0)
    return adapter


def dense(D: Tensor, d: int, k: int) -> Tensor:
    r, m = D.shape
    return torch.stack([torch.stack([D[i % r, o % m] for i in range(k)]) for o in range(d)])


@SHAPES
def test_the_definition_the_fast_path_and_the_export_are_the_formula(d: int, k: int, r: int, mini: int) -> None:
    adapter = adapter_of(d, k, r, mini)
    expected = dense(adapter.D.detach(), d, k)
    form = adapter.peft()
    assert form.A.shape[0] == r
    assert (adapter.delta_weight() - expected).abs().max() <= 1e-14
    assert (form.scale * form.B @ form.A - expected).abs().max() <= 1e-14
    for shape in ((5, k), (2, 3, k), (2, 1, 3, k)):
        x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        assert (adapter.delta(x) - x @ expected.T).abs().max() <= 1e-12


@SHAPES
def test_layer_and_merged_weight_are_those_of_peft(d: int, k: int, r: int, mini: int) -> None:
    from peft import MissConfig, get_peft_model

    model = nn.Sequential(nn.Linear(k, d))
    base = nn.Linear(k, d)
    base.load_state_dict(model[0].state_dict())
    attached = lrft.attach(model, {"method": {"miss": {"mini": mini}}, "rank": r})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    adapter: Any = attached.modules["0"]
    config = MissConfig(r=r, mini_r=mini or 1, init_weights="mini" if mini else True, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(base), config)
    with torch.no_grad():
        theirs.base_model.model.get_submodule("0").miss_block["default"].copy_(adapter.D)
    x = torch.randn(2, 3, k, generator=torch.Generator().manual_seed(4))
    assert (model(x) - theirs(x)).abs().max() <= 1e-5
    merged = theirs.merge_and_unload()[0].weight
    assert (adapter.weight(attached.layers()["0"].base.weight) - merged).abs().max() <= 1e-6


def test_columns_repeat_with_period_r_and_the_rank_is_r() -> None:
    dW = adapter_of(12, 26, 4).delta_weight().detach()
    assert torch.equal(dW[:, 4:], dW[:, :-4])
    assert not torch.equal(dW[:, 3:], dW[:, :-3])
    assert torch.linalg.matrix_rank(dW) == 4


def test_all_columns_kept_is_the_plain_form() -> None:
    mini, plain = adapter_of(12, 26, 4, 12), adapter_of(12, 26, 4)
    plain.load({"D": mini.D})
    assert torch.equal(mini.delta_weight(), plain.delta_weight())


def test_two_updates_add() -> None:
    """The update is linear in D."""
    one, two, both = (adapter_of(12, 26, 4) for _ in range(3))
    tiny.disturb([two.D], seed=7)
    both.load({"D": one.D + two.D})
    assert torch.allclose(both.delta_weight(), one.delta_weight() + two.delta_weight(), rtol=1e-13)


def test_dropout_comes_before_the_sum() -> None:
    model = nn.Sequential(nn.Linear(26, 12, bias=False)).double()
    attached = lrft.attach(model, {"method": "miss", "rank": 4, "dropout": 0.5})
    tiny.disturb(list(attached.trained().values()))
    x = torch.ones(7, 26, dtype=torch.float64)
    torch.manual_seed(5)
    y = model.train()(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    expected = x @ attached.layers()["0"].base.weight.T + dropped @ attached.delta("0").T
    assert torch.allclose(y, expected, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    for options, rank, said in (({}, 27, "26 inputs: rank 27"), ({"mini": 5}, 4, "5 columns over 12 outputs")):
        with pytest.raises(RecipeError, match=said):
            lrft.attach(nn.Sequential(nn.Linear(26, 12)), {"method": {"miss": options}, "rank": rank})
    with pytest.raises(RecipeError, match="miss has no scaling factor"):
        lrft.attach(tiny.make("llama"), {"method": "miss", "rank": 2, "alpha": 2.0})
