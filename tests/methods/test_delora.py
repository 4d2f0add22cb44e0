"""DeLoRA against its formula and against PEFT's layer, and the bound that its name is about."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.errors import RecipeError
from lrft.model import linear


def layer(d: int, k: int, options: dict[str, Any] | None = None, *, moved: bool = True) -> tuple[nn.Module, Any]:
    """(model of one float64 layer, handle), rank 3."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    attached = lrft.attach(model, {"method": {"delora": options or {}}, "rank": 3})
    if moved:
        tiny.disturb(list(attached.trained().values()))
    return model, attached


def formula(W: Tensor, A: Tensor, B: Tensor, bound: Tensor) -> Tensor:
    D = torch.zeros_like(W)
    for j in range(len(A)):
        D += bound / len(A) * torch.outer(B[:, j] / B[:, j].norm(), A[j] / A[j].norm())
    return D @ torch.diag(W.square().sum(0).sqrt())


@pytest.mark.parametrize(("d", "k"), [(9, 14), (14, 9)])
def test_the_update_is_the_formula_less_that_of_the_start(d: int, k: int) -> None:
    model, attached = layer(d, k, {"bound": 4.0}, moved=False)
    W, start = model[0].base.weight.detach(), attached.state_dict()
    tiny.disturb(list(attached.trained().values()))
    now = attached.state_dict()
    D, D0 = (formula(W, state["0.A"], state["0.B"], state["0.bound"]) for state in (now, start))
    assert start["0.bound"].item() == 4.0
    assert (D - D0).abs().max() > 0.1
    assert torch.allclose(attached.delta("0"), D - D0, atol=1e-12)
    x = torch.randn(5, k, dtype=W.dtype, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(x), x @ (W + D - D0).T + model[0].bias, atol=1e-12)


def test_forward_and_merge_of_each_half_are_those_of_peft() -> None:
    from peft import DeloraConfig, get_peft_model

    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(14, 9), nn.Linear(9, 5, bias=False))
    torch.manual_seed(0)
    config = DeloraConfig(r=3, delora_lambda=6, target_modules=["0", "1"], init_weights=False)
    theirs = get_peft_model(nn.Sequential(nn.Linear(14, 9), nn.Linear(9, 5, bias=False)), config).base_model.model
    attached = lrft.attach(ours, {"method": {"delora": {"bound": 6.0}}, "rank": 3})
    tiny.disturb(list(attached.trained().values()))
    generator = torch.Generator().manual_seed(1)
    for name, adapter in attached.modules.items():
        other, x = theirs.get_submodule(name), torch.randn(5, adapter.site.k, generator=generator)
        assert torch.allclose(adapter.inner.norms, other.delora_w_norm["default"], rtol=1e-6)
        updates, images = [], []
        for half in (adapter.inner, adapter.start):
            with torch.no_grad():
                other.delora_A["default"].copy_(half.A)
                other.delora_B["default"].copy_(half.B)
                other.delora_lambda["default"].copy_(half.bound)
            assert torch.allclose(half.delta(x), other(x) - other.base_layer(x), atol=1e-5)
            assert torch.allclose(half.delta_weight(), other.get_delta_weight("default"), atol=1e-6)
            updates.append(other.get_delta_weight("default"))
            images.append(other(x))
        assert torch.allclose(attached.delta(name), updates[0] - updates[1], atol=1e-6)
        changed = attached.layers()[name](x) - attached.layers()[name].base(x)
        assert torch.allclose(changed, images[0] - images[1], atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 0.2, 100.0])
def test_neither_half_is_larger_than_its_bound(size: float) -> None:
    model, attached = layer(9, 14, {"bound": 2.0}, moved=False)
    tiny.disturb(list(attached.trained().values()), size=size)
    adapter, norms = attached.modules["0"], model[0].base.weight.norm(dim=0)
    for half in (adapter.inner, adapter.start):
        assert (half.delta_weight() / norms).norm() <= half.bound.abs().item() * (1 + 1e-12)
    most = adapter.inner.bound.abs().item() + 2.0
    assert (attached.delta("0") / norms).norm() <= most


def test_equal_directions_reach_the_bound() -> None:
    model, attached = layer(9, 14, {"bound": 2.0})
    inner, norms = attached.modules["0"].inner, model[0].base.weight.norm(dim=0)
    with torch.no_grad():
        inner.A.copy_(inner.A[:1].expand_as(inner.A))
        inner.B.copy_(inner.B[:, :1].expand_as(inner.B))
    assert (inner.delta_weight() / norms).norm().item() == pytest.approx(inner.bound.abs().item(), rel=1e-12)


def test_lengths_of_rows_and_columns_do_not_matter_and_the_bound_is_a_factor() -> None:
    _, attached = layer(9, 14)
    inner = attached.modules["0"].inner
    before = inner.delta_weight().detach()
    with torch.no_grad():
        inner.A[1] *= 7.0
        inner.B[:, 2] *= 0.3
    assert torch.allclose(inner.delta_weight(), before, atol=1e-12)
    with torch.no_grad():
        inner.bound *= -2.5
    assert torch.allclose(inner.delta_weight(), -2.5 * before, atol=1e-12)


def test_a_direction_of_length_zero_poisons_nothing() -> None:
    model, attached = layer(9, 14)
    inner = attached.modules["0"].inner
    with torch.no_grad():
        inner.A[0] = 0.0
        inner.B[:, 1] = 0.0
    x = torch.ones(2, 14, dtype=torch.float64)
    model(x).square().sum().backward()
    assert model(x).isfinite().all()
    for name, p in attached.trained().items():
        assert p.grad.isfinite().all(), name


def test_the_start_is_a_copy_that_training_never_moves() -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "delora", "rank": 3})
    before = attached.state_dict()
    for adapter in attached.modules.values():
        assert adapter.inner.A.data_ptr() != adapter.start.A.data_ptr()
        assert adapter.inner.A.any()
        assert adapter.inner.B.any()
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for name, value in attached.state_dict().items():
        stays = ".start." in name or name.endswith(".norms")
        assert torch.equal(value, before[name]) == stays, name


def test_the_first_gradient_is_of_the_size_of_the_parameters_not_of_a_clamp() -> None:
    """Where B starts at zero over a clamped length, its gradient is ten thousand times too large."""
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "delora", "rank": 3})
    model(input_ids=ids, labels=ids).loss.backward()
    of_A, of_B = (
        max(p.grad.norm().item() for name, p in attached.trained().items() if name.endswith(word))
        for word in (".A", ".B")
    )
    assert of_B < 100 * of_A


def test_norms_are_those_of_the_columns_of_the_base() -> None:
    for kind in ("llama", "gpt2"):
        attached = lrft.attach(tiny.make(kind), {"method": "delora", "rank": 2})
        for name, module in attached.layers().items():
            expected = linear.dense(module.base).norm(dim=0)
            assert torch.allclose(attached.modules[name].inner.norms, expected, rtol=1e-6), name


def test_the_bound_has_a_learning_rate_of_its_own_and_no_factor() -> None:
    assert compose.compose([("delora", {"bound_ratio": 0.1})]).lr_factors() == {"bound": 0.1}
    for words, sentence in (
        ({"method": "delora", "alpha": 16.0}, "delora has no scaling factor"),
        ({"method": ["delora", "lora+"]}, "lora\\+ requires a pair"),
        ({"method": ["delora", "rslora"]}, "rslora requires a factor alpha/r"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words)
