"""AFLoRA: its formula, which matrices are frozen when, and that they then stay."""

from __future__ import annotations

import math

import pytest
import runs
import torch
from runs import At, Place
from torch import Tensor, nn

import lrft
from lrft import registry
from lrft.adapters import compose
from lrft.adapters.part import Run

KEYS = (
    "adapter.method={aflora: {begin: 0.2, end: 0.8}}",
    "training.max_steps=20",
    "training.epochs=9",
    "training.weight_decay=0.1",
    "checkpoint.every=1",
    "checkpoint.keep=99",
)


def values(run: Run) -> dict[str, Tensor]:
    return {f"{s}.{n}": p.detach().clone() for s, adapter in run.adapters.items() for n, p in adapter.tensors().items()}


def watched(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """All tensors after each of 20 steps of a real run."""
    seen: list[dict[str, Tensor]] = []
    with monkeypatch.context() as patch:
        runs.add_parts(patch, At("after_step", 0, lambda run: seen.append(values(run))))
        place.train(*KEYS)
    return seen


def test_forward_and_start_are_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7)).double()
    attached = lrft.attach(model, {"method": "aflora", "rank": 3})
    adapter, W, bias = attached.modules["0"], model[0].base.weight, model[0].bias
    assert not adapter.v_b.any()
    assert torch.equal(adapter.v_d, torch.full((3,), 0.1, dtype=torch.float64))
    assert adapter.A.any()
    assert adapter.B.any()
    assert not attached.delta("0").any()
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_()
    x = torch.randn(5, 9, dtype=torch.float64)
    one_by_one = torch.stack(
        [adapter.v_b * (adapter.B @ (adapter.v_d * (adapter.A @ row))) + W @ row + bias for row in x]
    )
    assert torch.allclose(model(x), one_by_one, atol=1e-12)
    form = adapter.peft()
    assert torch.allclose(form.scale * form.B @ form.A, adapter.delta_weight(), atol=1e-12)


def test_matrices_are_frozen_on_the_cubic_schedule_for_good_and_vectors_always_move(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(place, monkeypatch)
    frozen: set[str] = set()
    matrices = [name for name in seen[0] if name.rsplit(".", 1)[-1] in ("A", "B")]
    fractions = []
    for before, (step, after) in zip(seen, enumerate(seen[1:], start=1), strict=False):
        still = {name for name in matrices if torch.equal(before[name], after[name])}
        assert frozen <= still, "a frozen matrix never moves again, whatever momentum and decay say"
        progress = min(max((step - 4) / 12, 0.0), 1.0)
        assert len(still) == len(matrices) - math.ceil(round(len(matrices) * (1 - progress) ** 3, 9)), step
        frozen = still
        fractions.append(1 - len(still) / len(matrices))
        for name in after.keys() - set(matrices):
            assert not torch.equal(before[name], after[name]), (name, step)
    assert fractions == sorted(fractions, reverse=True)
    assert fractions[0] == 1
    assert fractions[-1] == 0


def test_the_calmest_gradients_are_frozen_first() -> None:
    """An oracle that keeps the averages number by number, over gradients of known sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()
    attached = lrft.attach(model, {"method": "aflora", "rank": 2})
    part = compose.compose([("aflora", {"begin": 0.0, "end": 1.0})]).method
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-3)
    run = Run(0, 6, model, attached.modules, optimizer, 0, lambda t: t)
    history: dict[str, list[Tensor]] = {}
    for step in range(5):
        run.step = step
        for index, (name, p) in enumerate(attached.trained().items()):
            g = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + index), dtype=p.dtype)
            p.grad = g * (1 + index % 3)
            history.setdefault(name, []).append(p.grad.abs().clone())
        part.after_backward(run)
        optimizer.step()
        part.after_step(run)
        frozen = {name.removeprefix("frozen/") for name in part.state() if name.startswith("frozen/")}
        if step == 2:
            assert len(frozen) == 4 - math.ceil(4 * (3 / 4) ** 3) == 2
            scores: dict[str, float] = {}
            for name in ("0.A", "0.B", "1.A", "1.B"):
                products = []
                for series in torch.stack(history[name]).flatten(1).T.tolist():
                    m = u = 0.0
                    for now in series:
                        m = 0.85 * m + 0.15 * now
                        u = 0.85 * u + 0.15 * abs(now - m)
                    products.append(m * u)
                scores[name] = sum(products) / len(products)
            assert frozen == set(sorted(scores, key=lambda n: scores[n])[:2])
            assert all(not optimizer.state[attached.trained()[name]] for name in frozen), "moments are given up"


@pytest.mark.parametrize("at", [3, 9, 17])
def test_resume_is_bit_equal(place: Place, at: int) -> None:
    whole = place.train(*KEYS)
    part = runs.cut(whole, at, place.root / "cut")
    place.train(*KEYS, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


@pytest.mark.parametrize("other", ["pissa", "roselora", "lora+"])
def test_refused_with(other: str) -> None:
    assert registry.conflicts(["aflora", other], dropout=0.0, alpha_given=False)
    assert not registry.conflicts(["aflora", "dora"], dropout=0.0, alpha_given=False)
    assert registry.conflicts(["aflora"], dropout=0.0, alpha_given=True)
