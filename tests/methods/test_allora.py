"""ALLoRA's gradients against formulas of dense matrices."""

from __future__ import annotations

from typing import Any

import pairs
import pytest
import torch
from torch import Tensor

from lrft.errors import RecipeError
from lrft.methods.allora import RowRates


def passed(words: Any, *, filled: bool = True) -> tuple[Any, Tensor, Tensor, Tensor]:
    """(attached, inputs with their gradient, D by the output, the output) of one pass through the first layer."""
    attached = pairs.attach(words, filled=filled, **({} if words != "lora" else {"scale": 1.0}))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(11, 9, dtype=torch.float64, generator=generator).requires_grad_()
    D = torch.randn(11, 7, dtype=torch.float64, generator=generator)
    out = attached.model[0].train()(x)
    out.backward(D)
    return attached, x, D, out


@pytest.mark.parametrize("filled", [True, False])
def test_only_the_factors_gradients_are_changed(filled: bool) -> None:
    eta = 4.0
    (plain, x, _, y), (ours, x_too, D, y_too) = (passed(w, filled=filled) for w in ("lora", {"allora": {"eta": eta}}))
    assert torch.equal(y, y_too)
    assert torch.allclose(x.grad, x_too.grad, rtol=1e-12)
    A, B = pairs.pairs_of(ours)[0]
    c = ((B @ A).norm(dim=1) + eta**-2).rsqrt().detach()
    assert torch.allclose(B.grad, (D * c).T @ (x @ A.T), rtol=1e-10)
    assert torch.allclose(A.grad, (D * c @ B).T @ x, rtol=1e-10)
    if not filled:
        assert torch.allclose(B.grad, eta * pairs.pairs_of(plain)[0][1].grad, rtol=1e-10)
        assert not A.grad.any()


def test_rates_fall_with_the_rows_and_lose_eta_where_it_is_large() -> None:
    attached = pairs.attach("allora")
    (rows,) = [m for m in attached.modules["0"].modules() if isinstance(m, RowRates)]
    A, B = pairs.pairs_of(attached)[0]
    norms = (B @ A).norm(dim=1)
    order = norms.argsort()
    assert (rows.rates(B, A)[order].diff() < 0).all()
    rows.eta = 1e9
    assert torch.allclose(rows.rates(B, A), norms.rsqrt(), rtol=1e-10)


def test_a_factor_is_refused() -> None:
    with pytest.raises(RecipeError, match="allora does not support a scaling factor, got 2"):
        pairs.attach("allora", alpha=6)
