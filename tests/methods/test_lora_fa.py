"""LoRA-FA: what is frozen, what is kept for the backward pass, and the corrected gradient against PEFT's optimiser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_site
from lrft.errors import RecipeError


def layer(d: int, k: int, options: dict[str, Any] | None = None, **more: Any) -> tuple[nn.Module, Any]:
    """(model of one float64 layer, handle)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    return model, lrft.attach(model, {"method": {"lora-fa": options or {}}, "rank": 3, **more})


def inputs(k: int, n: int = 40) -> Tensor:
    return torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def corrected(attached: Any, options: dict[str, Any]) -> None:
    part = compose.compose([("lora-fa", options)]).method
    part.after_backward(SimpleNamespace(adapters=attached.modules))  # type: ignore[arg-type]


@pytest.mark.parametrize("init", ["kaiming", "orthonormal", "svd"])
@pytest.mark.parametrize(("frozen", "trained"), [("A", "B"), ("B", "A")])
def test_the_frozen_factor_is_bitwise_unchanged_by_training(init: str, frozen: str, trained: str) -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    words = {"method": {"lora-fa": {"init": init, "frozen": frozen, "corrected": True}}, "rank": 3}
    attached = lrft.attach(model, words)
    before = attached.state_dict()
    assert {name.rsplit(".", 1)[-1] for name in attached.trained()} == {trained}
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for name, value in attached.state_dict().items():
        assert before[name].any() == name.endswith(frozen), "the trained factor starts at zero, the other does not"
        assert torch.equal(value, before[name]) == name.endswith(frozen), name


def test_kaiming_is_the_start_of_lora() -> None:
    A, lora = (
        lrft.attach(tiny.make("llama"), {"method": word, "rank": 3}, seed=4).state_dict()
        for word in ("lora-fa", "lora")
    )
    assert A.keys() == lora.keys()
    assert all(torch.equal(A[name], lora[name]) for name in A)


@pytest.mark.parametrize(("d", "k"), [(9, 14), (14, 9)])
@pytest.mark.parametrize("init", ["orthonormal", "svd"])
def test_orthonormal_rows(d: int, k: int, init: str) -> None:
    for frozen in ("A", "B"):
        model, attached = layer(d, k, {"init": init, "frozen": frozen})
        adapter, W = attached.modules["0"], model[0].base.weight
        rows = adapter.A if frozen == "A" else adapter.B.T
        assert torch.allclose(rows @ rows.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
        U, _, Vh = torch.linalg.svd(W)
        leading = Vh[:3] if frozen == "A" else U[:, :3].T
        assert torch.allclose(rows.T @ rows, leading.T @ leading, atol=1e-8) == (init == "svd")


def test_random_rows_have_no_preferred_direction() -> None:
    """Their projection is r / k of the identity on average. (The signs of rows mean nothing: B starts at zero.)"""
    site = Site("layer", 4, 5, 2, dtype=torch.float64)
    composition = compose.compose([("lora-fa", {"init": "orthonormal"})])
    built = [build_site(site, composition, None, fresh=True, seed=seed) for seed in range(1000)]
    rows = torch.stack([adapter.tensors()["A"].detach() for adapter in built])
    assert torch.allclose((rows.mT @ rows).mean(0), 2 / 5 * torch.eye(5, dtype=torch.float64), atol=0.05)


@pytest.mark.parametrize("init", ["kaiming", "orthonormal", "svd"])
def test_the_update_lives_in_the_rows_of_A(init: str) -> None:
    _, attached = layer(9, 14, {"init": init})
    tiny.disturb(list(attached.trained().values()))
    dW, A = attached.delta("0"), attached.modules["0"].A.detach()
    outside = torch.eye(14, dtype=torch.float64) - torch.linalg.pinv(A) @ A
    assert dW.abs().max() > 1e-2
    assert (dW @ outside).abs().max() <= 1e-12


def test_the_backward_pass_needs_r_numbers_for_each_token() -> None:
    """That no input is kept is what the paper is for. The mirror image and LoRA need it."""
    tokens, d, k = 40, 9, 14
    for words, keeps in (("lora-fa", False), ({"lora-fa": {"frozen": "B"}}, True), ("lora", True)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(k, d)).double()
        lrft.attach(model, {"method": words, "rank": 3})
        x, kept = inputs(k, tokens).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
            y = model(x)
        y.sum().backward()
        assert (torch.Size((tokens, k)) in kept) == keeps, words
        assert keeps or torch.Size((tokens, 3)) in kept


def test_training_with_dropout_equals_peft() -> None:
    from peft import LoraConfig, get_peft_model

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 7, bias=False))

    ours = make()
    attached = lrft.attach(ours, {"method": "lora-fa", "rank": 3, "alpha": 6.0, "dropout": 0.4})
    tiny.disturb(list(attached.trained().values()), size=0.3)
    theirs = get_peft_model(make(), LoraConfig(r=3, lora_alpha=6, lora_dropout=0.4, target_modules=["0", "2"]))
    copy_to_peft(attached, theirs)
    x, found = inputs(10).float(), []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(11)
        y = model(x)
        y.square().sum().backward()
        found.append(y.detach())
    assert torch.allclose(*found, atol=1e-5)
    assert not torch.allclose(found[0], ours.eval()(x), atol=1e-3), "dropout did nothing"
    for name, adapter in attached.modules.items():
        other = theirs.base_model.model.get_submodule(name).lora_B["default"].weight
        assert torch.allclose(adapter.B.grad, other.grad, rtol=1e-4, atol=1e-4), name


def copy_to_peft(attached: Any, theirs: Any) -> None:
    with torch.no_grad():
        for name, adapter in attached.modules.items():
            other = theirs.base_model.model.get_submodule(name)
            other.lora_A["default"].weight.copy_(adapter.A)
            other.lora_B["default"].weight.copy_(adapter.B)


@pytest.mark.parametrize("frozen", ["A", "B"])
@pytest.mark.parametrize("init", ["kaiming", "orthonormal"])
def test_a_corrected_step_is_the_projected_step_of_the_full_gradient(init: str, frozen: str) -> None:
    options = {"init": init, "frozen": frozen, "corrected": True}
    model, attached = layer(9, 14, options, alpha=7.0)
    tiny.disturb(list(attached.trained().values()))
    adapter, x, target, lr = attached.modules["0"], inputs(14), inputs(9), 0.01
    W = adapter.weight(model[0].base.weight).detach().requires_grad_()
    G = torch.autograd.grad((x @ W.T + model[0].bias - target).square().sum(), W)[0]
    before = attached.delta("0")
    (model(x) - target).square().sum().backward()
    corrected(attached, options)
    with torch.no_grad():
        for p in attached.trained().values():
            p.sub_(lr * p.grad)
    A, B = adapter.A.detach(), adapter.B.detach()
    wanted = G @ torch.linalg.pinv(A) @ A if frozen == "A" else B @ torch.linalg.pinv(B) @ G
    assert torch.allclose(attached.delta("0") - before, -lr * wanted, rtol=1e-5, atol=1e-6)
    assert wanted.abs().max() > 1


def test_without_the_option_the_gradient_is_left_alone() -> None:
    model, attached = layer(9, 14)
    model(inputs(14)).square().sum().backward()
    B = attached.modules["0"].B
    before = B.grad.clone()
    corrected(attached, {})
    assert torch.equal(B.grad, before)
    corrected(attached, {"corrected": True})
    assert not torch.allclose(B.grad, before)


def test_the_corrected_gradient_is_that_of_pefts_optimiser() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_lorafa_optimizer

    torch.manual_seed(3)
    ours = nn.Sequential(nn.Linear(10, 12))
    torch.manual_seed(3)
    theirs = get_peft_model(nn.Sequential(nn.Linear(10, 12)), LoraConfig(r=3, lora_alpha=7, target_modules=["0"]))
    attached = lrft.attach(ours, {"method": ["lora-fa", "dora"], "rank": 3, "alpha": 7.0})
    inner = attached.modules["0"].inner  # found inside a wrapper too
    x = inputs(10).float()
    plain = SimpleNamespace(modules={"0": inner})
    copy_to_peft(plain, theirs)
    optimizer = create_lorafa_optimizer(theirs, r=3, lora_alpha=7, lr=1e-3)
    theirs(x).square().sum().backward()
    inner.B.grad = theirs.base_model.model[0].lora_B["default"].weight.grad.clone()
    corrected(attached, {"corrected": True})
    optimizer.step()
    (state,) = (state for state in optimizer.state.values() if "exp_avg_B" in state)
    theirs_grad = state["exp_avg_B"] / (1 - 0.9)
    # PEFT multiplies in bfloat16 where it can.
    assert (inner.B.grad - theirs_grad).norm() <= 0.01 * theirs_grad.norm()


def test_refused_where_the_rows_do_not_fit_or_there_is_no_trained_pair() -> None:
    for words, sentence in (
        ({"method": {"lora-fa": {"init": "orthonormal"}}, "rank": 25}, "at most 24 orthonormal rows: lower rank 25"),
        ({"method": {"lora-fa": {"init": "svd"}}, "rank": 13}, r"k_proj: lora-fa finds at most 12 svd rows"),
        ({"method": ["lora-fa", "lora+"], "rank": 2}, "lora\\+ requires a pair"),
        ({"method": ["lora-fa", "pissa"], "rank": 2}, "pissa requires a pair"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words)
    attached = lrft.attach(tiny.make("llama"), {"method": "lora-fa", "rank": 25})
    assert attached.trained(), "uniform rows fit any rank"
