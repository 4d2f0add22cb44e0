"""CorDA: the start against the formula, PiSSA, MiLoRA and PEFT; the covariance against one of our own; one look."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Any

import calibrated
import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor
from two_processes import KEYS, launch

import lrft
from lrft.adapters.adapter import Site
from lrft.errors import RecipeError
from lrft.methods.corda import Corda
from lrft.methods.lora import Lora

MODES = pytest.mark.parametrize("mode", ["ipm", "kpm"])
DOUBLE = torch.float64


def weight(d: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(d, k, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def product(corda: Corda, W: Tensor, X: Tensor, rank: int) -> Tensor:
    """B0 A0 (d, k) that a layer of weight W gets from inputs X (n, k)."""
    site = Site("a", *W.shape, rank, dtype=DOUBLE)
    found = corda.calibrate(calibrated.Given.make([site], X.split(7), [W]))["a"]
    return found["B"] @ found["A"]


def raised(X: Tensor) -> Tensor:
    C = X.T @ X
    return C + 0.01 * C.diagonal().mean() * torch.eye(len(C), dtype=DOUBLE)


@MODES
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_start_is_the_chosen_end_of_the_decomposition(mode: str, shape: tuple[int, int]) -> None:
    W, X, r = weight(*shape), weight(50, shape[1], seed=1), 4
    C = raised(X)
    U, S, Vh = torch.linalg.svd(W @ C, full_matrices=False)
    chosen = slice(r) if mode == "ipm" else slice(len(S) - r, None)
    expected = U[:, chosen] @ torch.diag(S[chosen]) @ Vh[chosen] @ torch.linalg.inv(C)
    assert torch.allclose(product(Corda(mode, svd="exact"), W, X, r), expected, atol=1e-9)
    assert torch.allclose(product(Corda(mode), W, X, r), expected, atol=1e-6)
    if mode == "ipm":  # Eckart and Young, in the metric of C
        error = ((W - product(Corda(), W, X, r)) @ C).norm()
        assert error.item() == pytest.approx(S[r:].norm().item(), rel=1e-6)


def test_the_size_of_the_inputs_does_not_matter() -> None:
    W, X = weight(12, 20), weight(50, 20, seed=1)
    one, other = (
        Corda(svd="exact").calibrate(calibrated.Given.make([Site("a", 12, 20, 4, dtype=DOUBLE)], x.split(7), [W]))["a"]
        for x in (X, 1000 * torch.cat([X, X]))
    )
    assert all(torch.allclose(one[word].abs(), other[word].abs(), rtol=1e-6) for word in "AB")


@MODES
def test_all_directions_together_are_the_weight(mode: str) -> None:
    W, X = weight(12, 20), weight(50, 20, seed=1)
    assert torch.allclose(product(Corda(mode, svd="exact"), W, X, 12), W, atol=1e-9)
    # Fewer tokens than inputs: the raised diagonal makes C invertible.
    assert torch.allclose(product(Corda(mode, svd="exact"), W, X[:5], 12), W, atol=1e-7)


@pytest.mark.parametrize(("mode", "word"), [("ipm", {"pissa": {"svd": "exact"}}), ("kpm", "milora")])
def test_with_inputs_of_every_direction_alike_it_is_pissa_or_milora(mode: str, word: Any) -> None:
    W = weight(12, 20)
    model = torch.nn.Sequential(torch.nn.Linear(20, 12, bias=False)).double()
    model[0].weight.data.copy_(W)
    other = lrft.attach(model, {"method": word, "rank": 4}).modules["0"].tensors()
    X = 3 * torch.linalg.qr(weight(20, 20, seed=1)).Q
    site = Site("a", *W.shape, 4, dtype=DOUBLE)
    found = Corda(mode, svd="exact").calibrate(calibrated.Given.make([site], [X], [W]))["a"]
    assert torch.allclose(found["B"] @ found["A"], other["B"] @ other["A"], atol=1e-9)
    for word in "AB":  # up to the factor of the raised diagonal, and signs
        ratio = found[word].abs() / other[word].abs()
        assert torch.allclose(ratio, torch.full_like(ratio, 1.01 ** (0.5 if word == "B" else -0.5)), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@MODES
def test_the_factor_is_divided_out_and_fresh_equals_base(mode: str, scale: float) -> None:
    attached = {}
    for s in (1.0, scale):
        adapter = {"method": {"corda": {"mode": mode}}, "rank": 4, "scale": s}
        attached[s] = lrft.attach(tiny.make("llama").double(), adapter, batches=calibrated.batches())
    for name, one in attached[1.0].modules.items():
        other = attached[scale].modules[name]
        assert torch.allclose(one.inner.A, other.inner.A * scale**0.5), name
        assert torch.allclose(one.inner.B, other.inner.B * scale**0.5), name
        assert one.inner.B.abs().max() > 0
        assert not other.delta_weight().any()


@MODES
def test_the_covariance_is_that_of_the_inputs_without_padding(mode: str) -> None:
    given = calibrated.batches()
    inputs = calibrated.inputs_of(tiny.make("llama").double(), given)
    adapter = {"method": {"corda": {"mode": mode, "svd": "exact"}}, "rank": 4}
    attached = lrft.attach(tiny.make("llama").double(), adapter, batches=given)
    for name, layer in attached.layers().items():
        C = raised(inputs[name])
        U, S, Vh = torch.linalg.svd(layer.base.weight @ C, full_matrices=False)
        chosen = slice(4) if mode == "ipm" else slice(len(S) - 4, None)
        expected = U[:, chosen] @ torch.diag(S[chosen]) @ Vh[chosen] @ torch.linalg.inv(C)
        found = layer.adapter.inner.delta_weight()
        assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item()), name


def test_layers_looked_at_in_portions_start_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    for numbers in (2**29, 3000, 1):
        monkeypatch.setattr("lrft.methods.corda.COVARIANCES_AT_ONCE", numbers)
        adapter = {"method": "corda", "rank": 4}
        starts.append(lrft.attach(tiny.make("llama").double(), adapter, batches=calibrated.batches()).state_dict())
    for other in starts[1:]:
        assert starts[0].keys() == other.keys()
        assert all(torch.allclose(starts[0][name], other[name], atol=1e-7) for name in other)


@MODES
def test_first_values_and_logits_are_those_of_peft(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # PEFT takes its dataclass from a package that it does not ask for, and one row at a time.
    monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    rows = [tiny.tokens(rows=1, length=40, seed=i) for i in range(5)]
    words = ["q_proj", "o_proj", "up_proj", "down_proj"]
    theirs = tiny.make("llama")
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=words,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )

    def run_model() -> None:
        with torch.no_grad():
            for ids in rows:
                theirs(input_ids=ids)

    preprocess_corda(theirs, config, run_model=run_model)
    theirs = get_peft_model(theirs, config)
    adapter = {
        "method": {"corda": {"mode": mode, "normalise": "max", "svd": "exact"}},
        "rank": 4,
        "alpha": 8.0,
        "target_modules": words,
    }
    model = tiny.make("llama")
    ours = lrft.attach(model, adapter, batches=[{"input_ids": ids, "labels": ids} for ids in rows])
    layers = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert layers.keys() == ours.modules.keys()
    for name, layer in layers.items():
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        mine = ours.modules[name].inner
        assert torch.allclose(mine.B @ mine.A, B @ A, atol=2e-3 * (B @ A).abs().max().item()), name
        assert torch.allclose(mine.A.norm(dim=1), A.norm(dim=1), rtol=2e-3), name
    with torch.no_grad():  # both in the same way, whatever the signs of the directions
        for name, layer in layers.items():
            layer.lora_B["default"].weight.mul_(1.5)
            ours.modules[name].inner.B.mul_(1.5)
    here, there = tiny.logits(model, tiny.tokens()), tiny.logits(theirs, tiny.tokens())
    assert torch.allclose(here, there, atol=2e-3 * there.abs().max().item())


@MODES
def test_a_rank_lowered_after_the_look_keeps_the_end_that_was_asked_for(mode: str) -> None:
    adapter = Lora().build(Site("a", 12, 20, 2, dtype=DOUBLE))
    seen = {"A": weight(4, 20), "B": weight(12, 4)}
    with torch.no_grad():
        Corda(mode).initialize_from(adapter, weight(12, 20), seen)
    chosen = slice(2) if mode == "ipm" else slice(2, None)
    assert torch.equal(adapter.tensors()["A"], seen["A"][chosen])
    assert torch.equal(adapter.tensors()["B"], seen["B"][:, chosen])


def test_ranks_are_settled_before_anything_is_decomposed() -> None:
    words = {"method": ["corda", "lamda++"], "rank": 4}
    attached = lrft.attach(tiny.make("llama"), words, batches=calibrated.batches())
    ranks = {site.rank for site in attached.sites}
    assert max(ranks) > 4
    for name, adapter in attached.modules.items():
        assert adapter.tensors()["A"].shape[0] == adapter.site.rank, name
        assert adapter.tensors()["A"].abs().amin(dim=1).max() > 0


def test_what_cannot_be_decomposed_is_said() -> None:
    with pytest.raises(ValueError, match="a: its calibration inputs are zero or not finite"):
        product(Corda(), weight(5, 6), torch.zeros(9, 6, dtype=DOUBLE), 2)
    with pytest.raises(RecipeError, match=r"rank 25 where 24 directions .* lower the rank"):
        lrft.attach(tiny.make("llama"), {"method": "corda", "rank": 25}, batches=calibrated.batches())
    with pytest.raises(RecipeError, match="both set the init of A and B"):
        lrft.attach(tiny.make("llama"), {"method": ["corda", "pissa"]}, batches=calibrated.batches())
    with pytest.raises(RecipeError, match=r"corda requires adapter.dropout: 0"):
        lrft.attach(tiny.make("llama"), {"method": "corda", "dropout": 0.1}, batches=calibrated.batches())


@MODES
def test_a_run_resumes_exactly_without_looking(place: Place, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    whole = calibrated.resumes_exactly_without_looking(
        place, monkeypatch, f"adapter.method={{corda: {{mode: {mode}}}}}"
    )
    assert any("lora_A" in name for name in calibrated.shapes(whole))


@pytest.mark.slow
def test_two_processes_train_what_one_trains(place: Place) -> None:
    """Of the update: the signs of a direction's two sides are free. The second has no row to look at."""
    for rows in (9, 1):
        key = f"adapter.method={{corda: {{rows: {rows}}}}}"
        one = runs.tensors(place.train(*KEYS, key, out=f"one{rows}"))
        two = runs.tensors(launch(place, f"two{rows}", key))
        names = [name for name in one if "lora_A" in name and "optimizer" not in name]
        assert names
        for name in names:
            other = name.replace("lora_A", "lora_B")
            mine, theirs = one[other] @ one[name], two[other] @ two[name]
            assert (mine - theirs).abs().max() < 1e-3 * mine.abs().max(), name
