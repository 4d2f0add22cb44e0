"""Stop tokens of a model: what it stops at stays, what training adds comes behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lrft.model.end_tokens import add_stops


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        (2, [5], [2, 5]),
        ([2, 3], [5, 3], [2, 3, 5]),
        (2, [2], 2),
        (0, [], 0),
        (None, [5], 5),
        (None, [], None),
    ],
)
def test_added_stops_leave_those_that_the_model_had(before: Any, added: list[int], after: Any) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=before))
    add_stops(model, added)
    assert model.generation_config.eos_token_id == after


def test_a_model_that_does_not_generate_has_no_stops() -> None:
    model = SimpleNamespace()
    add_stops(model, [5])
    assert vars(model) == {}
