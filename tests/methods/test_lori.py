"""LoRI: what is frozen, which entries of B move, and the two phases of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from runs import At, Place
from torch import Tensor, nn
from two_processes import KEYS as BOTH
from two_processes import launch

import lrft
from lrft import registry
from lrft.adapters.part import Run
from lrft.utils import files

METHOD = "adapter.method={lori: {sparsity: 0.7, calibration: 0.4}}"
KEYS = (
    METHOD,
    "training.epochs=9",
    "training.max_steps=10",
    "training.weight_decay=0.1",
    "checkpoint.every=1",
    "checkpoint.keep=99",
)


def factors(run: Path, word: str) -> dict[str, Tensor]:
    return {name: t for name, t in runs.tensors(run).items() if f"lora_{word}" in name}


def test_the_mask_is_the_largest_entries_of_all_layers_and_nothing_else_moves(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def all_B(run: Run) -> Tensor:
        return torch.cat([a.tensors()["B"].detach().flatten() for a in run.adapters.values()])

    def gradient(run: Run) -> None:
        seen["gradient"] = torch.cat([a.tensors()["B"].grad.flatten() for a in run.adapters.values()])

    watchers = [
        At("after_step", 4, lambda run: seen.update(first=all_B(run))),
        At("before_step", 5, lambda run: seen.update(cleared=all_B(run))),
        At("after_backward", 5, gradient),
        At("after_step", 10, lambda run: seen.update(last=all_B(run))),
    ]
    with monkeypatch.context() as patch:
        runs.add_parts(patch, *watchers)
        run = place.train(*KEYS)
    sizes = seen["first"].abs().tolist()
    kept = math.floor(round(0.3 * len(sizes), 6))
    line = sorted(sizes, reverse=True)[kept - 1]
    mask = torch.tensor([size >= line for size in sizes])
    assert int(mask.sum()) == kept
    assert not seen["cleared"].any()
    assert torch.equal(seen["gradient"] != 0, mask)
    assert torch.equal(seen["last"] != 0, mask)
    stored = files.read_tensors(run / "last/../parts.safetensors")
    assert sum(int(m.sum()) for m in stored.values()) == kept
    shares = {float(m.double().mean()) for m in stored.values()}
    assert len(shares) > 1, "the mask is over all layers: their shares differ"


def test_the_second_phase_is_a_fresh_optimiser_on_a_fresh_B(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step under the mask is Adam's first: every entry moves by the learning rate."""
    found: dict[str, float] = {}

    def note(run: Run) -> None:
        B = next(iter(run.adapters.values())).tensors()["B"].detach()
        found["moved"], found["lr"] = B.abs().max().item(), run.optimizer.param_groups[0]["lr"]

    with monkeypatch.context() as patch:
        runs.add_parts(patch, At("after_step", 5, note))
        place.train(*KEYS, "training.max_grad_norm=none")
    assert found["moved"] == pytest.approx(found["lr"], rel=1e-2)


def test_A_is_bitwise_constant(place: Place) -> None:
    whole = place.train(*KEYS)
    first, last = (
        files.read_tensors(whole / f"checkpoints/step-{step:06d}/adapter/adapter_model.safetensors") for step in (1, 10)
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, last[name]) == ("lora_A" in name), name
    lora = place.train("training.max_steps=1", "training.learning_rate=1e-30", "training.warmup_steps=0", out="lora")
    for name, A in factors(lora, "A").items():
        assert torch.allclose(A, factors(whole, "A")[name]), "the start is LoRA's"


@pytest.mark.parametrize("at", [3, 4, 7])
def test_resume_is_bit_equal_in_both_phases(place: Place, at: int) -> None:
    """4 is the checkpoint between the phases."""
    whole = place.train(*KEYS)
    part = runs.cut(whole, at, place.root / "cut")
    place.train(*KEYS, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_without_sparsity_it_is_one_phase(place: Place) -> None:
    dense = place.train(METHOD.replace("0.7", "0.0"), *KEYS[1:], out="dense")
    lora_fa = place.train("adapter.method=lora-fa", *KEYS[1:], out="lora-fa")
    assert runs.differing(factors(dense, "B"), factors(lora_fa, "B")) == []


def made(seed: int, size: int = 400) -> Any:
    attached = lrft.attach(nn.Sequential(nn.Linear(size, size)), {"method": "lori", "rank": 8}, seed=seed)
    with torch.no_grad():
        attached.modules["0"].B.normal_(generator=torch.Generator().manual_seed(seed))
    return attached.modules["0"]


def test_adapters_of_two_seeds_hardly_meet_and_add_up() -> None:
    one, two = made(1), made(2)
    a, b = (nn.functional.normalize(adapter.A.detach(), dim=1) for adapter in (one, two))
    assert (a @ b.T).square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(400), rel=0.4)
    B, A = torch.cat([one.B, two.B], dim=1), torch.cat([one.A, two.A])
    assert torch.allclose(2.0 * B @ A, one.delta_weight() + two.delta_weight(), atol=1e-4)


@pytest.mark.slow
def test_masks_agree_over_processes(place: Place) -> None:
    keys = (METHOD, "training.epochs=2")
    one, two = (place.train(*BOTH, *keys, out="one"), launch(place, "two", *keys))
    assert factors(one, "B")
    for name, B in factors(one, "B").items():
        assert torch.equal(B != 0, factors(two, "B")[name] != 0), name
        assert torch.allclose(B, factors(two, "B")[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("other", ["pissa", "lora+", "roselora", "lora-fa"])
def test_refused_with(other: str) -> None:
    assert registry.conflicts(["lori", other], dropout=0.0, alpha_given=False)
    assert not registry.conflicts(["lori", "rslora", "dora"], dropout=0.0, alpha_given=False)
