"""`training.deterministic` and `logging.report`: they act for the run that asks, and for no other."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import torch
from runs import At, Place

from lrft.errors import CheckFailed


def test_deterministic_algorithms_are_on_for_the_run_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def look(run: Any) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    runs.add_parts(monkeypatch, At("after_backward", 1, look))
    place.train("training.max_steps=1", "training.deterministic=true", "logging.report=[markdown, html]", out="on")
    place.train("training.max_steps=1", "logging.report=[]", out="off")
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()
    pages = [[(place.root / out / f"report.{end}").exists() for end in ("md", "html")] for out in ("on", "off")]
    assert pages == [[True, True], [False, False]]


def test_an_operation_without_a_deterministic_algorithm_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def scatter(run: Any) -> None:
        torch.zeros(3).put_(torch.zeros(2, dtype=torch.long), torch.ones(2), accumulate=False)

    runs.add_parts(monkeypatch, At("after_backward", 1, scatter))
    with pytest.raises(CheckFailed, match=r"training\.deterministic: put_ does not have a deterministic"):
        place.train("training.max_steps=1", "training.deterministic=true")
    assert not torch.are_deterministic_algorithms_enabled()
