"""DoRA against its formula, against PEFT's training path, and against finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters.storage import save_adapter
from lrft.model import linear

METHODS = pytest.mark.parametrize("words", ["dora", ["mora", "dora"], ["pissa", "dora"], ["rslora", "dora"]], ids=str)


def layer(d: int, k: int, words: Any = "dora", *, bias: bool = True, seed: int = 0, **more: Any) -> tuple[Any, Any]:
    """(model of one float64 layer, handle), the trained tensors away from their start."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(k, d, bias=bias)).double()
    attached = lrft.attach(model, {"method": words, "rank": 2, **more})
    tiny.disturb(list(attached.trained().values()), size=0.3)
    return model, attached


def inputs(k: int, n: int = 5) -> Tensor:
    return torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@METHODS
def test_forward_is_the_formula(words: Any) -> None:
    model, attached = layer(6, 8, words)
    adapter, W = attached.modules["0"], model[0].base.weight
    x = inputs(8)
    V = W + adapter.inner.delta_weight()
    m = adapter.tensors()["magnitude"]
    W_new = (m / V.norm(dim=1))[:, None] * V
    assert torch.allclose(model(x), x @ W_new.T + model[0].bias, atol=1e-12)
    assert torch.allclose(adapter.weight(W), W_new, atol=1e-12)
    assert torch.allclose(attached.delta("0"), W_new - W, atol=1e-12)


@METHODS
def test_row_norms_of_the_merged_weight_are_the_magnitudes(words: Any) -> None:
    model, attached = layer(6, 8, words)
    merged = attached.modules["0"].weight(model[0].base.weight)
    m = attached.modules["0"].tensors()["magnitude"]
    assert torch.allclose(merged.norm(dim=1), m.abs(), rtol=1e-12)


def test_magnitude_times_c_multiplies_all_but_the_bias() -> None:
    model, attached = layer(6, 8)
    x, bias = inputs(8), model[0].bias
    before = model(x) - bias
    with torch.no_grad():
        attached.modules["0"].magnitude.mul_(-2.5)
    assert torch.allclose(model(x) - bias, -2.5 * before, atol=1e-12)
    assert before.abs().min() > 0


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_gain_is_exactly_one(words: Any, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 6)).to(dtype)
    attached = lrft.attach(model, {"method": words, "rank": 2})
    adapter = attached.modules["0"]
    assert torch.equal(adapter.gain(adapter.norms(model[0].base)), torch.ones(6))
    assert torch.equal(adapter.weight(linear.dense(model[0].base)), linear.dense(model[0].base))


def test_rows_of_zeros_stay_zero_and_poison_nothing() -> None:
    for words in ("dora", ["mora", "dora"]):
        model = nn.Sequential(nn.Linear(8, 6))
        with torch.no_grad():
            model[0].weight[2] = 0.0
        attached = lrft.attach(model, {"method": words, "rank": 2})
        x = inputs(8).float()
        before = nn.functional.linear(x, model[0].base.weight, model[0].bias)
        assert torch.allclose(model(x), before, atol=1e-6)
        optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            for name, p in attached.trained().items():
                assert p.grad.isfinite().all(), (words, name)
            optimizer.step()
        W = attached.modules["0"].weight(linear.dense(model[0].base))
        assert W.isfinite().all()
        assert torch.allclose(model(x), nn.functional.linear(x, W, model[0].bias), atol=1e-5)


@METHODS
def test_gradients_are_those_with_the_norms_held_fixed(words: Any) -> None:
    model, attached = layer(5, 6, words)
    adapter, W, x = attached.modules["0"], model[0].base.weight, inputs(6)
    target = inputs(5)

    def loss_with(norms: Tensor | None) -> Tensor:
        V = W + adapter.inner.delta_weight()
        gain = adapter.magnitude / (V.norm(dim=1) if norms is None else norms)
        y = x @ (gain[:, None] * V).T + model[0].bias
        return (y - target).square().sum()

    (model(x) - target).square().sum().backward()
    fixed = (W + adapter.inner.delta_weight()).norm(dim=1).detach()
    differs = []
    for name, p in attached.trained().items():
        assert p.grad is not None
        gradient = p.grad.clone()
        flat = p.detach().view(-1)
        numeric = torch.zeros_like(flat)
        for i in range(len(flat)):
            sides = []
            for step in (1e-6, -1e-6):
                kept = flat[i].item()
                flat[i] = kept + step
                with torch.no_grad():
                    sides.append(loss_with(fixed).item())
                flat[i] = kept
            numeric[i] = (sides[0] - sides[1]) / 2e-6
        assert torch.allclose(gradient.view(-1), numeric, rtol=1e-5, atol=1e-5), name
        full = torch.autograd.grad(loss_with(None), p)[0]
        differs.append(not torch.allclose(full, gradient, rtol=1e-3))
    assert any(differs), "the norms' own gradient would be nothing here: the test shows nothing"


@pytest.mark.parametrize("bias", [True, False])
def test_training_with_dropout_equals_peft(bias: bool) -> None:
    from peft import LoraConfig, get_peft_model

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(10, 12, bias=bias), nn.Tanh(), nn.Linear(12, 7, bias=bias))

    ours = make()
    attached = lrft.attach(ours, {"method": "dora", "rank": 3, "alpha": 6.0, "dropout": 0.4})
    tiny.disturb(list(attached.trained().values()), size=0.3)
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.4, target_modules=["0", "2"], use_dora=True)
    theirs = get_peft_model(make(), config)
    with torch.no_grad():
        for name, adapter in attached.modules.items():
            layer = theirs.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(adapter.tensors()["A"])
            layer.lora_B["default"].weight.copy_(adapter.tensors()["B"])
            layer.lora_magnitude_vector["default"].weight.copy_(adapter.tensors()["magnitude"])
    x = inputs(10).float()
    found = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(11)
        y = model(x)
        y.square().sum().backward()
        found.append(y.detach())
    assert torch.allclose(*found, atol=1e-5)
    assert not torch.allclose(found[0], ours.eval()(x), atol=1e-3), "dropout did nothing"
    for name, p in attached.trained().items():
        site, word = name.split(".")
        layer = theirs.base_model.model.get_submodule(site)
        other = {"A": layer.lora_A, "B": layer.lora_B, "magnitude": layer.lora_magnitude_vector}[word]["default"].weight
        assert torch.allclose(p.grad, other.grad, rtol=1e-4, atol=1e-4), name


def test_magnitudes_are_in_the_peft_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    attached = lrft.attach(tiny.make("llama"), {"method": "dora", "rank": 2, "target_modules": "q_proj"})
    tiny.disturb(list(attached.trained().values()))
    save_adapter(attached, tmp_path, base={"name": "tiny"})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, adapter in attached.modules.items():
        stored = tensors[f"base_model.model.{name}.lora_magnitude_vector"]
        assert torch.equal(stored, adapter.tensors()["magnitude"])
    assert not (tmp_path / "lrft.safetensors").exists(), "PEFT's file says it all"


def test_norms_without_a_dense_product_hold_where_the_change_is_small() -> None:
    """The closed form adds numbers of the size of |W|^2: it must not lose a small change."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    attached = lrft.attach(model, {"method": "dora", "rank": 4})
    tiny.disturb(list(attached.trained().values()), size=1e-3)
    adapter, W = attached.modules["0"], model[0].base.weight.double()
    V = W + adapter.inner.delta_weight().double()
    assert torch.allclose(adapter.norms(model[0].base).double(), V.norm(dim=1), rtol=1e-6)
