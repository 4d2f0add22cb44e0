"""ElaLoRA: the rank of the model stays, what moves is what the scores say, and everything else is left alone."""

from __future__ import annotations

from typing import Any

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
    "adapter.method={elalora: {interval: 0.1, begin: 0.1, end: 0.9}}",
    "training.epochs=9",
    "training.max_steps=20",
    "training.weight_decay=0.1",
    "checkpoint.every=1",
    "checkpoint.keep=99",
)
SIZES = ((9, 7), (7, 12), (12, 8))


def in_use(A: torch.Tensor) -> list[int]:
    slots: list[int] = A.any(dim=1).nonzero().flatten().tolist()
    return slots


def pieces(options: dict[str, Any], rank: int = 6, total: int = 20) -> tuple[Any, Any, Run]:
    """(part, handle on three float64 layers, a run over them)."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(k, d) for k, d in SIZES)).double()
    attached = lrft.attach(model, {"method": {"elalora": options}, "rank": rank})
    part = compose.compose([("elalora", options)]).method
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2, weight_decay=0.1)
    return part, attached, Run(0, total, model, attached.modules, optimizer, 3, lambda t: t)


def one_step(part: Any, attached: Any, run: Run) -> None:
    """A step on a real loss, so that what is not in use gets the gradient that it would get."""
    generator = torch.Generator().manual_seed(run.step)
    x, y = (torch.randn(20, n, generator=generator, dtype=torch.float64) for n in (SIZES[0][0], SIZES[-1][1]))
    run.optimizer.zero_grad()
    (run.model(x) - y).square().mean().backward()
    part.after_backward(run)
    run.optimizer.step()
    part.after_step(run)
    run.step += 1


def ranks(adapters: Any) -> list[int]:
    return [len(in_use(adapter.tensors()["A"])) for adapter in adapters.values()]


@pytest.mark.parametrize(("words", "s"), [({}, 2.0), ({"alpha": 6.0}, 2.0 / 3), ({"scale": 0.3}, 0.3)])
def test_the_start_and_the_factor_are_those_of_the_recipes_rank(words: dict[str, Any], s: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200))
    attached = lrft.attach(model, {"method": {"elalora": {"over": 1.5}}, "rank": 9, **words})
    adapter: Any = attached.modules["0"]
    assert (adapter.site.rank, adapter.site.scale) == (14, pytest.approx(s)), "13.5 is rounded up"
    for rows in (adapter.A, adapter.B.T):
        assert rows[:9].std().item() == pytest.approx(0.02, rel=0.1)
        assert not rows[9:].any()
    assert not adapter.gate.any()
    assert adapter.gate.requires_grad


def test_the_total_rank_stays_and_no_layer_is_emptied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    dead: list[bool] = []

    def note(run: Run) -> None:
        seen.append(ranks(run.adapters))
        for adapter in run.adapters.values():
            A, gate, B = (adapter.tensors()[word].detach() for word in ("A", "gate", "B"))
            free = ~A.any(dim=1)
            dead.append(not gate[free].any() and not B[:, free].any())

    with monkeypatch.context() as patch:
        runs.add_parts(patch, At("after_step", 0, note))
        place.train(*KEYS, "adapter.rank=4")
    assert len(seen) == 20
    assert {sum(one) for one in seen} == {4 * len(seen[0])}
    assert min(min(one) for one in seen) >= 1
    assert max(max(one) for one in seen) <= 8
    assert seen[-1] != seen[0], "ranks have moved"
    assert seen[17] == seen[19], "and stay at the end"
    assert all(dead), "what is not in use is zero altogether"


def smooth(series: list[Tensor]) -> Tensor:
    """mean * spread, number by number."""
    found = []
    for numbers in torch.stack(series).flatten(1).T.tolist():
        m = u = 0.0
        for now in numbers:
            m = 0.85 * m + 0.15 * now
            u = 0.85 * u + 0.15 * abs(now - m)
        found.append(m * u)
    return torch.tensor(found, dtype=torch.float64).view(series[0].shape)


def test_an_adjustment_moves_the_lowest_to_the_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against averages and an order made in plain Python; 9 steps of 20, and the only adjustment in the last."""
    part, attached, run = pieces({"begin": 0.2, "end": 1.0, "interval": 0.25, "moves": 2})
    history: dict[str, list[Tensor]] = {}
    states: list[dict[str, Tensor]] = []
    inner = type(part).after_step

    def spied(self: Any, run: Run) -> None:
        for name, p in attached.trained().items():
            history.setdefault(name, []).append((p * p.grad).abs().detach())
        states.append(attached.state_dict())
        inner(self, run)

    monkeypatch.setattr(type(part), "after_step", spied)
    for _ in range(9):
        one_step(part, attached, run)
    scores = {
        site: smooth(history[f"{site}.gate"])
        + smooth(history[f"{site}.A"]).mean(dim=1)
        + smooth(history[f"{site}.B"]).mean(dim=0)
        for site in attached.modules
    }
    moved = round(2 * (1 - (5 / 16) ** 3))
    assert moved == 2
    before, after = states[-1], attached.state_dict()
    offered = []
    for site in attached.modules:
        used = in_use(before[f"{site}.A"])
        assert used == list(range(6))
        offered += sorted((scores[site][slot].item(), site, slot) for slot in used)[:2]
    offered.sort()
    lost, gained = offered[:moved], [site for _, site, _ in reversed(offered)][:moved]
    room = {site: in_use(before[f"{site}.A"]) for site in attached.modules}
    for _, site, slot in lost:
        room[site].remove(slot)
    changed = set()
    for site in gained:
        free = next(slot for slot in range(12) if slot not in room[site])
        room[site].append(free)
        changed.add((site, free))
        A, B, gate = (after[f"{site}.{word}"] for word in ("A", "B", "gate"))
        assert gate[free] == 0, "a new component changes no output"
        assert A[free].norm() == pytest.approx(1.0)
        assert B[:, free].norm() == pytest.approx(1.0)
        others = [slot for slot in room[site] if slot != free]
        assert (A[others] @ A[free]).abs().max() <= 1e-12 or len(others) >= A.shape[1]
    assert {site: in_use(after[f"{site}.A"]) for site in room} == {site: sorted(slots) for site, slots in room.items()}
    changed |= {(site, slot) for _, site, slot in lost}
    for site, adapter in attached.modules.items():
        for word, p in adapter.tensors().items():
            moments = run.optimizer.state[p]
            for slot in range(12):
                at = (slice(None), slot) if word == "B" else slot
                touched = (site, slot) in changed
                assert torch.equal(after[f"{site}.{word}"][at], before[f"{site}.{word}"][at]) != touched or (
                    word == "gate" and not before[f"{site}.gate"][slot]
                )
                assert moments["exp_avg_sq"][at].any() == (slot < 6 and not touched), "only moments of these are reset"
            assert moments["step"] == 9


def test_moves_are_fewer_and_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    part, attached, run = pieces({"begin": 0.0, "end": 0.8, "interval": 0.05, "moves": 3})
    asked: list[int] = []
    monkeypatch.setattr(type(part), "adjust", lambda self, run, scores, moves: asked.append(moves))
    for _ in range(20):
        one_step(part, attached, run)
    assert asked == [round(3 * (1 - (t / 16) ** 3)) for t in range(1, 16)]


def test_full_layers_and_more_moves_than_candidates() -> None:
    """Without spare room a component can only go where one was lost, also when all that is offered is moved."""
    part, attached, run = pieces({"over": 1.0, "begin": 0.0, "end": 1.0, "interval": 0.05, "moves": 99}, rank=3)
    for _ in range(20):
        one_step(part, attached, run)
        assert sum(ranks(attached.modules)) == 9
        assert all(p.isfinite().all() for p in attached.trained().values())


def test_new_directions_depend_on_the_seed_alone() -> None:
    found = []
    for noise in (1, 2):
        part, attached, run = pieces({"begin": 0.0, "interval": 0.1})
        torch.manual_seed(noise)
        for _ in range(9):
            one_step(part, attached, run)
        found.append(attached.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_rate_follows_the_schedule_and_steps_are_not_counted_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[tuple[float, float]] = []

    def note(run: Run) -> None:
        (state,) = {float(s["step"]) for s in run.optimizer.state.values()}
        rates.append((run.optimizer.param_groups[0]["lr"], state))

    with monkeypatch.context() as patch:
        runs.add_parts(patch, At("after_step", 0, note))
        run = place.train(*KEYS)
    assert [lr for lr, _ in rates] == [record["lr"] for record in runs.records(run)]
    assert [count for _, count in rates] == list(range(1, 21))


@pytest.mark.parametrize("at", [3, 6, 11])
def test_resume_is_bit_equal(place: Place, at: int) -> None:
    whole = place.train(*KEYS)
    part = runs.cut(whole, at, place.root / "cut")
    place.train(*KEYS, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


@pytest.mark.parametrize("other", ["pissa", "adalora", "increlora", "roselora", "prilora"])
def test_refused_with(other: str) -> None:
    assert registry.conflicts(["elalora", other], dropout=0.0, alpha_given=False)
    assert not registry.conflicts(["elalora", "rslora", "dora"], dropout=0.0, alpha_given=False)
