"""IncreLoRA: scores against whole gradients, growth against its budget, and what new components may do when."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import At, Place
from torch import Tensor, nn
from two_processes import KEYS as BOTH
from two_processes import launch

import lrft
from lrft import registry
from lrft.adapters import compose, gradient_checkpointing
from lrft.adapters.part import Run
from lrft.methods import increlora
from lrft.utils import files

METHOD = "adapter.method={increlora: {interval: 0.1, begin: 0.2, end: 0.8, warmup: 0.2}}"
KEYS = (
    METHOD,
    "training.epochs=9",
    "training.max_steps=20",
    "training.weight_decay=0.1",
    "checkpoint.every=1",
    "checkpoint.keep=99",
)
SIZES = ((9, 7), (7, 12), (12, 8))


def pieces(options: dict[str, Any], rank: int = 3, total: int = 20) -> tuple[Any, Any, Run]:
    """(part, handle on three float64 layers, a run over them)."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(k, d) for k, d in SIZES)).double()
    attached = lrft.attach(model, {"method": {"increlora": options}, "rank": rank})
    part = compose.compose([("increlora", options)]).method
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2, weight_decay=0.1)
    return part, attached, Run(0, total, model, attached.modules, optimizer, 3, lambda t: t)


def one_step(part: Any, attached: Any, run: Run) -> None:
    generator = torch.Generator().manual_seed(run.step)
    x, y = (torch.randn(20, n, generator=generator, dtype=torch.float64) for n in (SIZES[0][0], SIZES[-1][1]))
    run.optimizer.zero_grad()
    part.before_step(run)
    (run.model(x) - y).square().mean().backward()
    part.loss(run).backward()
    part.after_backward(run)
    run.optimizer.step()
    part.after_step(run)
    run.step += 1


@pytest.mark.parametrize(("words", "s"), [({}, 2.0), ({"alpha": 6.0}, 2.0 / 3), ({"scale": 0.3}, 0.3)])
def test_the_start_and_the_factor_are_those_of_the_recipes_rank(words: dict[str, Any], s: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200))
    attached = lrft.attach(model, {"method": {"increlora": {"over": 1.5, "grow": 3}}, "rank": 9, **words})
    adapter: Any = attached.modules["0"]
    assert (adapter.site.rank, adapter.site.scale) == (14, pytest.approx(s)), "13.5 is rounded up"
    for rows in (adapter.A, adapter.B.T):
        assert rows[:4].std().item() == pytest.approx(0.02, rel=0.1)
        assert not rows[4:].any()
    assert not adapter.gate.any()
    assert adapter.gate.requires_grad


def test_the_total_grows_evenly_to_the_recipes_rank(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    method = compose.compose([("increlora", {"interval": 0.1, "begin": 0.2, "end": 0.8, "warmup": 0.2})]).method
    active: list[list[int]] = []
    gates: list[list[Tensor]] = []
    last: dict[str, Tensor] = {}

    def note(run: Run) -> None:
        active.append([method.active(run, site) for site in run.adapters])
        gates.append([adapter.tensors()["gate"].detach().clone() for adapter in run.adapters.values()])
        last.update({f"{s}.{n}": p.detach() for s, a in run.adapters.items() for n, p in a.tensors().items()})

    with monkeypatch.context() as patch:
        runs.add_parts(patch, At("after_step", 0, note), method=method)
        place.train(*KEYS)
    n = len(active[0])
    totals = [sum(one) for one in active]
    # Rank 4: from n to 4 n between steps 4 and 16, by every second step.
    assert totals == [n + (3 * n * (max(min(t - t % 2, 16), 4) - 4)) // 12 for t in range(1, 21)]
    assert all(before <= after for a, b in pairwise(active) for before, after in zip(a, b, strict=True))
    assert max(active[-1]) > 4 > min(active[-1]), "some layers got more than others"
    for step, (ranks, mine) in enumerate(zip(active, gates, strict=True), start=1):
        for rank, gate in zip(ranks, mine, strict=True):
            expected = torch.zeros(len(gate) - rank)
            if step < 16:
                expected[:1] = 1e-5
            assert torch.equal(gate[rank:], expected), "reserve, then nothing"
            assert gate[:rank].all()
    for name, p in last.items():
        rank = int((last[f"{name.rpartition('.')[0]}.gate"] != 0).sum())
        rows = p.T if name.endswith("B") else p
        assert rows[:rank].any(dim=-1).all()
        assert not rows[rank:].any(), "what was never given is zero"


@pytest.mark.parametrize("kind", ["none", "light", "medium", "full"])
def test_the_score_is_that_of_the_whole_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro-batches: absolute values of their sum, not the sum of absolute values."""
    found: dict[str, Tensor] = {}
    monkeypatch.setattr(increlora, "smoothed", lambda memory, site, score: found.update({site: score}))
    batches = [tiny.tokens(seed=seed) for seed in (1, 2)]

    def prepared() -> tuple[Any, Any]:
        model = tiny.make("llama").train()
        attached = lrft.attach(model, {"method": "increlora", "rank": 3})
        tiny.disturb(list(attached.trained().values()))
        return model, attached

    model, attached = prepared()
    if kind != "none":
        gradient_checkpointing.checkpoint(model, kind)
    part = compose.compose([("increlora", {})]).method
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=0.0)
    run = Run(5, 100, model, attached.modules, optimizer, 0, lambda t: t)
    part.before_step(run)
    for ids in batches:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    part.after_backward(run)
    part.after_step(run)

    slow, attached = prepared()
    layers = attached.layers()
    for layer in layers.values():
        layer.base.weight.requires_grad_()
    for ids in batches:
        slow(input_ids=ids, labels=ids).loss.backward()
    assert found.keys() == layers.keys()
    for site, layer in layers.items():
        G, dW = layer.base.weight.grad, attached.delta(site)
        assert found[site].item() == pytest.approx(((dW * G).abs().sum() / dW.numel() ** 0.5).item(), rel=1e-4), site
    assert all(not layer._forward_hooks for layer in attached.layers().values())


def test_layers_take_turns_where_gradients_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    part, attached, run = pieces({})
    assert increlora.turn(run) == ["0", "1", "2"]
    monkeypatch.setattr(increlora, "GRADIENTS_AT_ONCE", 150)
    turns = []
    for step in range(4):
        run.step = step
        turns.append(increlora.turn(run))
    assert turns == [["0", "1"], ["2"], ["0", "1"], ["2"]]
    run.step = 0
    for _ in range(2):
        one_step(part, attached, run)
    assert {name for name in part.state() if name.startswith("mean/")} == {"mean/0", "mean/1", "mean/2"}


def test_growth_goes_to_the_highest_scores() -> None:
    part, attached, run = pieces({"begin": 0.2, "end": 1.0, "interval": 0.4, "grow": 2})
    scores: list[dict[str, Tensor]] = []
    inner = part.after_backward
    object.__setattr__(part, "after_backward", lambda run: (inner(run), scores.append(dict(part.step["scores"]))))
    for _ in range(12):
        one_step(part, attached, run)
    rule = {}
    for site in attached.modules:
        m = u = 0.0
        for now in (one[site].item() for one in scores):
            m = 0.85 * m + 0.15 * now
            u = 0.85 * u + 0.15 * abs(now - m)
        rule[site] = m * u
    due = int(6 * 8 / 16)
    first, second, third = sorted(rule, key=lambda site: rule[site], reverse=True)
    assert due == 3
    assert {site: part.active(run, site) for site in rule} == {first: 3, second: 2, third: 1}


def test_growth_hardly_changes_the_output() -> None:
    part, attached, run = pieces({"begin": 0.0, "end": 1.0, "interval": 1.0})
    for _ in range(8):
        one_step(part, attached, run)
    with torch.no_grad():
        x = torch.randn(50, 9, dtype=torch.float64)
        before = run.model(x)
        part.extend(run, 9, 0.6)
        part.keep_reserve(run)
        after = run.model(x)
    assert sum(part.active(run, site) for site in attached.modules) == 3 + int(0.6 * 6)
    assert 0 < (after - before).norm() / before.norm() < 1e-4


def test_rescaled_growth_is_alpha_over_the_layers_present_rank() -> None:
    """Against dense products with the factor of the released code, alpha / r of the layer, relative to its start."""
    attached = lrft.attach(tiny.make("llama"), {"method": {"increlora": {"rescale": True, "grow": 2}}, "rank": 4})
    tiny.disturb(list(attached.trained().values()))
    part = compose.compose([("increlora", {"rescale": True, "grow": 2})]).method
    run = Run(9, 20, nn.Identity(), attached.modules, torch.optim.SGD(attached.trained().values()), 0, lambda t: t)
    for adapter in attached.modules.values():
        adapter.gate.data[1:] = 0.0
    start = {site: attached.delta(site).double() for site in attached.modules}
    with torch.no_grad():
        for progress in (0.5, 1.0):
            part.extend(run, 9, progress)
    grown = {site: part.active(run, site) for site in attached.modules}
    assert set(grown.values()) >= {3, 5}
    for site, first in start.items():
        assert torch.allclose(attached.delta(site).double(), first / grown[site], atol=1e-7)


def test_new_components_warm_up_from_their_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    part, attached, run = pieces({"begin": 0.2, "end": 0.6, "interval": 0.1, "warmup": 0.25})
    inner = type(part).after_step
    raw: list[dict[str, Tensor]] = []
    monkeypatch.setattr(
        type(part), "after_step", lambda self, run: (raw.append(attached.state_dict()), inner(self, run))
    )
    seen = set()
    for step in range(20):
        if step == 0:
            part.before_step(run)
            while part.step["hooks"]:
                part.step["hooks"].pop().remove()
        before = attached.state_dict()
        born = {site: part.born(run, site).clone() for site in attached.modules}
        one_step(part, attached, run)
        after = attached.state_dict()
        for name in before:
            site, _, word = name.rpartition(".")
            for slot, since in enumerate(born[site].tolist()):
                at = (slice(None), slot) if word == "B" else slot
                if since < 0:
                    if word == "gate" and step < 12:
                        assert part.born(run, site)[slot] >= 0 or after[name][at] in (0.0, 1e-5)
                    continue
                share = 1.0 if since == 0 else min(1.0, (step + 1 - since) / 5)
                expected = before[name][at] + share * (raw[-1][name][at] - before[name][at])
                assert torch.allclose(after[name][at], expected, rtol=1e-9, atol=1e-13), (name, slot, step)
                seen.add(round(share, 9))
    assert seen == {0.2, 0.4, 0.6, 0.8, 1.0}


def test_the_penalty_is_over_what_is_drawn() -> None:
    part, attached, run = pieces({"orthogonality": 0.3, "grow": 2})
    part.before_step(run)
    norms = []
    for adapter in attached.modules.values():
        for rows in (adapter.A[:3].detach(), adapter.B.T[:3].detach()):
            norms.append(float(((rows @ rows.T - torch.eye(3)) ** 2).sum() ** 0.5))
    assert part.loss(run).item() == pytest.approx(0.3 * sum(norms) / 6)
    assert pieces({"orthogonality": 0.0})[0].loss(run) is None


@pytest.mark.parametrize("at", [3, 6, 11])
def test_resume_is_bit_equal(place: Place, at: int) -> None:
    whole = place.train(*KEYS)
    part = runs.cut(whole, at, place.root / "cut")
    place.train(*KEYS, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


@pytest.mark.slow
def test_growth_agrees_over_processes(place: Place) -> None:
    keys = (METHOD, "training.epochs=4", "training.max_steps=10", "training.learning_rate=0.001")
    one, two = (place.train(*BOTH, *keys, out="one"), launch(place, "two", *keys))
    ours, theirs = (files.read_tensors(run / "last/../parts.safetensors") for run in (one, two))
    for name, tensor in ours.items():
        assert torch.allclose(tensor.double(), theirs[name].double(), rtol=1e-2), name
    grown = [tensor for name, tensor in ours.items() if "born" in name]
    assert len({int((born >= 0).sum()) for born in grown}) > 1


@pytest.mark.parametrize("other", ["pissa", "adalora", "elalora", "roselora", "prilora"])
def test_refused_with(other: str) -> None:
    assert registry.conflicts(["increlora", other], dropout=0.0, alpha_given=False)
    assert not registry.conflicts(["increlora", "rslora", "dora"], dropout=0.0, alpha_given=False)
