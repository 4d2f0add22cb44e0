"""The share that is dropped at each step, and that a run drops it then and not otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import runs
import tiny
import torch
from runs import Place
from torch import nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Adapter
from lrft.adapters.attach import composition_warnings
from lrft.adapters.part import Run
from lrft.errors import RecipeError


def shares(options: dict[str, Any], steps: int = 10, method: Any = "lora") -> list[set[float]]:
    """At each of `steps` steps, what the modules of the adapters drop, of a dropout of 0.2."""
    words = [method, {"early-late-dropout": options}]
    attached = lrft.attach(tiny.make("llama"), {"method": words, "rank": 2, "dropout": 0.2})
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    found = []
    for step in range(steps):
        for part in composition.parts:
            part.before_step(Run(step, steps, attached.model, attached.modules, None, 0, lambda t: t))
        adapters = [m for a in attached.modules.values() for m in a.modules() if isinstance(m, Adapter)]
        found.append({round(module.dropout, 12) for module in adapters})
    return found


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cutoff": 0.3, "schedule": "constant"}, [0.2] * 3 + [0.0] * 7),
        ({"mode": "late", "cutoff": 0.3}, [0.0] * 3 + [0.2] * 7),
        ({"mode": "standard", "cutoff": 0.3}, [0.2] * 10),
        # numpy's linspace(p, 0, steps before the cutoff), as released: the last of them drops nothing
        ({"cutoff": 0.5, "schedule": "linear"}, [0.2, 0.15, 0.1, 0.05, 0.0] + [0.0] * 5),
        ({"cutoff": 0.25, "schedule": "linear"}, [0.2, 0.1, 0.0] + [0.0] * 7),
        ({"cutoff": 0.1, "schedule": "linear"}, [0.2] + [0.0] * 9),
        ({"cutoff": 1.0}, np.linspace(0.2, 0, 10).round(12).tolist()),
        ({"mode": "late", "cutoff": 0.3, "schedule": "linear"}, [0.0] * 3 + [0.2] * 7),
        ({"mode": "standard", "schedule": "linear"}, [0.2] * 10),
        ({"cutoff": 0.25, "schedule": "constant"}, [0.2] * 3 + [0.0] * 7),  # steps 0, 1 and 2 are before 2.5
        ({"cutoff": 0.0}, [0.0] * 10),
        ({"cutoff": 0.0, "schedule": "linear"}, [0.0] * 10),
        ({"mode": "late", "cutoff": 0.0}, [0.2] * 10),
        ({"cutoff": 1.0, "schedule": "constant"}, [0.2] * 10),
        ({"mode": "late", "cutoff": 1.0}, [0.0] * 10),
    ],
)
def test_the_share_at_each_step(options: dict[str, Any], expected: list[float], method: str) -> None:
    assert shares(options, method=method) == [{share} for share in expected]


def test_by_default_the_first_15_percent_drop_less_and_less() -> None:
    assert shares({}, steps=20) == [{0.2}, {0.1}] + [{0.0}] * 18


def test_evaluation_drops_nothing() -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": "early-late-dropout", "rank": 2, "dropout": 0.5})
    tiny.disturb(list(attached.trained().values()))
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    for part in composition.parts:
        part.before_step(Run(0, 10, model, attached.modules, None, 0, lambda t: t))
    assert torch.equal(tiny.logits(model.eval(), ids), tiny.logits(model.eval(), ids))
    assert not torch.equal(tiny.logits(model.train(), ids), tiny.logits(model.train(), ids))


def method(options: str) -> str:
    return f"adapter.method={{early-late-dropout: {{{options}}}}}"


def test_a_run_drops_in_its_part_and_elsewhere_is_bit_for_bit_the_run_without(place: Place) -> None:
    def losses(*keys: str, out: str) -> list[float]:
        return [record["loss"] for record in runs.records(place.train(*keys, out=out))]

    drop = "adapter.dropout=0.3"
    without = losses(out="without")
    always = losses(drop, out="always")
    assert losses(drop, method("mode: standard"), out="standard") == always
    assert losses(drop, method("mode: late, cutoff: 1.0"), out="never") == without
    late = losses(drop, method("mode: late, cutoff: 0.5"), out="late")
    assert runs.STEPS == 6
    assert late[:3] == without[:3]  # B is zero in the first step: a run with dropout leaves it in the second
    assert all(a != b for a, b in zip(late[3:], without[3:], strict=True))
    early = losses(drop, method("cutoff: 0.5, schedule: constant"), out="early")
    assert early[:3] == always[:3]
    assert early[3] != always[3]
    assert always[1:3] != without[1:3]


@pytest.mark.parametrize("options", ["cutoff: 0.5", "mode: late, cutoff: 0.5", "cutoff: 1.0, schedule: linear"])
def test_a_resumed_run_is_the_run(place: Place, options: str) -> None:
    keys = (method(options), "adapter.dropout=0.3", "checkpoint.every=1", "checkpoint.keep=9")
    whole = place.train(*keys)
    for step in (2, 3, 4):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_said_when_there_is_nothing_to_schedule_and_refused_where_nothing_may_be_dropped() -> None:
    composition = compose.compose([("early-late-dropout", {})])
    for dropout, said in ((0.0, 1), (0.1, 0)):
        attached = lrft.attach(tiny.make("llama"), {"method": "early-late-dropout", "rank": 2, "dropout": dropout})
        assert len(composition_warnings(composition, attached.sites, nn.Linear(2, 2))) == said
    for words, sentence in (
        (["early-late-dropout", "pissa"], "pissa requires adapter.dropout: 0, got 0.1"),
        (["early-late-dropout", "sorsa"], "sorsa requires adapter.dropout: 0, got 0.1"),
        (
            ["early-late-dropout", "hra"],
            "early-late-dropout requires an update that is added to the weight; hra has no",
        ),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), {"method": words, "rank": 2, "dropout": 0.1})
