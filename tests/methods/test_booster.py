"""Booster: the difference of two gradients on harmful rows, and runs with a file of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import runs
import torch
from passes import Problem, curved, quadratic
from runs import Place

from lrft.errors import RecipeError
from lrft.methods.booster import Booster


def test_on_a_quadratic_the_difference_is_a_product_with_its_hessian() -> None:
    w, H, h = quadratic()
    f = lambda: (w**3).sum()  # noqa: E731
    g = H @ w.detach()
    found = Problem([w], f, h).compose(Booster(lam=2.0, length=0.3))[w]
    assert torch.allclose(found, 3 * w**2 + 2.0 * 0.3 * H @ g / g.norm(), rtol=1e-6)


def test_for_a_small_step_nothing_is_added() -> None:
    trained, f = curved()
    found = Problem(trained, f, lambda: sum((p**4).sum() for p in trained)).compose(Booster(length=1e-12))
    assert all(torch.allclose(found[p], g) for p, g in zip(trained, torch.autograd.grad(f(), trained), strict=True))


def test_without_weight_it_is_ordinary_training_to_the_bit(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    options = json.dumps({"booster": {"harmful": runs.other_rows(), "lam": 0.0}})
    keys = ("training.learning_rate=0.01", "adapter.dropout=0.1", "training.max_steps=3")
    plain = place.train(*keys, out="plain")
    with_it = place.train(*keys, f"adapter.method=[lora, {options}]", out="with")
    assert runs.differing(runs.tensors(plain), runs.tensors(with_it)) == []
    again = place.train(*keys, f"adapter.method=[lora, {options.replace('0.0', '5.0')}]", out="more")
    assert runs.differing(runs.tensors(plain), runs.tensors(again)) != []


def test_harmful_rows_have_to_be_named_and_usable(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with pytest.raises(RecipeError, match=r"adapter\.method: booster needs harmful rows: name their file"):
        place.train("adapter.method=booster")
    assert not (tmp_path / "run").exists()
