"""The nuclear norm of an update against the dense decomposition, and what a run makes of the penalty."""

from __future__ import annotations

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Factors
from lrft.adapters.part import Run
from lrft.methods.nuclear_norm import bound, nuclear_norm


def factors(d: int = 7, k: int = 9, r: int = 3, s: float = 1.5) -> Factors:
    generator = torch.Generator().manual_seed(1)
    B = torch.randn(d, r, dtype=torch.float64, generator=generator)
    A = torch.randn(r, k, dtype=torch.float64, generator=generator)
    return Factors(B.requires_grad_(), A.requires_grad_(), s)


def dense(f: Factors) -> Tensor:
    return f.scale * f.B @ f.A


@pytest.mark.parametrize(("d", "k", "r"), [(7, 9, 3), (9, 7, 3), (5, 6, 5), (3, 8, 5)])
def test_the_core_has_the_singular_values_of_the_dense_update(d: int, k: int, r: int) -> None:
    f = factors(d, k, r)
    expected = torch.linalg.svdvals(dense(f)).sum()
    assert torch.allclose(nuclear_norm(f), expected, rtol=1e-12)
    ours = torch.autograd.grad(nuclear_norm(f), (f.B, f.A))
    theirs = torch.autograd.grad(expected, (f.B, f.A))
    assert all(torch.allclose(*both, atol=1e-10) for both in zip(ours, theirs, strict=True))


def test_the_bound_is_above_and_balanced_factors_meet_it() -> None:
    f = factors()
    exact = torch.linalg.svdvals(dense(f)).sum()
    assert bound(f) > 1.05 * exact
    U, S, Vh = torch.linalg.svd((f.B @ f.A).detach(), full_matrices=False)
    U, S, Vh = U[:, :3], S[:3], Vh[:3]
    balanced = Factors(U * S.sqrt(), S.sqrt()[:, None] * Vh, f.scale)
    assert torch.allclose(dense(balanced), dense(f), atol=1e-12), "the update is the same"
    assert torch.allclose(bound(balanced), exact, rtol=1e-12)


def test_zero_and_equal_singular_values_have_finite_gradients() -> None:
    f = factors()
    for B, A in (
        (torch.zeros_like(f.B), f.A),
        (torch.zeros_like(f.B), torch.zeros_like(f.A)),
        (torch.eye(7, 3, dtype=torch.float64), torch.eye(3, 9, dtype=torch.float64)),
    ):
        B, A = B.detach().requires_grad_(), A.detach().requires_grad_()
        value = nuclear_norm(Factors(B, A, 2.0))
        assert value.item() == pytest.approx(2.0 * torch.linalg.svdvals((B @ A).detach()).sum().item())
        for gradient in torch.autograd.grad(value, (B, A)):
            assert gradient.isfinite().all()
            assert gradient.any() == bool(B.any())


def term(words: object, step: int = 99) -> tuple[Tensor | None, lrft.Attached]:
    model = tiny.make("llama").double()
    attached = lrft.attach(model, {"method": words, "rank": 3, "target_modules": ["q_proj", "down_proj"]})
    tiny.disturb(list(attached.trained().values()))
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    part = next(part for part in composition.parts if part.name == "nuclear-norm")
    run = Run(step, 100, model, attached.modules, torch.optim.SGD(attached.trained().values()), 0, lambda t: t)
    return part.loss(run), attached


def test_the_term_is_the_sum_over_layers() -> None:
    value, attached = term({"nuclear-norm": {"form": "exact", "strength": 0.3}})
    expected = sum(torch.linalg.svdvals(attached.delta(name)).sum() for name in attached.modules)
    assert value is not None
    assert torch.allclose(value, 0.3 * expected, rtol=1e-10)
    value, attached = term({"nuclear-norm": {"strength": 0.3}})
    own = [adapter.tensors() for adapter in attached.modules.values()]
    squares = sum((t["A"] ** 2).sum() + (t["B"] ** 2).sum() for t in own)
    assert value is not None
    assert torch.allclose(value, 0.3 * 2.0 / 2 * squares, rtol=1e-10)


def test_over_an_anchored_start_the_change_is_measured_and_under_dora_the_update() -> None:
    value, attached = term(["pissa", {"nuclear-norm": {"form": "exact", "strength": 1.0}}])
    expected = sum(torch.linalg.svdvals(attached.delta(name)).sum() for name in attached.modules)
    assert value is not None
    assert torch.allclose(value, expected, rtol=1e-8)
    value, attached = term(["dora", {"nuclear-norm": {"form": "exact", "strength": 1.0}}])
    own = [adapter.tensors() for adapter in attached.modules.values()]
    assert value is not None
    assert torch.allclose(value, sum(torch.linalg.svdvals(2.0 * t["B"] @ t["A"]).sum() for t in own), rtol=1e-10)


def test_the_bound_over_a_start_that_is_not_zero_is_advised_against() -> None:
    for words, said in (
        ([("pissa", {}), ("nuclear-norm", {})], True),
        ([("pissa", {}), ("nuclear-norm", {"form": "exact"})], False),
        ([("nuclear-norm", {})], False),
    ):
        composition = compose.compose(words)
        advice = [text for part in composition.parts for text in part.advice([], composition.offset_from_init)
                  if part.name == "nuclear-norm"]  # fmt: skip
        assert bool(advice) == said


def test_it_begins_after_its_share_of_the_run() -> None:
    assert term({"nuclear-norm": {"after": 0.5}}, step=49)[0] is None
    assert term({"nuclear-norm": {"after": 0.5}}, step=50)[0] is not None
    assert term({"nuclear-norm": {"after": 0.0}}, step=0)[0] is not None


def test_in_a_run_the_update_ends_smaller_and_a_resume_is_exact(place: Place) -> None:
    def sizes(strength: float, form: str) -> float:
        words = f"adapter.method={{nuclear-norm: {{strength: {strength}, form: {form}, after: 0}}}}"
        run = place.train(words, "checkpoint.every=3", "checkpoint.keep=9", out=f"{form}-{strength}")
        if strength and form == "exact":
            part = runs.cut(run, 3, place.root / "cut")
            place.train(words, "checkpoint.every=3", "checkpoint.keep=9", out=part.name, resume="last")
            assert runs.differing(runs.tensors(part), runs.tensors(run)) == []
        own = {name.split(":")[1]: t for name, t in runs.tensors(run).items() if "lora_" in name}
        pairs = [(t, own[n.replace("lora_A", "lora_B")]) for n, t in own.items() if "lora_A" in n]
        return sum(torch.linalg.svdvals(B @ A).sum().item() for A, B in pairs)

    without = sizes(0.0, "exact")
    assert sizes(1.0, "exact") < 0.5 * without
    assert sizes(1.0, "bound") < 0.5 * without
