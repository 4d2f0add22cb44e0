"""How processes share a step: what is refused, and what is noticed, whatever the strategy."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from forked import Forked
from runs import Place
from torch.utils.file_baton import FileBaton

import lrft
from lrft import registry
from lrft.adapters import compose
from lrft.cli.main import run_command
from lrft.distributed import compile_lock, zero2
from lrft.errors import CheckFailed, LrftError, MissingError, RecipeError
from lrft.training.sanity_checks import MovementCheck
from lrft.training.setup import set_up
from lrft.training.state import Options

# What acts on gradients, trained tensors or the optimiser between passes, or adds a term to the loss of a step.
ACTING = {
    "adalora",
    "adversarial-model-perturbation",
    "aflora",
    "ard-lora",
    "autolora",
    "bilora",
    "blockllm",
    "booster",
    "coap",
    "cuttlefish",
    "diffora",
    "dora-dynamic",
    "dress",
    "elalora",
    "fast-forward",
    "fedsvd",
    "finegates",
    "fira",
    "flora",
    "frugal",
    "galore",
    "galore-plus",
    "gor",
    "gradient-regularization",
    "gradnormlorp",
    "increlora",
    "kasa",
    "lamda",
    "loft",
    "lora-ggpo",
    "lora-pro",
    "lora-rite",
    "lora-sb",
    "lora2",
    "loraprune",
    "lori",
    "lte",
    "maestro",
    "monteclora",
    "norm-loss",
    "nuclear-norm",
    "online-subspace-descent",
    "orthonormal-constraint",
    "pego",
    "preconditioned",
    "prilora",
    "relora",
    "riemannlora",
    "roselora",
    "sara",
    "slope",
    "sora",
    "sorsa",
    "spectral-reg",
    "sst",
}


@pytest.mark.parametrize("command", [["plan"], ["train", "--dry-run"]], ids=" ".join)
def test_zero2_refuses_what_acts_between_steps(
    command: list[str], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("distributed.strategy=zero2", "adapter.method=[lora, relora, {lora+: {ratio: 4}}]")
    arguments = [*command, str(place.root / "recipe.yaml"), *keys]
    assert run_command([*arguments, "--devices", "2"]) == 2
    said = capsys.readouterr().err
    assert "adapter.method: relora acts on gradients, trained tensors or the optimiser between steps" in said
    assert "argument 2" in said, "where the method was named"
    assert run_command([*arguments, "--devices", "1"]) == 0, "one process shares nothing"


def test_a_process_of_several_refuses_before_it_reads_weights(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (place.root / "base" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(RecipeError, match="relora acts on gradients"):
        set_up(place.recipe("distributed.strategy=zero2", "adapter.method=relora"), Options(quiet=True))


def test_what_leaves_deepspeed_alone_is_trained_under_it() -> None:
    acting = {name for name in registry.methods() if name in compose.compose([(name, {})]).acting_between_passes}
    assert acting == ACTING
    page = (Path(lrft.__file__).parents[1] / "docs" / "distributed.md").read_text(encoding="utf-8")
    stated = re.search(r"(\d+) of the (\d+) names", " ".join(page.split()))
    assert stated is not None
    assert (int(stated[1]), int(stated[2])) == (len(registry.methods()) - len(ACTING), len(registry.methods()))
    for name, options in (("lora-fa", {"corrected": True}), ("dylora", {"strict": True})):
        assert compose.compose([(name, options)]).acting_between_passes == [name]


def test_a_plan_has_no_zero2_where_it_would_be_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(place.root / "recipe.yaml"), "--devices", "2", "--json"]
    for method, listed in (("lora", True), ("relora", False)):
        assert run_command([*arguments, f"adapter.method={method}"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [("zero2" in found[key]) for key in ("memory", "communication", "efficiency")] == [listed] * 3


def test_zero2_says_what_to_install(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    recipe = place.recipe("distributed.strategy=zero2")
    zero2.refuse(recipe, 1)
    with pytest.raises(MissingError, match="zero2 requires the package deepspeed") as caught:
        zero2.refuse(recipe, 2)
    assert "lrft[deepspeed]" in "\n".join(caught.value.lines())


def test_a_deepspeed_that_does_not_start_is_told_with_what_it_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    def fails(**_: Any) -> None:
        print("no compiler was found")
        raise OSError("CUDA_HOME is not set")

    monkeypatch.setattr(deepspeed, "initialize", fails)
    attached = lrft.attach(tiny.make("llama"), {"method": "lora", "rank": 4})
    optimizer = torch.optim.AdamW(attached.trained().values())
    with pytest.raises(MissingError, match="DeepSpeed failed to start: CUDA_HOME is not set") as caught:
        zero2.Zero2(None, attached.model, optimizer, attached, None)
    assert "no compiler was found" in "\n".join(caught.value.lines())


def test_a_lock_that_a_killed_run_has_left_is_named_before_deepspeed_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / compile_lock.EXTENSION / "lock"
    compile_lock.refuse_left_behind()
    lock.parent.mkdir()
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    os.utime(lock, (0, 0))
    compile_lock.refuse_left_behind()
    os.close(baton.fd)
    attached = lrft.attach(tiny.make("llama"), {"method": "lora", "rank": 4})
    optimizer = torch.optim.AdamW(attached.trained().values())
    with pytest.raises(LrftError, match=f"would wait forever: no process on this machine holds {lock}") as caught:
        zero2.Zero2(None, attached.model, optimizer, attached, None)
    assert f"rm {lock}" in "\n".join(caught.value.lines())


def test_a_lock_that_another_machine_may_hold_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / compile_lock.EXTENSION / "lock"
    lock.parent.mkdir()
    lock.touch()
    with pytest.raises(LrftError, match="would wait forever"):
        compile_lock.refuse_left_behind(0.05)
    lock.touch()
    capsys.readouterr()
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), lock.unlink()))
    compile_lock.refuse_left_behind(600.0)
    assert slept == [1.0]
    assert "waiting for up to 600 s" in capsys.readouterr().err


WITHOUT = """
import sys
from lrft.cli.main import run_command
code = run_command(sys.argv[1:])
sys.exit(code or int("deepspeed" in sys.modules))
"""


def test_deepspeed_is_imported_by_the_strategy_that_needs_it_alone(tmp_path: Path) -> None:
    """It speaks when it is imported, and takes seconds."""
    place = runs.Place.make(tmp_path)
    keys = ("training.max_steps=1", "training.warmup_steps=0", "evaluation.every=1", "evaluation.samples=1")
    done = Forked(WITHOUT, "train", str(place.root / "recipe.yaml"), *keys).wait(600)
    assert done.returncode == 0, done.stdout + done.stderr


WORKER = """
import json, sys, warnings
warnings.filterwarnings("ignore")
sys.path[:0] = sys.argv[1].split(":")
from types import SimpleNamespace
import torch
from lrft.distributed import processes
from lrft.distributed.accelerator import make_accelerator
from lrft.errors import CheckFailed
from lrft.distributed.zero2 import Zero2

accelerator = make_accelerator("fp32")
rank = accelerator.process_index

class Losses(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.ParameterList(torch.zeros(64) for _ in range(2))
    def forward(self, *weights):
        return sum(weight * self.w[at].sum() for at, weight in enumerate(weights) if weight is not None)

losses = Losses()
trained = {"one": losses.w[0], "two": losses.w[1]}
groups = [{"params": list(trained.items()), "lr": 0.0, "weight_decay": 0.0}]
attached = SimpleNamespace(trained=lambda: trained)
zero = Zero2(accelerator, losses, torch.optim.AdamW(groups), attached, None)

sums = []
for name in ("reduce", "all_reduce"):
    def noted(tensor, *arguments, of=getattr(torch.distributed, name), name=name, **named):
        sums.append((name, tensor.numel()))
        return of(tensor, *arguments, **named)
    setattr(torch.distributed, name, noted)
said = {}
for last in (False, False, True):
    with zero.of_pass(last=last):
        zero.backward(zero.model(1.0 + rank, 10.0))
said["sums of the passes"] = [entry for entry in sums if entry[1] > 2]
said["gradients"] = {name: gradient.unique().tolist() for name, gradient in zero.gradients()}
norms = []
zero.step(None, norms.append)
with zero.of_pass(last=True):
    zero.backward(zero.model(float("inf"), 1.0) if rank else zero.model(1.0, 1.0))
zero.step(None, norms.append)
said["norm"], said["not finite"] = norms
try:
    with zero.of_pass(last=True):
        zero.backward(zero.model(1.0, None) if rank else zero.model(None, 1.0))
except CheckFailed as error:
    said["left out"] = str(error)
with open(f"{sys.argv[2]}/said-{rank}.json", "w") as file:
    json.dump(said, file)
processes.leave()
"""


@pytest.mark.slow
def test_what_zero2_sums_and_what_it_cannot(tmp_path: Path) -> None:
    """Three passes of two processes; a gradient that is not finite on one; a pass that leaves out a tensor."""
    runs.side_by_side(WORKER, str(tmp_path))
    for rank in range(2):
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        # Each pass sends every gradient to the process that keeps its sum, and to nobody else.
        assert {name for name, _ in said["sums of the passes"]} == {"reduce"}
        assert sum(numbers for _, numbers in said["sums of the passes"]) == 3 * 128
        assert said["gradients"] == {"one": [pytest.approx(4.5)], "two": [pytest.approx(30.0)]}
        assert said["norm"] == pytest.approx(math.hypot(4.5, 30.0) * 8)
        assert not math.isfinite(said["not finite"])
        assert re.match(
            f"no gradient reaches {('one', 'two')[rank]} in a pass.*every pass must produce gradients", said["left out"]
        )


def test_a_tensor_may_be_reached_on_another_process_only() -> None:
    """A process whose rows pass another expert has no gradient; that nobody has one is a fault."""
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": "lora", "rank": 4})
    movement = MovementCheck(attached)
    last = list(attached.trained())[-2:]
    for name in last:
        attached.trained()[name].requires_grad_(False)
    model(input_ids=ids, labels=ids).loss.backward()
    flags = []

    def alone(mine: torch.Tensor) -> torch.Tensor:
        flags.append(mine.clone())
        return mine

    unreached = movement.unreached(alone)
    assert unreached == last
    assert movement.unreached(lambda mine: mine + flags[0]) == last, "each step is asked for by itself"
    model(input_ids=ids, labels=ids).loss.backward()
    assert movement.unreached(lambda mine: mine + 1) == []
    with pytest.raises(CheckFailed, match="no gradient reaches"):
        movement.after_step(1, unreached, {}, {})
