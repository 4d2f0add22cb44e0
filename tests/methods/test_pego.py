"""PEGO's term against its formula with dense matrices, and what a run makes of it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.adapters.storage import save_adapter
from lrft.errors import RecipeError
from lrft.methods import pego
from lrft.model import linear

OPTIONS = [{"norm": n, "reduction": r} for n in ("l1", "squares") for r in ("sum", "mean")]


def setup(options: dict[str, Any], model: Any = None, rank: int = 6, disturbed: bool = True, **more: Any) -> Any:
    model = tiny.make("llama").double() if model is None else model
    attached = lrft.attach(model, {"method": {"pego": options}, "rank": rank, **more})
    if disturbed:
        tiny.disturb(list(attached.trained().values()))
    return attached


def term(attached: Any, step: int = 0) -> Tensor | None:
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    optimizer = torch.optim.SGD(attached.trained().values())
    return composition.parts[-1].loss(Run(step, 100, attached.model, attached.modules, optimizer, 0, lambda t: t))


def naive(attached: Any, groups: int, norm: str = "l1", reduction: str = "sum", order: Any = None) -> Tensor:
    """The formula with every dW_i (d, k) and every product (d, d) made."""
    total: Any = 0.0
    for name, layer in attached.layers().items():
        own, site = layer.adapter.tensors(), layer.adapter.site
        r = site.rank // groups
        updates = [site.scale * own["B"][:, i * r : (i + 1) * r] @ own["A"][i * r : (i + 1) * r] for i in range(groups)]
        updates = [updates[i] for i in order or range(groups)]
        W = linear.dense(layer.base).to(own["A"].dtype)
        products = [W @ dW.T for dW in updates] + [a @ b.T for a, b in combinations(updates, 2)]
        for product in products:
            assert product.shape == (site.d, site.d), name
            entries = product.abs() if norm == "l1" else product.square()
            total = total + (entries.mean() if reduction == "mean" else entries.sum())
    return total


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
@pytest.mark.parametrize("rows", [1024, 7])
def test_the_term_and_its_gradients_are_those_of_the_formula(
    options: Any, model_name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pego, "ROWS_AT_ONCE", rows)
    model = tiny.make(model_name).double()
    attached = setup({"groups": 3, "strength": 0.25, **options}, model, alpha=9.0)
    ours, expected = term(attached), 0.25 * naive(attached, 3, **options)
    assert ours is not None
    assert torch.allclose(ours, expected, rtol=1e-10)
    trained = list(attached.trained().values())
    for a, b in zip(torch.autograd.grad(ours, trained), torch.autograd.grad(expected, trained), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item())


def test_the_order_of_the_groups_does_not_matter() -> None:
    attached = setup({"groups": 3, "strength": 1.0})
    ours = term(attached)
    assert ours is not None
    for order in ([2, 0, 1], [1, 0, 2]):
        assert torch.allclose(ours, naive(attached, 3, order=order), rtol=1e-10)


def test_one_group_leaves_only_the_weights_own_term() -> None:
    attached = setup({"groups": 1, "strength": 1.0})
    expected = sum(
        (linear.dense(layer.base) @ attached.delta(name).T).abs().sum() for name, layer in attached.layers().items()
    )
    assert torch.allclose(term(attached), expected, rtol=1e-10)


def test_it_is_zero_exactly_where_all_products_vanish() -> None:
    """W sees the first four inputs, each group two others of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5)).double()
    with torch.no_grad():
        model[0].weight[:, 4:] = 0
    attached = setup({"groups": 2, "strength": 1.0}, model, rank=4)
    own = attached.modules["0"].tensors()
    with torch.no_grad():
        own["A"].zero_()
        own["A"][:2, 4:6] = torch.randn(2, 2, dtype=torch.float64)
        own["A"][2:, 6:8] = torch.randn(2, 2, dtype=torch.float64)
    assert attached.delta("0").any()
    assert term(attached).item() == 0
    for row, column in ((0, 0), (0, 6)):  # now the first group shares an input with W, then with the other group
        with torch.no_grad():
            kept = own["A"][row, column].item()
            own["A"][row, column] = 1.0
            assert term(attached).item() > 0
            own["A"][row, column] = kept


def test_at_the_start_it_and_its_gradient_are_zero() -> None:
    attached = setup({"groups": 2}, disturbed=False)
    found = term(attached)
    found.backward()
    assert found.item() == 0
    assert all(not p.grad.any() for p in attached.trained().values())


def test_only_every_nth_step_has_the_term() -> None:
    attached = setup({"groups": 2, "every": 3})
    assert [step for step in range(7) if term(attached, step) is not None] == [0, 3, 6]


def test_the_file_is_one_lora_whose_groups_add_up(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    attached = setup({"groups": 3}, tiny.make("llama"))
    save_adapter(attached, tmp_path, base={"name": "tiny"})
    stored = load_file(tmp_path / "adapter_model.safetensors")
    for name in attached.modules:
        A, B = (stored[f"base_model.model.{name}.lora_{word}.weight"] for word in "AB")
        groups = sum(b @ a for a, b in zip(A.split(2), B.split(2, dim=1), strict=True))
        assert torch.allclose(groups, attached.delta(name), atol=1e-6), "the paper's factor is 1"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="pego: 4 groups do not divide rank 6"):
        setup({}, rank=6)
    for words, said in (
        (["mora", "pego"], "pego requires a pair"),
        (["pissa", "pego"], "conflicts with pissa: both would set the init of A and B"),
    ):
        with pytest.raises(RecipeError, match=said):
            lrft.attach(tiny.make("llama"), {"method": words, "rank": 4})


def test_in_a_run_the_products_end_smaller_and_a_resume_is_exact(place: Place) -> None:
    def end(strength: float) -> float:
        keys = (
            f"adapter.method={{pego: {{groups: 2, strength: {strength}}}}}",
            "checkpoint.every=3",
            "checkpoint.keep=9",
        )
        run = place.train(*keys, out=f"run-{strength}")
        part = runs.cut(run, 3, place.root / f"cut-{strength}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(run)) == []
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(place.root / "base", dtype=torch.float32)
        return naive(lrft.load_adapter(model, run / "last"), 2).item()

    assert end(0.1) < 0.5 * end(0.0)
