"""SORSA against its formula, its start against a full decomposition, its penalty against autograd."""

from __future__ import annotations

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
from lrft.errors import RecipeError
from lrft.model import linear


def attach(options: dict[str, Any] | None = None, *shapes: tuple[int, int], moved: bool = True) -> Any:
    """A handle on float64 layers of (d, k), rank 3."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(k, d) for d, k in shapes or ((9, 14),))).double()
    attached = lrft.attach(model, {"method": {"sorsa": options or {}}, "rank": 3})
    if moved:
        tiny.disturb(list(attached.trained().values()))
    return attached


def penalise(attached: Any, rate: float = 1.0) -> dict[str, Tensor]:
    """The gradients that the penalty alone leaves."""
    for p in attached.trained().values():
        p.grad = torch.zeros_like(p)
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    run = Run(0, 10, attached.model, attached.modules, None, 0, lambda t: t, learning_rate=rate)
    composition.method.after_backward(run)
    return {name: p.grad for name, p in attached.trained().items()}


@pytest.mark.parametrize("svd", ["exact", "randomized"])
@pytest.mark.parametrize(("d", "k"), [(9, 14), (14, 9)])
def test_the_start_is_the_decomposition_and_leaves_the_weight_alone(svd: str, d: int, k: int) -> None:
    attached = attach({"svd": svd}, (d, k), moved=False)
    inner, W = attached.modules["0"].inner, attached.layers()["0"].base.weight.detach()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    one = torch.eye(3, dtype=W.dtype)
    assert torch.allclose(inner.A @ inner.A.T, one, atol=1e-12)
    assert torch.allclose(inner.B.T @ inner.B, one, atol=1e-12)
    assert torch.allclose(inner.sigma, S[:3], rtol=1e-10)
    assert torch.allclose(inner.delta_weight(), (U[:, :3] * S[:3]) @ Vh[:3], atol=1e-10)
    residual = W - inner.delta_weight()
    assert torch.allclose(residual + (inner.B * inner.sigma) @ inner.A, W, atol=1e-12)
    assert not attached.delta("0").any()


@pytest.mark.parametrize(("d", "k"), [(9, 14), (14, 9)])
def test_forward_and_merge_are_the_formula(d: int, k: int) -> None:
    attached = attach({}, (d, k), moved=False)
    start = {name: value for name, value in attached.state_dict().items() if ".start." not in name}
    tiny.disturb(list(attached.trained().values()))
    now = attached.state_dict()
    W = attached.layers()["0"].base.weight.detach()
    old, new = (s["0.B"] @ torch.diag(s["0.sigma"]) @ s["0.A"] for s in (start, now))
    assert (new - old).abs().max() > 0.1
    x = torch.randn(5, k, dtype=W.dtype, generator=torch.Generator().manual_seed(1))
    layer = attached.layers()["0"]
    assert torch.allclose(layer(x), x @ (W - old + new).T + layer.base.bias, atol=1e-11)
    assert torch.allclose(attached.modules["0"].weight(linear.dense(layer.base)), W - old + new, atol=1e-11)


def definition(attached: Any, squared: bool) -> Tensor:
    terms = []
    for adapter in attached.modules.values():
        for gram in (adapter.inner.A @ adapter.inner.A.T, adapter.inner.B.T @ adapter.inner.B):
            norm = torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype))
            terms.append(norm**2 if squared else norm)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("squared", [False, True])
def test_the_penalty_is_the_mean_over_both_factors_of_all_layers(squared: bool) -> None:
    attached = attach({"penalty": 0.7, "squared": squared}, (9, 14), (5, 9), (12, 5))
    trained = attached.trained()
    expected = torch.autograd.grad(0.7 * definition(attached, squared), trained.values(), allow_unused=True)
    found = penalise(attached)
    for (name, gradient), wanted in zip(found.items(), expected, strict=True):
        assert (wanted is None) == name.endswith("sigma"), name
        assert torch.allclose(gradient, torch.zeros_like(gradient) if wanted is None else wanted, atol=1e-12), name


def test_the_weight_is_the_penalty_over_the_runs_rate() -> None:
    """The authors' trainer: gamma / learning_rate, 13.3 for 4e-4 and 3e-5."""
    found = [penalise(attach({"penalty": penalty}), rate) for penalty, rate in ((4e-4, 3e-5), (4e-4 / 3e-5, 1.0))]
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-12), name


def test_twice_the_layers_halve_the_slope_of_each() -> None:
    one, two = (penalise(attach({}, *shapes)) for shapes in (((9, 14),), ((9, 14), (9, 9))))
    # The first layer is the same in both.
    assert torch.allclose(one["0.A"], 2 * two["0.A"], atol=1e-12)


def test_at_the_start_the_penalty_is_nothing_and_its_slope_is_finite() -> None:
    for squared, largest in ((True, 1e-4), (False, 2.001)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(140, 90))
        attached = lrft.attach(model, {"method": {"sorsa": {"penalty": 2.0, "squared": squared}}, "rank": 8})
        inner = attached.modules["0"].inner
        assert (inner.A @ inner.A.T - torch.eye(8)).norm() < 1e-5
        for name, gradient in penalise(attached).items():
            assert gradient.isfinite().all(), name
            assert gradient.norm() <= largest, name
    with torch.no_grad():  # orthonormal to the last bit
        inner.A.copy_(torch.eye(8, 140))
        inner.B.copy_(torch.eye(90, 8))
    assert not any(gradient.any() for gradient in penalise(attached).values())


def test_a_rotation_of_the_directions_is_not_penalised() -> None:
    attached = attach({"penalty": 1.0})
    before = definition(attached, False)
    with torch.no_grad():
        attached.modules["0"].inner.A.copy_(
            torch.linalg.qr(torch.randn(3, 3).double()).Q @ attached.modules["0"].inner.A
        )
    assert torch.allclose(definition(attached, False), before, atol=1e-12)


def test_the_slope_turns_the_start_of_the_copy_nowhere() -> None:
    attached = attach()
    penalise(attached)
    assert all(p.grad is None for p in attached.modules["0"].start.parameters())


KEYS = ("adapter.target_modules=[q_proj]", "adapter.method={sorsa: {penalty: 0.05}}", "training.max_steps=2")


def test_the_penalty_is_not_clipped_and_not_divided_by_accumulation(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it adds in the second step, for one and for four micro-batches a step, with gradients clipped to nothing."""
    found: list[dict[str, Tensor]] = []

    def context(run: Any) -> None:
        found.append({site: adapter.inner.A.grad.clone() for site, adapter in run.adapters.items()})

    runs.add_parts(monkeypatch, runs.At("after_backward", 2, context))
    for micro in (4, 1):
        place.train(
            *KEYS, "training.max_grad_norm=1e-4", f"training.micro_batch_size={micro}",
            "training.optimizer={adamw: {eps: 0.01}}", "training.warmup_steps=0", out=f"micro-{micro}",
        )  # fmt: skip
    for site, gradient in found[0].items():
        assert gradient.norm() > 0.5, site
        assert torch.allclose(gradient, found[1][site], rtol=1e-3, atol=1e-5), site


def test_the_penalty_holds_the_vectors_near_orthonormal(place: Place) -> None:
    excess = []
    for penalty in (0.0, 0.05):
        run = place.train(
            "adapter.target_modules=[q_proj]", f"adapter.method={{sorsa: {{penalty: {penalty}, squared: true}}}}",
            out=f"penalty-{penalty}",
        )  # fmt: skip
        pairs = {name: t for name, t in runs.tensors(run).items() if name.endswith(".A") and ".start." not in name}
        assert pairs
        excess.append(sum((A @ A.T - torch.eye(len(A))).norm().item() for A in pairs.values()))
    assert excess[1] < 0.8 * excess[0]


def test_a_resumed_run_is_the_run(place: Place) -> None:
    keys = (*KEYS[:2], "training.weight_decay=0.1", "checkpoint.every=1", "checkpoint.keep=9")
    whole = place.train(*keys)
    part = runs.cut(whole, 3, place.root / "cut")
    place.train(*keys, out="cut", resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_refused_with_what_it_does_not_go_with() -> None:
    model = nn.Sequential(nn.Linear(14, 9))
    for words, sentence in (
        ({"method": ["sorsa", "dora"]}, "both would reparametrise magnitude and direction"),
        ({"method": ["sorsa", "rslora"]}, "rslora requires a factor alpha/r; sorsa has no"),
        ({"method": ["sorsa", "pissa"]}, "pissa requires a pair of factors A and B; sorsa has no such pair"),
        ({"method": ["sorsa", "lora+"]}, "lora\\+ requires a pair of factors A and B; sorsa has no such pair"),
        ({"method": "sorsa", "alpha": 4.0}, "sorsa has no scaling factor alpha/r: remove alpha"),
        ({"method": "sorsa", "dropout": 0.1}, "sorsa requires adapter.dropout: 0, got 0.1"),
        ({"method": "sorsa", "rank": 10}, "a 9 x 14 layer has 9 singular vectors: lower rank 10"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(model, {"rank": 2, **words})
