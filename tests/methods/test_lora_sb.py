"""LoRA-SB: frozen frames from the sign of the gradient, and a core that begins with the run's first step."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import tiny
import torch
from gradient_init import NAMES, RANK, attach, batch, gradients, losses, near, observed, place, resumed_without_a_look
from runs import At, Place
from torch import Tensor
from two_processes import KEYS, launch

import lrft
from lrft.adapters import compose
from lrft.adapters.attach import build_site
from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.methods.lora_sb import LoraSb

__all__ = ["place"]
EXACT = {"lora-sb": {"svd": "exact"}}
ETA = 0.01


def begun(method: Any = EXACT, step: int = 0) -> Any:
    """Attached, with the hook before a step called as a run with a learning rate of ETA does."""
    attached = attach(method)
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=ETA)
    LoraSb().before_step(Run(step, 9, attached.model, attached.modules, optimizer, 0, lambda t: t))
    return attached


def eye(n: int = RANK) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


def test_the_first_step_begins_with_the_best_part_of_the_signs() -> None:
    attached = begun()
    for name, G in gradients(1).items():
        own = attached.modules[name]
        target = -ETA * G.sign()
        U, S, Vh = torch.linalg.svd(target)
        delta = attached.delta(name)
        assert near(delta, U[:, :RANK] @ torch.diag(S[:RANK]) @ Vh[:RANK], 1e-8), name
        assert torch.linalg.matrix_norm(delta, 2) <= S[0] * (1 + 1e-9)
        assert near(own.B.T @ own.B, eye(), 1e-10)
        assert near(own.A @ own.A.T, eye(), 1e-10)
        assert near(own.R.detach(), torch.diag(S[:RANK]), 1e-8)
        assert (delta * G).sum() < 0


def test_until_then_the_model_is_the_base_and_no_later_step_begins_again() -> None:
    assert not any(p.any() for p in begun(step=1).trained().values())
    assert any(p.any() for p in begun(step=0).trained().values())


def test_the_core_alone_is_trained_and_its_step_is_the_projected_gradient() -> None:
    """One step of gradient descent on R moves W by -lr B B' G A' A."""
    attached = begun()
    assert all(name.endswith(".R") for name in attached.trained())
    before = {name: attached.delta(name) for name in NAMES}
    attached.model(**batch(1)).loss.backward()
    found = {}
    for name in NAMES:
        own = attached.modules[name]
        assert own.A.grad is None
        assert own.B.grad is None
        found[name] = (own.B @ own.B.T, own.A.T @ own.A)
        with torch.no_grad():
            own.R -= 0.1 * own.R.grad
    # The gradient by the weights where the adapted model is, by autograd on a plain one.
    plain = tiny.make("llama").double()
    weights = [plain.get_submodule(name).weight for name in NAMES]
    with torch.no_grad():
        for name, weight in zip(NAMES, weights, strict=True):
            weight += before[name]
    for name, G in zip(NAMES, torch.autograd.grad(plain(**batch(1)).loss, weights), strict=True):
        left, right = found[name]
        assert near(attached.delta(name) - before[name], -0.1 * left @ G @ right, 1e-4), name


def test_the_size_of_the_loss_does_not_matter() -> None:
    one, thousand = observed("lora-sb", 1.0), observed("lora-sb", 1000.0)
    for name in NAMES:
        for part in ("U", "S", "V"):
            assert near(thousand[name][part], one[name][part]), name


def test_randomized_is_within_two_percent_of_the_leading_energy() -> None:
    for name, seen in observed("lora-sb", 1.0).items():
        best = torch.linalg.svdvals(gradients(1)[name].sign())[:RANK].square().sum()
        assert seen["S"].square().sum() >= 0.98 * best, name


def test_a_saved_adapter_needs_no_data() -> None:
    attached, composition = begun(), compose.compose([("lora-sb", {})])
    own = attached.modules[NAMES[0]]
    again = build_site(own.site, composition, None, fresh=False, seed=99)
    again.load(own.tensors())
    assert torch.equal(again.delta_weight(), attached.delta(NAMES[0]))
    assert set(again.tensors()) == {"A", "B", "R", "S"}


def test_refused_with_a_factor_a_pair_a_restart_and_beyond_the_layer() -> None:
    for words, sentence in (
        ({"method": "lora-sb", "alpha": 4.0}, "lora-sb has no scaling factor alpha/r"),
        ({"method": ["lora-sb", "rslora"]}, "rslora requires a factor alpha/r"),
        ({"method": ["lora-sb", "lora+"]}, "lora\\+ requires a pair"),
        ({"method": ["lora-sb", "pissa"]}, "lora-sb and pissa both set the init of A and B"),
        ({"method": ["lora-sb", "relora"]}, "relora conflicts with lora-sb"),
        ({"method": "lora-sb", "rank": 13}, r"k_proj: a 12 x 24 layer has 12 singular vectors: lower rank 13"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words, batches=[batch(1)])


@pytest.mark.parametrize(("warmup", "eta"), [(2, 0.005), (0, 0.01)])
def test_a_run_takes_the_size_of_its_first_learning_rate(
    place: Place, monkeypatch: pytest.MonkeyPatch, warmup: int, eta: float
) -> None:
    """Learning rate 0.01 over the warm-up's steps."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(run: Run) -> None:
        modules: Any = run.adapters
        found.update({name: (own.R.detach().clone(), own.S.detach().clone()) for name, own in modules.items()})

    runs.add_parts(monkeypatch, At("after_backward", 1, note))
    keys = ("adapter.method=lora-sb", "training.max_steps=3", f"training.warmup_steps={warmup}")
    place.train(*keys, out=f"warm-{warmup}")
    for name, (R, S) in found.items():
        assert torch.allclose(R, torch.diag(eta * S)), name
        assert S[0] > 1


def test_a_run_is_resumed_to_the_same_bits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resumed_without_a_look(place, monkeypatch, "lora-sb", LoraSb)
    assert losses(whole)[-1] < losses(whole)[0]


@pytest.mark.slow
def test_two_processes_start_and_train_as_one(place: Place) -> None:
    one = place.train(*KEYS, "adapter.method=lora-sb", out="one-sb")
    two = launch(place, "two-sb", "adapter.method=lora-sb")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    merged = []
    for run in (one, two):
        own = runs.tensors(run)
        sites = sorted(name[:-2] for name in own if name.endswith(".R") and "adapter" in name)
        merged.append(torch.cat([(own[f"{s}.B"] @ own[f"{s}.R"] @ own[f"{s}.A"]).flatten() for s in sites]))
    assert near(merged[1], merged[0], 1e-2)
