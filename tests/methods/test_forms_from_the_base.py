"""Forms that take something from the weights of the base or from a seed: compared with stock PEFT and dense formulas.

That layers, gradients and files are PEFT's is in tests/adapters/test_peft_types.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import lrft
from lrft.adapters.peft_export import peft_folder
from lrft.errors import CheckFailed, RecipeError

T = ["q_proj", "down_proj"]


def peft_file(config: Any, folder: Path, model: Any = None, size: float = 0.0) -> tuple[Any, dict[str, torch.Tensor]]:
    """Stock PEFT's model and the tensors of its file, by names without what stands before a layer's."""
    torch.manual_seed(3)
    theirs: Any = peft.get_peft_model(tiny.make("llama") if model is None else model, config)
    if size:
        tiny.disturb([p for p in theirs.parameters() if p.requires_grad], size=size)
    theirs.save_pretrained(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    return theirs.eval(), {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}


def test_the_projections_of_tinylora_are_those_of_peft(tmp_path: Path) -> None:
    _, stored = peft_file(peft.TinyLoraConfig(target_modules=T, r=3, u=5, projection_seed=9), tmp_path)
    words = {"tinylora": {"u": 5, "projection_seed": 9, "svd": "exact"}}
    fresh = lrft.attach(tiny.make("llama"), {"method": words, "rank": 3, "target_modules": T})
    for name, adapter in fresh.modules.items():
        own = adapter.tensors()
        assert torch.equal(own["P"], stored[f"{name}.tinylora_P"])
        product = stored[f"{name}.tinylora_B"] @ stored[f"{name}.tinylora_A"]  # pairs of vectors have no sign
        torch.testing.assert_close(own["B"] @ own["A"], product, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own["A"].abs(), stored[f"{name}.tinylora_A"].abs(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Specified to not save")
def test_groups_and_seeds_go_by_the_models_order_not_by_that_of_names(tmp_path: Path) -> None:
    """In a file, layer 10 comes before layer 2."""
    torch.manual_seed(0)
    base = tiny.llama(layers=11).eval()
    before = tiny.logits(base, tiny.tokens())
    config = peft.TinyLoraConfig(target_modules=["k_proj"], u=4, weight_tying=0.6, save_projection=False)
    theirs, stored = peft_file(config, tmp_path, base, size=0.5)
    assert not any("tinylora_P" in name for name in stored)
    expected = tiny.logits(theirs, tiny.tokens())
    torch.manual_seed(0)
    ours = tiny.llama(layers=11).eval()
    attached = lrft.load_adapter(ours, tmp_path)
    changed = (expected - before).abs().max()
    assert (tiny.logits(ours, tiny.tokens()) - expected).abs().max() < 1e-3 * changed
    assert len(attached.shared.v) == 4


def test_a_vector_weighs_fixed_matrices() -> None:
    model, attached = tiny.layer({"tinylora": {"u": 3}}, 5, 8, rank=2)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    own, v = attached.modules["0"].tensors(), attached.shared.v[0]
    middle = sum(v[i] * own["P"][i] for i in range(3))
    assert tiny.same_function(model, attached, own["B"] @ middle @ own["A"])
    U, S, Vh = torch.linalg.svd(model[0].base.weight)
    torch.testing.assert_close(own["B"] @ own["A"], (U[:, :2] * S[:2]) @ Vh[:2], rtol=1e-3, atol=1e-3)


def test_all_factors_together_are_as_long_as_the_vector() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": {"unilora": {"theta_d_length": 31}}, "rank": 3})
    found = [factor for adapter in attached.modules.values() for factor in adapter.factors()[:2]]
    length = sum(factor.square().sum() for factor in found).sqrt()
    torch.testing.assert_close(length, attached.shared.theta.norm())
    values, counts = torch.cat([factor.flatten() for factor in found]).unique(return_counts=True)
    assert len(values) == 31
    assert counts.max() - counts.min() <= 1


def test_a_vectors_numbers_are_factors() -> None:
    model, attached = tiny.layer({"unilora": {"theta_d_length": 7}}, 5, 8, rank=2)
    A, B = (attached.shared.theta[at.long()] for at in attached.shared.of(attached.sites[0]))
    counts = torch.bincount(attached.shared.places)
    roots = [counts[at.long()].double().sqrt() for at in attached.shared.of(attached.sites[0])]
    assert tiny.same_function(model, attached, (B / roots[1]) @ (A / roots[0]))


def test_places_that_the_seed_does_not_give_are_refused(tmp_path: Path) -> None:
    config = peft.UniLoraConfig(target_modules=T, theta_d_length=9, save_indices=True)
    peft_file(config, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in stored if name.endswith("down_proj.unilora_indices_B"))
    stored[name][0, 0] += 1
    save_file(stored, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckFailed, match=r"down_proj: places of theta are not those of proj_seed 42"):
        lrft.load_adapter(tiny.make("llama"), tmp_path)


@pytest.mark.parametrize(("d", "k"), [(5, 8), (8, 5), (6, 6)])
def test_gradients_of_the_smallest_triplets_lie_across_the_others(d: int, k: int) -> None:
    model, attached = tiny.layer("osf", d, k, rank=2)
    own, W = attached.modules["0"].tensors(), model[0].base.weight.detach()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    smallest = (U[:, -2:] * S[-2:]) @ Vh[-2:]
    torch.testing.assert_close((own["U"] * own["S"]) @ own["V"], smallest)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    torch.testing.assert_close(model[0].adapter.weight(W), W - smallest + (own["U"] * own["S"]) @ own["V"])
    x = torch.randn(5, k, dtype=torch.float64)
    wanted = [own[name] for name in "USV"]
    found = torch.autograd.grad(model(x).square().sum(), wanted)
    dense = x @ (W - smallest + (own["U"] * own["S"]) @ own["V"]).T + model[0].base.bias
    free = torch.autograd.grad(dense.square().sum(), wanted)
    across = (torch.eye(d) - U[:, :-2] @ U[:, :-2].T) @ free[0], free[2] @ (torch.eye(k) - Vh[:-2].T @ Vh[:-2])
    for one, other in zip(found, (across[0], free[1], across[1]), strict=True):
        torch.testing.assert_close(one, other)
    assert (found[0] - free[0]).abs().max() > 0.1


def test_triplets_that_are_not_the_smallest_by_any_gap_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 6))
    torch.nn.init.eye_(model[0].weight)
    with pytest.raises(RecipeError, match="its singular values 4 and 5 are the same"):
        lrft.attach(model, {"method": "osf", "rank": 2})


def test_an_osf_of_all_triplets_is_none_of_peft(tmp_path: Path) -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": "osf", "rank": 12, "target_modules": ["k_proj"]})
    assert "and model.layers.0.self_attn.k_proj trains all" in peft_folder(attached, {}, own_type=True).refused


@pytest.mark.parametrize("how", ["psoft_init", "pissa_init"])
def test_what_psoft_leaves_as_it_is_has_the_signs_of_peft(how: Any, tmp_path: Path) -> None:
    theirs, _ = peft_file(peft.PsoftConfig(target_modules=T, r=5, psoft_alpha=5, ab_svd_init=how), tmp_path)
    words = {"psoft": {"ab_svd_init": how}}
    fresh = lrft.attach(tiny.make("llama"), {"method": words, "rank": 5, "target_modules": T})
    for name, adapter in fresh.modules.items():
        cached = theirs.get_submodule(f"base_model.model.{name}")._get_psoft_ab_cache_buffers("default")
        for mine, its in zip((adapter.A, adapter.B), cached, strict=True):
            torch.testing.assert_close(mine.data, its, rtol=1e-4, atol=1e-6)


def test_leading_directions_are_turned_and_scaled() -> None:
    model, attached = tiny.layer("psoft", 5, 8, rank=3)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    own, W = attached.modules["0"].tensors(), model[0].base.weight
    Q = torch.zeros(3, 3, dtype=W.dtype)
    Q[[0, 0, 1], [1, 2, 2]] = own["Q"]
    Q, eye = Q - Q.T, torch.eye(3, dtype=W.dtype)
    R = (eye + Q) @ torch.linalg.inv(eye - Q)
    torch.testing.assert_close(R @ R.T, eye)
    turned = torch.diag(own["b"]) @ R @ torch.diag(own["a"])
    assert tiny.same_function(model, attached, own["B"] @ (turned - eye) @ own["A"])


def test_a_psoft_of_other_singular_vectors_is_none_of_peft() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": "psoft", "rank": 4, "target_modules": ["k_proj"]})
    assert not peft_folder(attached, {}, own_type=True).refused
    adapter = attached.modules["model.layers.1.self_attn.k_proj"]
    for tensor in (adapter.A[2], adapter.B[:, 2]):  # the same weight, the other sign
        tensor.data.neg_()
    said = peft_folder(attached, {}, own_type=True).refused
    assert "PSOFT would be another function: the singular vectors of model.layers.1.self_attn.k_proj are not" in said


def test_the_bases_of_frod_are_those_of_peft(tmp_path: Path) -> None:
    chosen = ["k_proj", "down_proj"]  # two layers' outputs below each other: as many as the inputs, and more
    config = peft.FrodConfig(target_modules=chosen, sparse_rate=0.1, projection_prng_key=6, progressbar=False)
    theirs, stored = peft_file(config, tmp_path)
    words = {"frod": {"sparse_rate": 0.1, "projection_prng_key": 6}}
    fresh = lrft.attach(tiny.make("llama"), {"method": words, "target_modules": chosen})
    for kind in ("self_attn_k_proj", "mlp_down_proj"):
        assert torch.equal(fresh.shared.places[kind], stored[f"base_model.frod_s_indices.{kind}"].int())
        V, own = stored[f"base_model.frod_V.{kind}"], fresh.shared.V[kind].data
        signs = (V * own).sum(0).sign()  # of an eigenvector
        torch.testing.assert_close(own * signs, V, rtol=1e-3, atol=1e-3 * V.abs().max().item())
    for name, adapter in fresh.modules.items():
        torch.testing.assert_close(adapter.start.data, stored[f"{name}.frod_lambda_l"], rtol=1e-3, atol=1e-4)
        U = theirs.get_submodule(f"base_model.model.{name}").frod_U["default"]
        V = stored[f"base_model.frod_V.{adapter.kind}"]
        weight = fresh.layers()[name].base.weight
        torch.testing.assert_close((U * adapter.start) @ V.T, weight, rtol=1e-3, atol=1e-3)


def test_values_and_entries_change_a_weight_in_its_basis() -> None:
    model, attached = tiny.layer({"frod": {"sparse_rate": 0.1}}, 5, 8)
    tiny.disturb([attached.shared.V["0"]], size=0.3)
    attached.modules["0"].start.data += torch.rand(8, dtype=torch.float64)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    own, V, W = attached.modules["0"].tensors(), attached.shared.V["0"], model[0].base.weight
    S = torch.diag(own["z"])
    for number, (row, column) in enumerate(attached.shared.places["0"].T.tolist()):
        assert row != column
        S[row, column] = own["s"][number]
    U = W @ torch.linalg.inv(V.T) @ torch.diag(1 / own["start"])
    assert tiny.same_function(model, attached, U @ S @ V.T)


def test_directions_without_a_value_are_left_alone_and_files_that_change_them_refused(tmp_path: Path) -> None:
    """44 inputs, and 24 outputs in one layer: PEFT trains directions that rounding chose."""
    section = {"method": {"frod": {"sparse_rate": 0.5}}, "target_modules": ["down_proj"], "layers": [0]}
    attached = lrft.attach(tiny.make("llama"), section)
    tiny.disturb(list(attached.trained().values()), size=0.5)
    (adapter,) = attached.modules.values()
    x = torch.randn(3, 44)
    assert int((adapter.start > 1e-3 * adapter.start.max()).sum()) == 24
    assert adapter.change(x).abs().max() < 1e3 * x.abs().max()
    assert "down_proj has numbers in directions in which the" in peft_folder(attached, {}, own_type=True).refused
    config = peft.FrodConfig(target_modules=["down_proj"], layers_to_transform=[0], progressbar=False)
    peft_file(config, tmp_path, size=0.1)
    with pytest.raises(
        CheckFailed, match=r"0\.mlp\.down_proj: its file changes directions in which the weights have no"
    ):
        lrft.load_adapter(tiny.make("llama"), tmp_path)


def test_layers_of_one_kind_need_the_same_inputs() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"b": torch.nn.Linear(5, 4)})})
    model["c"] = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"b": torch.nn.Linear(6, 4)})})
    with pytest.raises(RecipeError, match=r"all layers that are called a_b, and c\.a\.b has 6 inputs where a\.b has 5"):
        lrft.attach(model, {"method": "frod", "target_modules": ["b"]})
