"""Runs whose base is larger than the device: streamed block by block, with the results of a resident base."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import memory
import pytest
import runs
import tiny
import tiny_tokenizers
import torch
from runs import Place
from safetensors.torch import load_file, save_file

from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.export.merge import merge_adapter
from lrft.model import placement, streamed
from lrft.model.placement import chosen, load_for
from lrft.training.base_model import placement_of
from lrft.utils import hardware
from lrft.verification.merge import verify_merge

CPU = torch.device("cpu")
SEEN = ("evaluation.at_start=true", "evaluation.every=3", "evaluation.samples=2", "evaluation.max_new_tokens=4")


@pytest.fixture
def narrow(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A base of four blocks stored in bfloat16, of which even the smallest tensors are streamed."""
    monkeypatch.setattr(streamed, "SMALL", 0)
    torch.manual_seed(0)
    model = tiny.llama(layers=4, vocabulary=len(tiny_tokenizers.chatml()))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0 if p.ndim == 2 else 1.0)
    tiny.save(model.bfloat16(), place.root / "base")
    return place


def streams(monkeypatch: pytest.MonkeyPatch) -> list[streamed.Streamed]:
    """The streamed bases that are made from here on."""
    made: list[streamed.Streamed] = []
    stream = streamed.stream

    def noted(*given: Any, **named: Any) -> streamed.Streamed:
        made.append(stream(*given, **named))
        return made[-1]

    monkeypatch.setattr(streamed, "stream", noted)
    return made


@pytest.mark.parametrize("method", ["dora", "loram", pytest.param("lora-ga", marks=pytest.mark.all)])
def test_a_streamed_run_is_the_resident_one_also_resumed(
    method: str, narrow: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (f"adapter.method={method}", "training.gradient_checkpointing=full", "checkpoint.every=3", *SEEN)
    resident = narrow.train("model.placement=resident", *asked, out="resident")
    made = streams(monkeypatch)
    run = narrow.train("model.placement=streamed", *asked, out="streamed")
    again = runs.cut(run, 3, narrow.root / "again")
    narrow.train("model.placement=streamed", *asked, out="again", resume="last")
    assert len(made) == 2
    # What is pruned is pruned, and trains, in the dtype in which it was loaded: a CPU has nothing to copy.
    assert all(len(each.here) == (0 if method == "loram" else 2) for each in made)
    for other in (run, again):
        assert runs.records(other)[-3:] == runs.records(resident)[-3:]
        assert runs.records(other, "eval")[-1] == runs.records(resident, "eval")[-1]
        assert not runs.differing(runs.tensors(other), runs.tensors(resident))


def test_its_evaluation_and_the_check_of_its_merge_are_streamed_too(
    narrow: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("training.max_steps=1", "evaluation.every=1")
    run = narrow.train("model.placement=streamed", *keys, out="streamed")
    expected = runs.records(run, "eval")[-1]["loss"]
    made = streams(monkeypatch)
    capsys.readouterr()
    assert not run_command(["eval", str(run), "--data", str(narrow.root / "validation.jsonl"), "--json"])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(expected, rel=1e-6)
    adapter = (run / "last").resolve()
    merge_adapter(adapter, narrow.root / "merged")
    verify_merge(narrow.root / "merged", adapter, base_folder=narrow.root / "base")
    assert [len(each.here) for each in made] == [2, 2]


# What is chosen, and what is refused


def test_auto_streams_what_leaves_the_device_too_little_and_says_so(
    narrow: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = narrow.root / "base"
    whole = sum(p.numel() * 4 for p in load_for("resident", base, dtype=torch.float32).parameters())
    assert placement.size_in_memory(base, torch.float32) == whole
    for free, expected in ((whole / 0.7 - 1, "streamed"), (whole / 0.7 + 1, "resident"), (None, "resident")):
        monkeypatch.setattr(hardware, "available", lambda free=free: free)
        assert chosen("auto", base, CPU, dtype=torch.float32) == expected
    monkeypatch.setattr(hardware, "available", lambda: whole)
    run = narrow.train("training.max_steps=1")
    assert "frozen in float32, blocks streamed" in (run / "log.txt").read_text()
    assert "placement: streamed" in (run / "resolved.yaml").read_text()


def test_the_memory_that_is_available_is_no_more_than_the_limit_of_the_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    machine = hardware.available()
    assert machine is not None
    held = hardware._status("VmData")
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (held + 10**8, before[1]))
        limited = hardware.available()
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert limited is not None
    assert 9e7 < limited <= 10**8 < machine


def test_what_is_stored_in_several_dtypes_or_wider_is_loaded_as_ever(narrow: Place) -> None:
    base = narrow.root / "base"
    assert load_for("streamed", base, dtype=torch.float32).dtype == torch.bfloat16
    assert load_for("streamed", base, dtype=torch.float16).dtype == torch.float16
    assert load_for("resident", base, dtype=torch.float32).dtype == torch.float32
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 1e-5  # which bfloat16 would round away
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    model = load_for("streamed", base, dtype=torch.float32)
    assert torch.equal(model.model.norm.weight, weights["model.norm.weight"])


@pytest.mark.parametrize("key", ["training.compile=true", "distributed.strategy=fsdp"])
def test_what_cannot_be_streamed_is_refused_with_its_place(key: str, place: Place) -> None:
    with pytest.raises(RecipeError, match=key.split("=")[0].replace(".", r"\.") + ".*placement: streamed"):
        place.recipe("model.placement=streamed", key)


def test_several_processes_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"trains on one device, and 2 processes.*strategy: fsdp"):
        placement_of(place.recipe("model.placement=streamed"), place.root / "base", "float32")
    assert placement_of(place.recipe(), place.root / "base", "float32") == "resident"


# Under a real limit

# RLIMIT_DATA counts all private memory, used or not, and torch's map of the weight files, which holds none as long as
# nobody writes to it: what is allowed beside that map is all that the process can have of its own.
HELD = """
import gc, resource, sys
import torch, transformers, lrft.training.run, lrft.cli.eval, lrft.verification.merge
from pathlib import Path
from lrft.cli.main import run_command
from lrft.export.merge import merge_adapter
from lrft.verification.merge import verify_merge
root, placement, mapped, allowed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lines = Path("/proc/self/status").read_text().splitlines()
held = 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmData:")))
resource.setrlimit(resource.RLIMIT_DATA, (held + mapped + allowed,) * 2)
out = root / placement
keys = f"output_dir={out}", f"model.placement={placement}", "--quiet"
asked = ["eval", str(out), "--data", str(root / "validation.jsonl")]
for command in (["train", str(root / "recipe.yaml"), *keys], asked):
    if run_command(command):
        sys.exit(1)
    gc.collect()
adapter = (out / "last").resolve()
merge_adapter(adapter, root / "merged")
verify_merge(root / "merged", adapter, base_folder=root / "base", tolerance=1.0)
"""


@pytest.mark.all
def test_a_base_larger_than_the_limit_of_the_process_is_trained_evaluated_and_merged(tmp_path: Path) -> None:
    base = memory.Synthetic(tmp_path, layers=18, width=1024, inner=4096)
    assert base.size > 600e6
    tiny_tokenizers.chatml().save_pretrained(base.base)
    runs.write_rows(tmp_path / "train.jsonl", runs.rows(4)[1:])
    runs.write_rows(tmp_path / "validation.jsonl", runs.rows(4, seed=1)[2:])
    place = Place(tmp_path)
    written = place.write_recipe()
    text = written.read_text().replace("epochs: 2", "max_steps: 2\n  gradient_checkpointing: full")
    for key, value in (("warmup_steps", 1), ("global_batch_size", 1), ("micro_batch_size", 1)):
        text = re.sub(rf"{key}: \d", f"{key}: {value}", text)
    written.write_text(text)

    def held(placement: str, allowed: int) -> subprocess.CompletedProcess[str]:
        asked = [sys.executable, "-c", HELD, str(tmp_path), placement, str(base.size), str(allowed)]
        environment = {**os.environ, "PYTHONPATH": runs.IMPORTS, "LRFT_CACHE": str(tmp_path / "cache")}
        environment |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        return subprocess.run(asked, capture_output=True, text=True, timeout=600, env=environment)

    streamed_run, resident = held("streamed", 450 * 10**6), held("resident", 450 * 10**6)
    assert streamed_run.returncode == 0, streamed_run.stderr[-3000:]
    assert resident.returncode != 0
    assert "memory" in resident.stderr.lower()
