"""The product of 8-bit floats that a GPU has a kernel for. torch has the same one for CPUs, slower than a dense one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lrft.model import fp8
from lrft.model.quantized import QuantizedLinear


def rows(n: int, k: int, seed: int = 0) -> Tensor:
    """bfloat16 of many sizes: a row of zeros, and rows with one value far above all others."""
    x = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    x *= torch.logspace(-6, 6, n)[:, None]
    x[0] = 0
    x[1, 3] *= 1e4
    return x.bfloat16()


def layer(d: int, k: int, *, bias: bool = True) -> QuantizedLinear:
    torch.manual_seed(1)
    codes, scales = fp8.quantize(torch.randn(d, k) * torch.logspace(-3, 3, d)[:, None])
    return QuantizedLinear(
        "fp8", (d, k), {"codes": codes, "scales": scales}, torch.randn(d) if bias else None, dtype=torch.bfloat16
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_kernels_product_is_the_dequantised_one_to_the_rounding_of_its_output(bias: bool) -> None:
    one = layer(48, 64, bias=bias)
    x = rows(12, 64).view(3, 4, 64)
    W = one.made(torch.float64)
    y = fp8.product(x, one._whole("codes"), one._floats("scales"), one.bias)
    expected = nn.functional.linear(x.double(), W, None if one.bias is None else one.bias.double())
    assert (y.dtype, y.shape) == (torch.bfloat16, (3, 4, 48))
    # Rounded to 8 significant bits: the product with the high part, that with the low one, and what is given out.
    high, low = (x.double() @ W.T).abs(), x.double().abs() @ W.abs().T / 16
    assert ((y.double() - expected).abs() <= 1.1 * 2**-8 * (expected.abs() + high + 2 * low)).all()


def test_bfloat16_is_the_sum_of_its_two_parts() -> None:
    """Against the identity, whose codes are exact: what comes out is what went in."""
    codes, scales = fp8.quantize(torch.eye(64))
    x = rows(12, 64)
    y = fp8.product(x, codes, scales)
    assert ((y.float() - x.float()).abs() <= 2**-21 * x.float().abs().amax(dim=1, keepdim=True)).all()


def test_a_layer_takes_it_where_the_device_has_it_and_sides_and_dtype_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fp8.works(torch.device("cpu"))
    monkeypatch.setattr(fp8, "works", lambda device: True)
    made = QuantizedLinear.made
    counted: list[torch.dtype] = []
    monkeypatch.setattr(QuantizedLinear, "made", lambda self, dtype: counted.append(dtype) or made(self, dtype))
    one, x = layer(48, 64), rows(5, 64).requires_grad_()
    y = one(x)
    assert not counted
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.ones_like(y) @ made(one, torch.bfloat16))
    expected = nn.functional.linear(x.float(), made(one, torch.float32), one.bias.float())
    assert (y.float() - expected).norm() < 2**-7 * expected.norm()
    for other, given in ((layer(40, 64), x), (layer(48, 60), rows(5, 60)), (one, x.float()), (one, x[:0])):
        counted.clear()
        other(given)
        assert counted
