"""Base class of trackers that are Accelerate's: one thread for each, so that the run never waits for a service."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lrft.recipe.nodes import Source, plain
from lrft.recipe.problems import Problems
from lrft.recipe.yaml_parser import parse
from lrft.tracking.base import Tracker
from lrft.tracking.worker import Worker
from lrft.utils.files import read_json, write_json

LAST_WORDS = 30.0
"""seconds that a run waits at its end for what is still to be sent"""
IDENTITIES = "trackers.json"
"""in the run's folder: by tracker, by which name it finds the run again"""


class Service(Tracker):
    """Abstract. A subclass opens a tracker of Accelerate; its options are `project` and `run_name`, and its own.

    It is told the recipe key by key, the steps that are due by `logging.every`, every evaluation with its answers, and
    at the end the result and the picture of the losses. Names are train/NAME and eval/NAME.
    """

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        """The tracker of Accelerate, not started. title: name of the folder of the run. step: done already.

        identity: of the same run before it was resumed.
        """
        raise NotImplementedError("abstract")

    def identity(self) -> str | None:
        """By which a resumed run is the same one there; None where there is no such thing."""
        return None

    def text(self, name: str, text: str, step: int) -> None:
        """A text in Markdown, where the service takes one."""

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file, where the service takes one."""

    @cached_property
    def worker(self) -> Worker:
        return Worker(self.name)

    def start(self, folder: Path, facts: Mapping[str, Any], step: int) -> None:
        self.folder = folder
        self.worker.do(lambda: self._start(folder.resolve().name, step))

    def _start(self, title: str, step: int) -> None:
        path = self.folder / IDENTITIES
        known = read_json(path) if path.exists() else {}
        self.tracker = self.open(title, self.folder, step, known.get(self.name) if step else None)
        self.tracker.start()
        identity = self.identity()
        if identity is not None:
            write_json(path, (read_json(path) if path.exists() else {}) | {self.name: identity})
        if not step:
            self.tracker.store_init_configuration(configuration(self.folder))

    def log(self, kind: str, record: Mapping[str, Any], *, shown: bool = True) -> None:
        if not shown:
            return
        step, values = int(record["step"]), dict(scalars(record, {"step": "train"}.get(kind, kind)))
        answers = record.get("samples") or []

        def tell() -> None:
            self.tracker.log(values, step=step)
            if answers:
                self.text(f"{kind}/samples", as_text(answers), step)

        self.worker.do(tell)

    def finish(self, facts: Mapping[str, Any]) -> None:
        result = {key: value for key, value in facts.get("result", {}).items() if value is not None}
        step, picture = int(result.get("steps done", 0)), self.folder / "loss.png"

        def tell() -> None:
            self.text("result", as_table(result), step)
            if picture.exists() and picture.stat().st_size:
                self.picture("losses", picture, step)

        self.worker.do(tell)

    def close(self) -> None:
        """Raises what has failed, or TimeoutError when the service does not answer."""
        if "worker" not in self.__dict__:
            return
        if self.worker.failure is None:
            self.worker.do(self._close)
        self.worker.end(LAST_WORDS)

    def _close(self) -> None:
        self.tracker.finish()


def scalars(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The finite numbers of a record, those of maps inside by both names."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}/{key}")
        elif key != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}/{key}", value


def configuration(folder: Path) -> dict[str, Any]:
    """resolved.yaml by dotted keys; what is no number, text or truth value as JSON. Values of the environment are
    written there by name alone."""
    text = (folder / "resolved.yaml").read_text(encoding="utf-8")
    return dict(flat(plain(parse(text, Source("resolved.yaml"), Problems())), ""))


def flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Maps inside maps as dotted keys."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, bool | int | float | str) else json.dumps(value)


def as_text(samples: list[Mapping[str, Any]]) -> str:
    """Prompts and answers, one below the other."""
    return "\n\n---\n\n".join(
        "\n\n".join(f"**{word}**\n\n{sample[word]}" for word in ("prompt", "expected", "answer")) for sample in samples
    )


def as_table(result: Mapping[str, Any]) -> str:
    """A Markdown table of names and values."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in result.items())])


def pixels(path: Path) -> Any:
    """A PNG file as an array (height, width, 3), uint8."""
    import matplotlib.image
    import numpy as np

    return np.round(matplotlib.image.imread(path)[:, :, :3] * 255).astype(np.uint8)
