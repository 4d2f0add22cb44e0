"""A merge needs the memory of a tensor, not of the model: measured, and under a limit that holds no whole model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from memory import Synthetic, run, used
from safetensors import safe_open

from lrft.model.weights import weight_files

MERGE = "merge_adapter(sys.argv[1], sys.argv[2])"
HOLD = """
from pathlib import Path
from safetensors.torch import load_file
held = [{n: t.clone() for n, t in load_file(p).items()} for p in sorted(Path(sys.argv[1]).glob("*.safetensors"))]
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose gigabytes do not stay until pytest clears those of earlier runs."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["lora", pytest.param("mora", marks=pytest.mark.all)])
def test_a_merge_needs_the_memory_of_a_tensor(words: str, root: Path) -> None:
    model = Synthetic(root, layers=5, width=1536, inner=6400)
    assert 18e6 < model.largest < 21e6
    assert 350e6 < model.size < 450e6
    assert used(run(MERGE, model.adapter(words), model.out, cache="fresh")) < 3 * model.largest + 200e6


@pytest.mark.slow
def test_a_model_that_memory_does_not_hold_is_merged(root: Path) -> None:
    model = Synthetic(root, layers=5, width=3072, inner=10240)
    assert 60e6 < model.largest < 64e6
    assert model.size > 1.2e9
    most = int(3 * model.largest + 200e6)
    held = run(HOLD, model.base, model.out, allowed=most)
    assert held.returncode != 0
    assert "memory" in held.stderr, "the limit is one: the model does not fit in it"
    assert used(run(MERGE, model.adapter("lora"), model.out, allowed=most)) < most
    for path in weight_files(model.base):
        with safe_open(path, "pt") as before, safe_open(model.out / path.name, "pt") as after:
            assert before.keys() == after.keys()
