"""How processes share a step: what is refused, and what is noticed, whatever the strategy."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import tiny
import torch
from runs import Place

import lrft
from lrft.checks import MovementCheck
from lrft.cli import run_command
from lrft.errors import CheckFailed, MissingError
from lrft.setup import divide


def test_zero2_refuses_what_acts_between_steps(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("distributed.strategy=zero2", "adapter.method=[lora, relora, {lora+: {ratio: 4}}]")
    arguments = ["plan", str(place.root / "recipe.yaml"), *keys]
    assert run_command([*arguments, "--devices", "2"]) == 2
    said = capsys.readouterr().err
    assert "adapter.method: relora acts on gradients, trained tensors or the optimiser between steps" in said
    assert "argument 2" in said, "where the method was named"
    assert run_command([*arguments, "--devices", "1"]) == 0, "one process shares nothing"


def test_zero2_says_what_to_install(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))

    class Two:
        num_processes, device = 2, torch.device("cpu")

    two: Any = Two()
    with pytest.raises(MissingError, match="zero2 needs the package deepspeed") as caught:
        divide(place.recipe("distributed.strategy=zero2"), tiny.make("llama"), two)
    assert "lrft[deepspeed]" in "\n".join(caught.value.lines())


def test_a_tensor_may_be_reached_on_another_process_only() -> None:
    """A process whose rows pass another expert has no gradient; that nobody has one is a fault."""
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": "lora", "rank": 4})
    movement = MovementCheck(attached)
    last = list(attached.trained())[-2:]
    for name in last:
        attached.trained()[name].requires_grad_(False)
    model(input_ids=ids, labels=ids).loss.backward()
    flags = []

    def alone(mine: torch.Tensor) -> torch.Tensor:
        flags.append(mine.clone())
        return mine

    unreached = movement.unreached(alone)
    assert unreached == last
    assert movement.unreached(lambda mine: mine + flags[0]) == last, "each step is asked for by itself"
    model(input_ids=ids, labels=ids).loss.backward()
    assert movement.unreached(lambda mine: mine + 1) == []
    with pytest.raises(CheckFailed, match="no gradient reaches"):
        movement.after_step(1, unreached, {}, {})
