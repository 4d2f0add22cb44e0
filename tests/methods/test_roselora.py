"""RoseLoRA: what is kept against the counts of the rule, an oracle in plain Python, and a run against LoRA's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import runs
import torch
from runs import Place
from torch import Tensor, nn
from two_processes import KEYS as BOTH
from two_processes import launch

import lrft
from lrft import registry
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.utils import files

D, K, RANK = 300, 200, 8
KEYS = ("adapter.layers=[0]", "training.epochs=9", "training.max_steps=10", "checkpoint.every=1", "checkpoint.keep=99")


def pieces(options: dict[str, Any], total: int = 20) -> tuple[Any, Any, Run]:
    """(part, adapter of one float64 layer, a run over it)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(K, D)).double()
    attached = lrft.attach(model, {"method": {"roselora": options}, "rank": RANK})
    part = compose.compose([("roselora", options)]).parts[1]
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    return part, attached.modules["0"], Run(0, total, model, attached.modules, optimizer, 0, lambda t: t)


def one_step(part: Any, adapter: Any, run: Run) -> dict[str, Tensor]:
    """A step with gradients out of a generator. Returns |p grad p| as it was before the step."""
    generator = torch.Generator().manual_seed(run.step)
    seen = {}
    for word, p in adapter.tensors().items():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        seen[word] = (p.detach() * p.grad).abs()
    part.after_backward(run)
    run.optimizer.step()
    part.after_step(run)
    run.step += 1
    return seen


def test_each_component_keeps_its_most_sensitive_entries() -> None:
    part, adapter, run = pieces({})
    for _ in range(20):
        one_step(part, adapter, run)
    assert (adapter.B != 0).sum(dim=0).tolist() == [16] * RANK  # of 300 at 5 %; strict, so one more than 15
    assert (adapter.A != 0).sum(dim=1).tolist() == [11] * RANK  # of 200
    density = (adapter.delta_weight() != 0).double().mean().item()
    assert 0.5 * RANK * (16 / D) * (11 / K) < density <= RANK * (16 / D) * (11 / K)


def test_the_rule_entry_by_entry() -> None:
    """A plain reading of the rule."""
    part, adapter, run = pieces({"keep": 0.3, "begin": 0.1, "end": 0.5})
    M: dict[str, Tensor] = {}
    for t in range(20):
        seen = one_step(part, adapter, run)
        for word, S in seen.items():
            M[word] = S if word not in M else 0.8 * M[word] + 0.2 * S
        progress = min(max((t - 2) / 8, 0.0), 1.0)
        q = 0.3 + 0.7 * (1 - progress) ** 3
        for i in range(RANK):
            for word, values, scores in (("A", adapter.A[i], M["A"][i]), ("B", adapter.B[:, i], M["B"][:, i])):
                k = math.floor(round(len(values) * (1 - q), 9))
                line = sorted(scores.tolist())[k - 1] if k else -1.0
                kept = [score >= line for score in scores.tolist()]
                assert (values != 0).tolist() == kept, (t, word, i)


def test_lr_schedule() -> None:
    part, _, _ = pieces({})
    assert [part.share(t, 100) for t in (0, 10, 80, 99)] == pytest.approx([1.0, 1.0, 0.05, 0.05])
    assert part.share(45, 100) == pytest.approx(0.05 + 0.95 / 8)
    sudden, _, _ = pieces({"begin": 0.5, "end": 0.5})
    assert [sudden.share(t, 100) for t in (0, 50, 51)] == pytest.approx([1.0, 1.0, 0.05])


def test_limit() -> None:
    part, adapter, run = pieces({"limit": 0.02})
    one_step(part, adapter, run)
    assert adapter.A.abs().max() == 0.02


def test_a_step_that_is_not_made_does_not_count() -> None:
    part, adapter, run = pieces({})
    one_step(part, adapter, run)
    before = {name: M.clone() for name, M in part.state().items()}
    for p in adapter.tensors().values():
        p.grad = torch.full_like(p, math.inf)
    part.after_backward(run)
    assert all(torch.equal(M, before[name]) for name, M in part.state().items())
    one_step(part, adapter, run)
    assert all(M.isfinite().all() for M in part.state().values())


def test_keeping_everything_is_lora_bit_for_bit(place: Place) -> None:
    lora = place.train(*KEYS, out="lora")
    all_kept = place.train(*KEYS, "adapter.method={roselora: {keep: 1.0}}", out="kept")
    few = place.train(*KEYS, "adapter.method={roselora: {keep: 0.2}}", out="few")
    ours, theirs, other = (
        {name: t for name, t in runs.tensors(run).items() if "lora_" in name} for run in (all_kept, lora, few)
    )
    assert ours
    assert runs.differing(ours, theirs) == []
    assert runs.differing(other, theirs) != []


def test_resume_makes_the_same_masks(place: Place) -> None:
    keys = (*KEYS, "adapter.method={roselora: {keep: 0.2}}")
    whole = place.train(*keys)
    part = runs.cut(whole, 5, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    A = next(t for name, t in runs.tensors(whole).items() if name.endswith("q_proj.lora_A.weight"))
    assert (A != 0).sum(dim=1).tolist() == [24 - math.floor(24 * 0.8) + 1] * 4
    assert files.read_tensors(whole / "last/../parts.safetensors").keys() >= {
        "roselora/model.layers.0.self_attn.q_proj.A"
    }


@pytest.mark.slow
def test_masks_agree_over_processes(place: Place) -> None:
    keys = ("adapter.method={roselora: {keep: 0.2}}", "adapter.layers=[0]", "training.max_steps=6")
    one, two = (runs.tensors(run) for run in (place.train(*BOTH, *keys, out="one"), launch(place, "two", *keys)))
    names = [name for name in one if "lora_" in name]
    assert names
    for name in names:
        assert torch.equal(one[name] != 0, two[name] != 0), name
        assert (one[name] == 0).any(), name


@pytest.mark.parametrize("other", ["pissa", "milora", "olora", "lori", "mora"])
def test_refused_with(other: str) -> None:
    assert registry.conflicts([other, "roselora"], dropout=0.0, alpha_given=False)
    assert not registry.conflicts(["lora", "rslora", "lora+", "dora", "roselora"], dropout=0.0, alpha_given=False)
