"""A merge without its check needs torch's tensors alone: what it loads, and that it writes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from on_disk import save_adapter, save_base

import lrft
from lrft.export import merge_places
from lrft.export.merge import merge_adapter
from lrft.model.weights import weight_files

# What takes longer to import than a small model takes to merge.
HEAVY = (
    *("transformers", "accelerate", "datasets", "peft", "matplotlib", "sympy", "pandas", "huggingface_hub"),
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp"),
)
PROGRAM = (
    "import json, sys\n"
    "from lrft.cli.main import run_command\n"
    "code = run_command(sys.argv[1:])\n"
    f"print(json.dumps([code, 'torch' in sys.modules, [name for name in {HEAVY} if name in sys.modules]]))"
)


def test_what_a_merge_without_a_check_loads(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="10KB")
    save_adapter(tmp_path / "adapter", base)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "merge", "adapter", "-o", "out", "--no-verify"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(lrft.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1]) == [0, True, []]
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("words", ["lora", ["lora", "dora"]])
def test_asking_transformers_would_write_the_same(
    name: str, words: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base", name)
    save_adapter(tmp_path / "adapter", base, words)
    asked: list[Path] = []
    whole = merge_places.load_skeleton

    def noted(folder: Path, *more: object) -> object:
        asked.append(folder)
        return whole(folder, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(merge_places, "load_skeleton", noted)
    first = merge_adapter(tmp_path / "adapter", tmp_path / "light")
    assert asked == []
    monkeypatch.setattr(merge_places, "reads_own_names", lambda folder: False)
    second = merge_adapter(tmp_path / "adapter", tmp_path / "asked")
    assert asked == [base]
    assert (first.sites, first.update_norm) == (second.sites, second.update_norm)
    for path in weight_files(tmp_path / "light"):
        assert path.read_bytes() == (tmp_path / "asked" / path.name).read_bytes()


def test_a_base_that_is_not_there_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "merge", "adapter", "-o", "out", "--base", "./bse"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(lrft.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert json.loads(done.stdout) == [5, False, []]
    assert "Close: base" in done.stderr
