"""Trackers that are Accelerate's: TensorBoard's files read back; what fails or hangs neither stops nor slows a run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import runs
from runs import Place

from lrft import registry
from lrft.errors import MissingError, RecipeError
from lrft.registry import rooms
from lrft.tracking import service, worker
from lrft.tracking.console import Reporter
from lrft.tracking.fan_out import Trackers
from lrft.tracking.service import Service, flat, scalars

KEYS = ("evaluation.every=3", "evaluation.samples=2", "evaluation.max_new_tokens=4", "checkpoint.every=3")


@pytest.mark.draws
def test_event_files_of_tensorboard_hold_the_run(place: Place) -> None:
    """Every number, the answers, the result and the picture; of a resumed run each number once."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = (*KEYS, "logging.report_to=[tensorboard]")
    straight = place.train(*keys, out="straight")
    stopped = runs.cut(straight, 3, place.root / "stopped")
    place.train(*keys, out="stopped", resume="last")
    for run in (straight, stopped):
        told = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0, "images": 0}).Reload()
        for kind, prefix in (("step", "train"), ("eval", "eval")):
            losses = [(record["step"], record["loss"]) for record in runs.records(run, kind)]
            assert [(event.step, event.value) for event in told.Scalars(f"{prefix}/loss")] == [
                (step, pytest.approx(loss, rel=1e-6)) for step, loss in losses
            ]
        words = [event.tensor_proto.string_val[0].decode() for event in told.Tensors("eval/samples/text_summary")]
        assert {word.count("**answer**") for word in words} == {2}
        assert "| steps done | 6 |" in told.Tensors("result/text_summary")[0].tensor_proto.string_val[0].decode()
        assert told.Images("losses")[0].width > 100


class Silent:
    """What Accelerate's trackers have, and nothing behind it."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, float], int]] = []
        self.configuration: dict[str, Any] = {}

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configuration = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((values, step))

    def finish(self) -> None:
        pass


class Test(Service):
    name: ClassVar[str] = "test"
    __test__ = False

    def __init__(self, tracker: Any) -> None:
        self.own = tracker

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        return self.own


def told(folder: Path, tracker: Any, steps: int = 3) -> list[str]:
    """The warnings of a run whose tracker this is."""
    (folder / "resolved.yaml").write_text("training: {seed: 3, objective: {sft: {z_loss: 1e-4}}}\ndata: {train: [a]}\n")
    console = Reporter(None, quiet=True)
    with Trackers(console, None, [Test(tracker)]) as trackers:
        trackers.start(folder, {}, 0)
        for step in range(1, steps + 1):
            trackers.log("step", {"step": step, "loss": float(step), "by": {"A": 2}, "text": "no"}, shown=step != 2)
        trackers.finish({"result": {"steps done": steps}})
    return console.warnings


def test_recipe_and_due_steps_are_told_in_order(tmp_path: Path) -> None:
    tracker = Silent()
    assert told(tmp_path, tracker) == []
    assert tracker.told == [({"train/loss": float(step), "train/by/A": 2}, step) for step in (1, 3)]
    assert tracker.configuration == {
        "training.seed": 3,
        "training.objective.sft.z_loss": 1e-4,
        "data.train": '["a"]',
    }


@pytest.mark.parametrize("when", ["start", "log", "finish"])
@pytest.mark.parametrize("error", [OSError("no route"), SystemExit(3)])
def test_one_that_fails_is_said_once_and_left_out(tmp_path: Path, when: str, error: BaseException) -> None:
    tracker = Silent()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    setattr(tracker, when, fail)
    (warning,) = told(tmp_path, tracker)
    assert warning.startswith("tracker test failed and was disabled: ")
    assert ("no route" in warning) == isinstance(error, OSError)


@pytest.mark.parametrize(("when", "waiting"), [("start", 100), ("log", 100), ("log", 2)])
def test_one_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, when: str, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, never = Silent(), threading.Event()
    setattr(tracker, when, lambda *_, **__: never.wait())
    monkeypatch.setattr(service, "LAST_WORDS", 0.05)
    monkeypatch.setattr(worker, "WAITING", waiting)
    (warning,) = told(tmp_path, tracker, steps=9)
    assert ("records wait for it" if waiting == 2 else "did not end within 0.05 s") in warning
    never.set()


def test_a_run_ends_well_beside_a_tracker_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not there: what the check at the start cannot see, as a broken installation."""
    monkeypatch.setattr(registry, "missing_package", lambda *_: "")
    name = next(name for name in ("aim", "swanlab", "comet_ml") if rooms.find_spec(name) is None)
    run = place.train(f"logging.report_to=[{name}]")
    assert len(runs.records(run)) == runs.STEPS
    assert (run / "log.txt").read_text().count(f"tracker {name} failed and was disabled") == 2  # then, and at the end


def test_a_missing_package_is_named_before_anything_is_loaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "find_spec", lambda name: None)
    for name, package in (("wandb", "wandb"), ("comet_ml", "comet-ml")):
        with pytest.raises(MissingError) as refused:
            place.train(f"logging.report_to=[{name}]", "model=nowhere")
        assert refused.value.lines()[-1].endswith(f"pip install {package}")


def test_names_of_other_tools_are_translated(place: Place) -> None:
    with pytest.raises(RecipeError, match=r"got 'comet'\. Here: comet_ml"):
        place.recipe("logging.report_to=[comet]")
    with pytest.raises(RecipeError, match=r"In lrft: logging\.report_to: \[\{wandb: \{project"):
        place.recipe("logging.wandb_project=x")


def test_numbers_alone_are_told_by_the_names_of_their_maps() -> None:
    record = {"step": 3, "loss": float("nan"), "best": True, "a": {"b": {"c": 1}}, "text": "x"}
    assert dict(scalars(record, "eval")) == {"eval/a/b/c": 1}
    assert dict(flat({"a": {"b": [1], "c": {}}, "d": None}, "")) == {"a.b": "[1]", "a.c": "{}", "d": "null"}
