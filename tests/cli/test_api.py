"""The Python surface: attach, load_adapter, merge and the handle, on any module with linear layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters.adapter import AdapterLinear
from lrft.adapters.storage import save_adapter
from lrft.errors import LrftError, RecipeError, UsageError


class Nested(nn.Module):
    """Not a model of transformers: nested, named and listed linear layers, one in float64 beside float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 8, bias=False)))
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 2)])
        self.by_name = nn.ModuleDict({"last": nn.Linear(5, 4)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.by_name["last"](torch.cat([head(y) for head in self.heads], dim=-1))


NAMES = ["body.0", "body.1.1", "heads.0", "heads.1", "by_name.last"]


def x(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_any_module_with_linear_layers_can_be_adapted_and_trained() -> None:
    model = Nested()
    before = model(x())
    handle = lrft.attach(model, {"method": "lora", "rank": 2})
    assert list(handle.modules) == NAMES
    assert torch.equal(model(x()), before)
    optimizer = torch.optim.AdamW(handle.trained().values(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(x()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {p.requires_grad for p in handle.trained().values()} == {True}
    assert sum(p.requires_grad for p in model.parameters()) == 2 * len(NAMES)


def test_nothing_given_is_lora_on_all_linear_layers() -> None:
    handle = lrft.attach(Nested(), {})
    assert handle.methods == ({"name": "lora", "options": {}},)
    assert {site.rank for site in handle.sites} == {16}


def test_delta_is_what_the_layer_adds() -> None:
    model = Nested()
    handle = lrft.attach(model, {"rank": 2})
    tiny.disturb(list(handle.trained().values()))
    layer = model.body[0]
    delta = handle.delta("body.0")
    assert delta.shape == (8, 6)
    assert not delta.requires_grad
    assert torch.allclose(layer(x()) - layer.base(x()), x() @ delta.T, atol=1e-6)
    with pytest.raises(KeyError):
        handle.delta("body.7")


@pytest.mark.parametrize("words", ["lora", "pissa", "dora", "mora"])
def test_state_goes_out_and_comes_back(words: str) -> None:
    model = Nested()
    handle = lrft.attach(model, {"method": words, "rank": 1})
    start = handle.state_dict()
    tiny.disturb(list(handle.trained().values()))
    moved, y = handle.state_dict(), model(x())
    assert any(not torch.equal(moved[name], start[name]) for name in start)
    handle.load_state_dict(start)
    assert all(torch.equal(value, start[name]) for name, value in handle.state_dict().items())
    handle.load_state_dict(moved)
    assert torch.equal(model(x()), y)


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = "body.0.A"
    if how == "missing":
        return {k: v for k, v in state.items() if k != name}
    if how == "extra":
        return {**state, "body.9.A": torch.zeros(1)}
    return {**state, name: state[name].T if how == "shape" else state[name] * float("nan")}


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "not finite"])
def test_a_state_that_does_not_fit_is_refused(how: str) -> None:
    handle = lrft.attach(Nested(), {"rank": 2})
    with pytest.raises(ValueError, match=r"body\.[09].A"):
        handle.load_state_dict(broken(handle.state_dict(), how))


def test_the_state_is_a_copy() -> None:
    handle = lrft.attach(Nested(), {"rank": 2})
    for tensor in handle.state_dict().values():
        tensor.fill_(7.0)
    assert all(p.abs().max() < 7 for p in handle.trained().values())


def test_disabled_nests_and_ends_after_an_error() -> None:
    model = Nested()
    before = model(x())
    handle = lrft.attach(model, {"rank": 2})
    tiny.disturb(list(handle.trained().values()))
    on = model(x())
    with handle.disabled():
        with handle.disabled():
            assert torch.equal(model(x()), before)
        assert torch.equal(model(x()), before)
    assert torch.equal(model(x()), on)
    with pytest.raises(ZeroDivisionError), handle.disabled():
        raise ZeroDivisionError
    assert torch.equal(model(x()), on)


def test_detach_gives_the_model_back_as_it_was() -> None:
    model = Nested()
    layers = [model.get_submodule(name) for name in NAMES]
    bits = [p.detach().clone() for p in model.parameters()]
    handle = lrft.attach(model, {"rank": 2})
    tiny.disturb(list(handle.trained().values()))
    assert handle.detach() is model
    assert [model.get_submodule(name) for name in NAMES] == layers
    assert not any(isinstance(module, AdapterLinear) for module in model.modules())
    assert all(torch.equal(p, bit) for p, bit in zip(model.parameters(), bits, strict=True))
    lrft.attach(model, {"rank": 1})  # and can be adapted again


def test_a_model_that_has_adapters_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A second attach would freeze the first adapter and find its base layers instead of the model's."""
    model = Nested()
    handle = lrft.attach(model, {"rank": 2})
    tiny.disturb(list(handle.trained().values()))
    y = model(x())
    save_adapter(handle, tmp_path, base={"name": "nested"})
    for again in (lambda: lrft.attach(model, {"rank": 2}), lambda: lrft.load_adapter(model, tmp_path)):
        with pytest.raises(UsageError, match="already has adapters"):
            again()
    assert torch.equal(model(x()), y)
    assert all(p.requires_grad for p in handle.trained().values())


def test_over_float64_everything_is_float64() -> None:
    model = Nested().double()
    model.heads.half()
    handle = lrft.attach(model, {"method": "dora", "rank": 2, "target_modules": ["body.*"]})
    assert {p.dtype for p in handle.trained().values()} == {torch.float64}
    tiny.disturb(list(handle.trained().values()))
    assert handle.delta("body.0").dtype == torch.float64
    assert model.body(x(torch.float64)).dtype == torch.float64


def test_adapters_follow_each_layers_own_dtype() -> None:
    model = Nested()
    model.body.double()
    handle = lrft.attach(model, {"rank": 2})
    dtypes = {site.name: site.dtype for site in handle.sites}
    assert dtypes["body.0"] == torch.float64
    assert dtypes["heads.0"] == torch.float32


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"rnk": 4}, "rnk"),
        ({"method": "lroa"}, "Did you mean lora"),
        ({"rank": 0}, "rank"),
        ({"rank": "8"}, "rank"),
        ({"alpha": 2.0, "scale": 1.0}, "both set"),
        ({"dropout": 1.0}, "dropout"),
        ({"method": {"mora": {"type": 5}}}, "type"),
        ({"method": ["lora", "mora"]}, "both build the update"),
        ({"overrides": {"body.0": {}}}, "give rank, alpha or scale"),
    ],
)
def test_mistakes_in_the_words_are_recipe_errors(words: dict[str, Any], sentence: str) -> None:
    model = Nested()
    with pytest.raises(RecipeError) as caught:
        lrft.attach(model, words)
    assert sentence in "\n".join(caught.value.lines())
    assert all(p.requires_grad for p in model.parameters()), "an error must leave the model as it was"


def test_a_saved_adapter_comes_back_into_another_copy(tmp_path: Path) -> None:
    model = Nested()
    handle = lrft.attach(model, {"method": ["mora", "dora"], "rank": 1}, seed=3)
    tiny.disturb(list(handle.trained().values()))
    save_adapter(handle, tmp_path, base={"name": "nested"}, seed=3)
    other = Nested()
    loaded = lrft.load_adapter(other, str(tmp_path))
    assert torch.equal(other(x()), model(x()))
    assert loaded.trained().keys() == handle.trained().keys()
    assert loaded.methods == handle.methods
    assert loaded.sites == handle.sites


def test_the_package_lists_what_it_offers() -> None:
    assert set(lrft.__all__) == {"__version__", "attach", "load_adapter", "merge"}
    assert all(hasattr(lrft, name) for name in lrft.__all__)
    with pytest.raises(LrftError):
        lrft.merge("/nowhere", "/nowhere-else")
