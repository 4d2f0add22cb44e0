"""Fixtures that several files share."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Place:
    """A base, data and a recipe in a temporary folder, with a cache of its own."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    return runs.Place.make(tmp_path)
