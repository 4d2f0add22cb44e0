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
from lrft.errors import CheckFailed

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
