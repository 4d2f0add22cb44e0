"""The nuclear norm of an update against the dense decomposition, and what a run makes of the penalty."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Factors
from lrft.adapters.part import Run
from lrft.errors import CheckFailed, RecipeError
from lrft.methods.nuclear_norm import NuclearNorm, bound, nuclear_norm
from lrft.objectives.sft import Outputs


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


IDS = torch.arange(3, 9)[None]
ALL = torch.ones(1, 6, dtype=torch.bool)
SOME = torch.tensor([[False, False, True, True, True, False]])


def dense_jacobian(function: Any, x: Tensor, y: Tensor) -> Tensor:
    """(T, width, T, width) of (1, T, width) -> (1, T, width), in units of the root mean squares of x and y."""
    J = torch.autograd.functional.jacobian(function, x)[0, :, :, 0]
    rms = [t.detach().square().mean(-1).sqrt()[0] for t in (x, y)]
    return J * rms[0][:, None] / rms[1][:, None, None, None]


def halves_of(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The dense Jacobians of a decoder of two blocks: of its first half, of its second, of both."""
    decoder = model.model
    first, second = (copy.deepcopy(decoder) for _ in range(2))
    for part, own in ((first, decoder.layers[0]), (second, decoder.layers[1])):
        part.config.num_hidden_layers = 1
        part.layers = nn.ModuleList([own])
    first.norm = nn.Identity()

    def through(part: Any) -> Any:
        return lambda x: part(inputs_embeds=x, use_cache=False).last_hidden_state

    x = model.get_input_embeddings()(IDS).detach()
    h = through(first)(x).detach()
    y = through(decoder)(x)
    return (
        dense_jacobian(through(first), x, h),
        dense_jacobian(through(second), h, y),
        dense_jacobian(through(decoder), x, y),
    )


def adapted() -> tuple[Any, lrft.Attached]:
    model = tiny.make("llama").double().train()
    attached = lrft.attach(model, {"method": "lora", "rank": 3, "target_modules": ["q_proj", "v_proj", "down_proj"]})
    tiny.disturb(list(attached.trained().values()))
    return model, attached


def jacobian_term(model: Any, attached: lrft.Attached, places: Tensor = ALL, **options: Any) -> Tensor:
    part = NuclearNorm(form="jacobian", **options)
    run = Run(99, 100, model, attached.modules, torch.optim.SGD(attached.trained().values()), 0, lambda t: t)
    outputs = Outputs(
        torch.zeros(int(places.sum())),
        lambda: torch.zeros(0),
        lambda: torch.zeros(0),
        places=places,
        again=lambda: model(IDS),
    )
    found = part.output_loss(run, outputs)
    assert found is not None
    return found


@pytest.mark.parametrize("places", [ALL, SOME], ids=["all", "some"])
def test_two_noisy_halves_have_the_squares_of_the_dense_jacobians(places: Tensor) -> None:
    model, attached = adapted()
    h, g, f = halves_of(model)
    expected = (h[places[0]].square().sum() + g[places[0]].square().sum()) / 2
    torch.manual_seed(3)
    with torch.no_grad():
        draws = [jacobian_term(model, attached, places, strength=1.0, noise=1e-4).item() for _ in range(50)]
    assert sum(draws) / len(draws) * int(places.sum()) == pytest.approx(expected.item(), rel=0.1)
    if places.all():
        assert torch.linalg.svdvals(f.reshape(6 * tiny.WIDTH, -1)).sum() < expected


def test_the_model_is_left_as_it_was_also_when_a_pass_fails() -> None:
    model, attached = adapted()
    before, blocks = model(IDS).logits, list(model.model.layers)
    jacobian_term(model, attached)
    assert torch.equal(model(IDS).logits, before)
    assert list(model.model.layers) == blocks
    bare = nn.Module()
    bare.get_decoder = lambda: bare  # type: ignore[assignment]
    bare.get_output_embeddings = lambda: None  # type: ignore[assignment]
    bare.get_input_embeddings = lambda: bare  # type: ignore[assignment]
    with pytest.raises(CheckFailed, match="transformers declares no blocks of Module"):
        jacobian_term(bare, attached)


JACOBIAN = "adapter.method={nuclear-norm: {form: jacobian, strength: %s, after: 0, noise: 0.001}}"


def test_in_a_run_the_jacobian_gets_smaller_whatever_is_computed_again(place: Place) -> None:
    keys = ("checkpoint.every=3", "checkpoint.keep=9", "adapter.dropout=0.2", "training.micro_batch_size=1")
    run = place.train(JACOBIAN % 0.01, *keys, out="jacobian")
    part = runs.cut(run, 3, place.root / "jacobian-cut")
    place.train(JACOBIAN % 0.01, *keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(run)) == []
    again = place.train(JACOBIAN % 0.01, *keys, "training.gradient_checkpointing=full", out="jacobian-again")
    assert runs.distance(runs.tensors(again), runs.tensors(run)) < 1e-4
    weak = place.train(JACOBIAN % 1e-6, *keys, out="jacobian-weak")
    ends = [runs.records(r)[-1]["regularisation"] / c for r, c in ((run, 0.01), (weak, 1e-6))]
    assert ends[0] < 0.9 * ends[1]


def test_its_options_are_for_its_form_alone(place: Place) -> None:
    with pytest.raises(RecipeError, match=r"nuclear-norm\.noise is only for form: jacobian; form is exact"):
        place.recipe("adapter.method={nuclear-norm: {form: exact, noise: 0.1}}")
