"""Fixtures that several files share. Nothing heavy is imported here: tests of recipes start in a second."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pictures
import pytest
from hypothesis import settings

from lrft.report import markdown

if TYPE_CHECKING:
    from runs import Place

if not Path("/dev/nvidiactl").exists():
    # Other libraries import DeepSpeed where it is installed, which then says on standard output that it found no GPU.
    os.environ["DS_ACCELERATOR"] = "cpu"
# The same examples in each run: a change is judged by what it changes. Others: pytest --hypothesis-profile=default
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="Also what is not run for every change: see docs/testing.md")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        left_out = [item for item in items if item.get_closest_marker("all")]
        items[:] = [item for item in items if not item.get_closest_marker("all")]
        config.hook.pytest_deselected(items=left_out)
    if "PYTEST_XDIST_WORKER" in os.environ:
        for item in items:
            if has_shared_fixture(item):
                item.add_marker(pytest.mark.xdist_group(item.path.stem))
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # the last to begin must not be long


def has_shared_fixture(item: pytest.Item) -> bool:
    """Whether it uses a fixture that its file makes once: one worker then runs all that do."""
    definitions = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]  # type: ignore[attr-defined]
    return any(definition.scope != "function" and definition.baseid for definition in definitions)


@pytest.fixture(autouse=True)
def every_warning() -> None:
    """torch gives most warnings once a process: which test fails would depend on the one that ran first."""
    if torch := sys.modules.get("torch"):
        torch.set_warn_always(True)


@pytest.fixture(autouse=True)
def picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of tests draw no picture of their losses, but for those marked `draws`."""
    if not request.node.get_closest_marker("draws"):
        monkeypatch.setattr(markdown, "loss_picture", pictures.none)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A base, data and a recipe in a temporary folder, with a cache of its own."""
    import runs
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    AcceleratorState._reset_state()  # Accelerate allows one precision per process
    yield runs.Place.make(tmp_path)
    AcceleratorState._reset_state()
