"""The fused steps against their slow twins: values, gradients, what they keep, and where they must not be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

import lrft
from lrft.adapters import gradient_checkpointing
from lrft.adapters.adapter import Adapter, AdapterLinear, Delta
from lrft.model import fused_linear

K, D = 12, 10
METHODS: dict[str, Any] = {
    "lora": "lora",
    "pissa": "pissa",
    "mora-6": "mora",
    "mora-1": {"mora": {"type": 1}},
    "mora-2": {"mora": {"type": 2}},
    "dora": "dora",
    "mora+dora": ["mora", "dora"],
}


def layer(words: Any, base: nn.Module, **more: Any) -> AdapterLinear:
    model = nn.Sequential(base)
    attached = lrft.attach(model, {"method": words, "rank": 2, **more}, seed=0)
    tiny.disturb(list(attached.trained().values()))
    return model[0]  # type: ignore[return-value]


def plain(bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(K, D, bias=bias).to(dtype)


def conv1d() -> nn.Module:
    torch.manual_seed(0)
    return Conv1D(D, K).double()


def answers(adapted: AdapterLinear, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of a function of it by the input and every trained tensor."""
    own = x.detach().clone().requires_grad_()
    y = adapted(own)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).cos()).sum(), [own, *trained])]


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_linear, "is_plain", lambda base: False)


@pytest.mark.parametrize("base", [plain, lambda: plain(bias=False), conv1d], ids=["linear", "no bias", "Conv1D"])
@pytest.mark.parametrize("name", METHODS)
def test_fused_equals_slow_twin(name: str, base: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = layer(METHODS[name], base())
    x = torch.randn(3, 5, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fast = answers(adapted, x)
    slowly(monkeypatch)
    for got, wanted in zip(fast, answers(adapted, x), strict=True):
        assert got.abs().max() > 0
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["lora", "mora-1", "dora"])
def test_fused_equals_slow_twin_with_dropout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = layer(METHODS[name], plain(), dropout=0.4).train()
    x = torch.randn(3, 5, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    fast = answers(adapted, x)
    slowly(monkeypatch)
    torch.manual_seed(7)
    for got, wanted in zip(fast, answers(adapted, x), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_fused_equals_slow_twin_under_autocast(name: str, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = layer(METHODS[name], plain(dtype=stored))
    x = torch.randn(3, 5, K, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = answers(adapted, x)
        slowly(monkeypatch)
        slow = answers(adapted, x)
    assert fast[0].dtype == slow[0].dtype == torch.bfloat16
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype
        assert (got - wanted).abs().max() <= 0.03 * wanted.abs().max()


@pytest.mark.parametrize("name", ["lora", "pissa", "mora-6", "mora-1"])
def test_only_the_input_is_kept(name: str) -> None:
    adapted = layer(METHODS[name], plain())
    x = torch.randn(50, K, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        adapted(x)
    activations = {t.untyped_storage().data_ptr() for t in kept if 50 in t.shape}
    assert activations == {x.untyped_storage().data_ptr()}


def test_a_product_that_is_thin_is_kept_too() -> None:
    """Made again it would read x once more: here 16 times as much."""
    base = nn.Linear(32, D).double()
    adapted, x = layer("lora", base), torch.randn(50, 32, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):  # type: ignore[func-returns-value]
        adapted(x)
    assert sorted(tuple(t.shape) for t in kept if 50 in t.shape) == [(50, 2), (50, 32)]


@pytest.mark.parametrize("k", [K, 32])
def test_gradients_of_gradients(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a penalty on a gradient, whether the thin product is made again or was kept."""
    torch.manual_seed(0)
    adapted, found = layer("lora", nn.Linear(k, D).double()), []
    x = torch.randn(3, 5, k, dtype=torch.float64, requires_grad=True)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    for _ in range(2):
        firsts = torch.autograd.grad(adapted(x).pow(3).sum(), [x, *trained], create_graph=True)
        found.append(torch.autograd.grad(sum(first.square().sum() for first in firsts), [x, *trained]))
        slowly(monkeypatch)
    for got, wanted in zip(*found, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10)


def test_nothing_goes_back_below_the_lowest_adapter() -> None:
    """The gradient of an input that nobody trains on is not made."""
    adapted = layer("lora", plain())
    y = adapted(torch.randn(4, K, dtype=torch.float64))
    needed = y.grad_fn.next_functions  # type: ignore[union-attr]
    assert needed[0][0] is None
    model = tiny.make("llama")
    keys = {"method": "lora", "rank": 2, "layers": [1]}
    lrft.attach(model, keys, seed=0)
    with torch.enable_grad():
        states = model(input_ids=tiny.tokens(), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, True]


def test_other_bases_and_precisions_take_the_slow_way() -> None:
    class Odd(nn.Linear):
        """As a quantised layer: its weight is not what its product uses."""

        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    adapter: Adapter = layer("lora", plain(dtype=torch.float32)).adapter
    assert isinstance(adapter, Delta)
    x, odd = torch.randn(3, K), Odd(K, D).requires_grad_(False)
    assert torch.allclose(adapter(x, odd), 2 * nn.functional.linear(x, odd.weight, odd.bias) + adapter.delta(x))
    half = plain(dtype=torch.bfloat16).requires_grad_(False)
    assert not adapter.is_fast(x.bfloat16(), half)
    assert adapter(x.bfloat16(), half).dtype == torch.bfloat16


@pytest.mark.parametrize("targets", ["all-linear", "q_proj"])
@pytest.mark.parametrize("case", ["lora", "mora", "dora", "pissa"])
@pytest.mark.parametrize("kind", ["light", "medium", "full"])
def test_products_are_made_once_where_checkpointing_is_light(
    case: str, kind: str, targets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.make("llama").train()
    lrft.attach(model, {"method": METHODS.get(case, case), "rank": 4, "target_modules": [targets]}, seed=0)
    gradient_checkpointing.checkpoint(model, kind)
    made: list[tuple[int, int]] = []
    product = fused_linear.linear
    monkeypatch.setattr(fused_linear, "linear", lambda x, W, bias: made.append(tuple(W.shape)) or product(x, W, bias))  # type: ignore[func-returns-value]
    loss = model(input_ids=tiny.tokens(), labels=tiny.tokens(), use_cache=False).loss
    assert len(made) == (2 if (kind, targets) == ("full", "q_proj") else 14)
    made.clear()
    loss.backward()
    everything = {(24, 24)} if targets == "q_proj" else {(44, 24), (24, 24), (12, 24), (24, 44)}
    assert set(made) == {"light": set(), "medium": {(44, 24)}, "full": everything}[kind]


def test_a_recorded_layer_is_the_layer() -> None:
    base, x = plain().requires_grad_(False), torch.randn(3, 5, K, dtype=torch.float64, requires_grad=True)
    recorded = gradient_checkpointing.RecordedLinear(base)
    assert torch.equal(recorded(x), base(x))
    slope = torch.randn(3, 5, D, dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(recorded(x), x, slope)[0], torch.autograd.grad(base(x), x, slope)[0])
