"""The learning rate of every step and parameter, and the steps at which things are due."""

from __future__ import annotations

import math

import pytest
import runs
import tiny
import torch
from runs import At, Place
from transformers import get_scheduler

from lrft import recipe
from lrft.adapters.attach import attach_adapter
from lrft.adapters.part import Run
from lrft.optim import lr_schedule
from lrft.optim.adamw import AdamW
from lrft.optim.lr_schedule import Shape
from lrft.optim.named_state import grouped, load_state_tensors, state_tensors, with_state
from lrft.recipe import schema

LR, TOTAL, WARMUP = 0.01, 12, 3


def expected(name: str, step: int, floor: float, decay: float) -> float:
    """The formulas, written out: `step` from 1, as it is recorded."""
    done = step - 1
    if done < WARMUP:
        return LR * (done + 1) / WARMUP
    share = (done - WARMUP) / (TOTAL - WARMUP)
    if name == "cosine":
        return LR * (floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2)
    if name == "linear":
        return LR * (1 - (1 - floor) * share)
    if name == "wsd":
        falling = max(0.0, (share - (1 - decay)) / decay)
        return LR * (1 - (1 - floor) * falling)
    return LR


@pytest.mark.parametrize(
    ("spelt", "name", "floor", "decay"),
    [
        ("cosine", "cosine", 0.0, 0.2),
        ("{cosine: {min_lr_ratio: 0.1}}", "cosine", 0.1, 0.2),
        ("linear", "linear", 0.0, 0.2),
        ("{linear: {min_lr_ratio: 0.5}}", "linear", 0.5, 0.2),
        ("constant", "constant", 0.0, 0.2),
        ("{wsd: {decay_ratio: 0.5, min_lr_ratio: 0.2}}", "wsd", 0.2, 0.5),
    ],
)
def test_learning_rate_of_every_step(place: Place, spelt: str, name: str, floor: float, decay: float) -> None:
    keys = (f"training.lr_scheduler={spelt}", f"training.learning_rate={LR}", f"training.warmup_steps={WARMUP}")
    run = place.train(*keys, "training.epochs=4", "training.micro_batch_size=1")
    rates = [record["lr"] for record in runs.records(run)]
    assert rates == pytest.approx([expected(name, s, floor, decay) for s in range(1, TOTAL + 1)], rel=1e-9)


def test_learning_rate_does_not_know_of_accumulation(place: Place) -> None:
    """Trust 34."""
    found = [
        [record["lr"] for record in runs.records(place.train(f"training.micro_batch_size={micro}", out=f"{micro}"))]
        for micro in (1, 4)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == runs.STEPS


def test_warm_up_as_a_share_of_the_run(place: Place) -> None:
    # The base recipe gives warmup_steps: null takes it back.
    run = place.train("training.warmup_steps=null", "training.warmup_ratio=0.5", "training.lr_scheduler=constant")
    assert [r["lr"] for r in runs.records(run)] == pytest.approx([LR / 3, LR * 2 / 3, LR, LR, LR, LR])


@pytest.mark.parametrize("name", schema.CHOICE_OPTIONS["lr_scheduler"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 20])
def test_rates_are_never_zero_nor_above_one(name: str, warmup: int) -> None:
    for total in (1, 2, 7, 20):
        factors = [lr_schedule.lr_factor(s, total, Shape(name), warmup=warmup) for s in range(total)]
        assert all(0 < factor <= 1 for factor in factors), (total, factors)
        falling = factors[warmup:]
        assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(
    ("theirs", "options", "ours"),
    [
        ("cosine", {}, Shape("cosine")),
        ("cosine_with_restarts", {"num_cycles": 3}, Shape("cosine-restarts", cycles=3)),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, Shape("cosine", min_lr_ratio=0.2)),
        ("linear", {}, Shape("linear")),
        ("polynomial", {"power": 2.5, "lr_end": 0.1}, Shape("polynomial", power=2.5, min_lr_ratio=0.1)),
        ("inverse_sqrt", {}, Shape("inverse-sqrt")),
        ("inverse_sqrt", {"timescale": 7}, Shape("inverse-sqrt", timescale=7)),
        ("constant_with_warmup", {}, Shape("constant")),
    ],
)
def test_schedules_are_those_of_transformers(theirs: str, options: dict[str, float], ours: Shape, warmup: int) -> None:
    """After warm-up, whose first step is zero there."""
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, adamw, warmup, 23, scheduler_specific_kwargs=dict(options))
    for step in range(23):
        if step >= warmup:
            assert lr_schedule.lr_factor(step, 23, ours, warmup=warmup) == pytest.approx(scheduler.get_last_lr()[0])
        adamw.step()
        scheduler.step()


def test_ratio_of_lora_plus_at_every_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []

    def look(run: Run) -> None:
        by_name = {n: g["lr"] for g in run.optimizer.param_groups for n in g["param_names"]}
        seen.append({word: {lr for n, lr in by_name.items() if n.endswith(f".{word}")} for word in "AB"})

    runs.add_parts(monkeypatch, At("after_backward", 0, look))
    run = place.train("adapter.method=[lora, {lora+: {ratio: 7.0}}]")
    told = [record["lr"] for record in runs.records(run)]
    assert len(seen) == runs.STEPS
    assert [rates["A"] for rates in seen] == [{lr} for lr in told]
    for rates in seen:
        (a,), (b,) = rates["A"], rates["B"]
        assert b / a == pytest.approx(7.0)


def test_groups_of_lora_plus_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    lr, ratio = 1e-3, 5.0
    theirs = create_loraplus_optimizer(
        get_peft_model(tiny.make("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])),
        torch.optim.AdamW,
        lr=lr,
        loraplus_lr_ratio=ratio,
    )
    section = recipe.parse_adapter(
        {"method": [{"lora+": {"ratio": ratio}}], "rank": 4, "target_modules": ["q_proj", "down_proj"]}
    )
    attached, composition = attach_adapter(tiny.make("llama"), section, seed=0)
    ours = AdamW().make(grouped(attached.trained(), composition.lr_factors(), lr, 0.0))

    def groups(optimizer: torch.optim.Optimizer) -> list[tuple[float, list[tuple[int, ...]]]]:
        found = [(g["lr"], sorted(tuple(p.shape) for p in g["params"])) for g in optimizer.param_groups]
        return sorted(group for group in found if group[1])

    assert groups(ours) == groups(theirs)


def test_weight_decay_spares_vectors() -> None:
    section = recipe.parse_adapter({"method": ["dora", "lora+"], "rank": 4})
    attached, composition = attach_adapter(tiny.make("llama"), section, seed=0)
    adamw = AdamW().make(grouped(attached.trained(), composition.lr_factors(), 1e-3, 0.1))
    decays = {name: group["weight_decay"] for group in adamw.param_groups for name in group["param_names"]}
    assert decays.keys() == attached.trained().keys()
    assert {name.rsplit(".", 1)[-1]: decay for name, decay in decays.items()} == {"A": 0.1, "B": 0.1, "magnitude": 0.0}


def test_optimiser_state_goes_by_name_not_by_order() -> None:
    """Trust 39."""
    attached, _ = attach_adapter(tiny.make("llama"), recipe.parse_adapter({"method": "lora"}), seed=0)
    trained = attached.trained()

    def stepped(names: list[str]) -> torch.optim.AdamW:
        adamw = AdamW().make(grouped({n: trained[n] for n in names}, {}, 1e-3, 0.0))
        return adamw

    first, turned = stepped(list(trained)), stepped(list(trained)[::-1])
    for n, p in enumerate(trained.values()):
        p.grad = torch.full_like(p, float(n + 1))
    first.step()
    load_state_tensors(turned, state_tensors(first), with_state(state_tensors(first)))
    for p in trained.values():
        assert torch.equal(turned.state[p]["exp_avg"], first.state[p]["exp_avg"])
    # tensors of another run
    from lrft.errors import CheckFailed

    broken = dict(list(state_tensors(first).items())[3:])
    with pytest.raises(CheckFailed, match="does not match the trainable parameters"):
        load_state_tensors(turned, broken, with_state(state_tensors(first)))


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [
        ("none", 10, []),
        (3, 10, [3, 6, 9, 10]),
        (0.25, 8, [2, 4, 6, 8]),
        (0.01, 10, list(range(1, 11))),
        (50, 10, [10]),
        (0.5, 1, [1]),
    ],
)
def test_due_steps(every: float | str, total: int, steps: list[int]) -> None:
    interval = lr_schedule.interval(every, total)
    assert [s for s in range(1, total + 1) if lr_schedule.due(s, interval, total)] == steps
