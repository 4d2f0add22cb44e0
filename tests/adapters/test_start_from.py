"""Training that starts from a saved adapter: what is taken over, against dense updates; runs; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import on_disk
import pytest
import runs
import tiny
import torch
from peft import LoraConfig, get_peft_model
from runs import Place
from torch import Tensor
from transformers import AutoModelForCausalLM

import lrft
from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.start_from import start_from
from lrft.cli.main import run_command
from lrft.errors import CheckFailed, RecipeError

TARGETS = ["q_proj", "down_proj"]
EVALUATED = ("evaluation.every=3", "evaluation.at_start=true")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_disk.save_base(tmp_path_factory.mktemp("start") / "base")


def begun(base: Path, folder: Path, words: Any = "lora", **more: Any) -> tuple[Any, Any]:
    """(handle on fresh adapters with the start of the adapter in `folder`, what was taken)."""
    model = AutoModelForCausalLM.from_pretrained(base)
    attached = lrft.attach(model, {"method": words, "rank": 4, "target_modules": TARGETS, **more}, seed=3)
    return attached, start_from(attached, placed(read_any(folder), model))


def updates(attached: Any) -> dict[str, Tensor]:
    return {name: attached.delta(name).double() for name in attached.modules}


@pytest.mark.parametrize("words", ["lora", "dora", "pissa", "vera", "mora", ["lora", "relora"], "lora-ensemble"])
def test_the_same_method_takes_the_tensors(base: Path, tmp_path: Path, words: Any) -> None:
    words = {"lora-ensemble": {"lora-ensemble": {"members": 2}}}.get(str(words), words)
    saved = on_disk.save_adapter(tmp_path / "a", base, words, rank=4, target_modules=TARGETS)
    attached, started = begun(base, tmp_path / "a", words)
    assert started.as_it_is
    assert started.error == 0
    assert not started.fresh
    given = attached.state_dict()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("words", ["lora", "rslora", "dora", "mora", "pissa", "hra", "vera"])
@pytest.mark.parametrize("rank", [1, 12])
def test_another_rank_takes_the_update_or_its_best_part(base: Path, tmp_path: Path, words: str, rank: int) -> None:
    more = {"alpha": 7} if words in ("lora", "rslora", "dora") else {}
    saved = on_disk.save_adapter(
        tmp_path / "a", base, words, rank=3 if words != "hra" else 4, target_modules=TARGETS, **more
    )
    attached, started = begun(base, tmp_path / "a", rank=rank, alpha=5)
    worst = 0.0
    for name, wanted in updates(saved).items():
        S = torch.linalg.svdvals(wanted)
        least, found = S[rank:].norm().item(), attached.delta(name).double()  # no other of this rank is nearer
        assert (found - wanted).norm().item() == pytest.approx(least, rel=1e-4, abs=1e-5 * S.norm().item())
        assert torch.linalg.matrix_rank(found, rtol=1e-5) <= rank
        worst = max(worst, least / S.norm().item())
    assert started.error == pytest.approx(worst, rel=1e-3, abs=1e-5)
    assert (f"{worst:.2%}" in str(started)) == (started.error > 0)


def test_a_higher_rank_can_be_learnt_with(base: Path, tmp_path: Path) -> None:
    on_disk.save_adapter(tmp_path / "a", base, rank=2, target_modules=TARGETS)
    attached, _ = begun(base, tmp_path / "a", rank=8)
    attached.model.train()
    attached.model(input_ids=tiny.tokens(2, 9), labels=tiny.tokens(2, 9)).loss.backward()
    for name, p in attached.trained().items():
        if name.endswith(".B"):
            assert (p.grad.abs().sum(0) > 0).all(), f"a component of {name} is dead"


def test_a_lora_of_peft(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_rslora=True, init_lora_weights=False),
    ).eval()
    model.save_pretrained(tmp_path / "peft")
    ids = tiny.tokens(2, 9)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        for rank in (3, 6):
            attached, started = begun(base, tmp_path / "peft", rank=rank)
            assert started.error == 0
            torch.testing.assert_close(attached.model.eval()(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_modules_that_it_does_not_have_keep_their_init(base: Path, tmp_path: Path) -> None:
    on_disk.save_adapter(tmp_path / "a", base, rank=4, target_modules=["q_proj"])
    attached, started = begun(base, tmp_path / "a")
    assert started.fresh == tuple(name for name in attached.modules if name.endswith("down_proj"))
    assert "with their own init" in str(started)
    for name in attached.modules:
        assert bool(attached.delta(name).any()) == name.endswith("q_proj")


@pytest.mark.parametrize(
    ("words", "into", "more", "said"),
    [
        ("lora", "lora", {"target_modules": ["q_proj"]}, "would be dropped"),
        ("lora", "pissa", {}, "pissa does not hold an update as a pair"),
        ("mora", "dora", {}, "does not hold an update as a pair"),
        ("mora", "vera", {}, "use the method, rank and options of that adapter"),
    ],
)
def test_what_would_be_lost_is_refused(
    base: Path, tmp_path: Path, words: str, into: str, more: dict[str, Any], said: str
) -> None:
    on_disk.save_adapter(tmp_path / "a", base, words, rank=3, target_modules=TARGETS)
    with pytest.raises(ValueError, match=said):
        begun(base, tmp_path / "a", into, **more)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("first")
        patch.setenv("LRFT_CACHE", str(root / "cache"))
        place = Place.make(root)
        return place, place.train(*EVALUATED, "training.epochs=2", "training.learning_rate=0.01", out="first")


def start_loss(run: Path) -> float:
    (found,) = [record for record in runs.records(run, "eval") if record["step"] == 0]
    loss: float = found["loss"]
    return loss


def test_a_run_goes_on_where_another_ended(first: tuple[Place, Path]) -> None:
    place, run = first
    ended = [record["loss"] for record in runs.records(run, "eval")][-1]
    same = place.train(*EVALUATED, f"adapter.start_from={run / 'last'}", "training.epochs=1", out="same")
    more = place.train(
        *EVALUATED, f"adapter.start_from={run / 'last'}", "adapter.rank=9", "training.epochs=1", out="more"
    )
    for other in (same, more):
        assert start_loss(other) == pytest.approx(ended, rel=1e-4)
        told = json.loads((other / "run.json").read_text())
        assert told["result"]["started from"] == str(run / "last")
        assert "module" in told["checks"]["started from"]
        assert not any("changes the model's output" in text for text in told["warnings"])


def test_resumed_is_straight(first: tuple[Place, Path]) -> None:
    place, run = first
    words = (f"adapter.start_from={run}", "adapter.rank=9", "training.max_steps=4", "checkpoint.every=2")
    straight = place.train(*words, out="straight")
    resumed = runs.cut(straight, 2, place.root / "resumed")
    place.train(*words, out="resumed", resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(resumed)) == []


def test_a_run_that_gets_worse_is_compared_with_its_start(first: tuple[Place, Path]) -> None:
    place, run = first
    words = (*EVALUATED, f"adapter.start_from={run}", "training.learning_rate=3", "training.epochs=1")
    with pytest.raises(CheckFailed, match=f"worse than {run}, which it started from"):
        place.train(*words, out="worse")


def pairs(path: Path, n: int, seed: int) -> Path:
    words = [row["messages"] for row in runs.rows(2 * n, seed=seed)]
    made = [{"prompt": a[:-1], "chosen": a[-1:], "rejected": b[-1:]} for a, b in zip(words[:n], words[n:], strict=True)]
    return runs.write_rows(path, made)


def test_the_reference_of_preference_tuning_is_the_start(first: tuple[Place, Path]) -> None:
    place, run = first
    train, held_out = pairs(place.root / "pairs.jsonl", 8, 5), pairs(place.root / "held_out.jsonl", 4, 6)
    found = {}
    for reference in ("cached", "each-step"):
        dpo = place.train(
            f"training.objective={{dpo: {{reference: {reference}}}}}",
            f"data.train={train}",
            f"data.validation={held_out}",
            f"adapter.start_from={run}",
            "training.epochs=1",
            out=f"dpo-{reference}",
        )
        found[reference] = runs.records(dpo)
    # The start is its own reference: margins of zero, and a loss of log 2, though the start is far from the base.
    assert found["cached"][0]["figures"]["reward margin"] == pytest.approx(0, abs=1e-5)
    for a, b in zip(found["cached"], found["each-step"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["figures"]["reward margin"] == pytest.approx(b["figures"]["reward margin"], rel=1e-3, abs=1e-5)


def test_what_cannot_be_started_from_is_refused_with_its_place(
    first: tuple[Place, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, run = first
    other = on_disk.save_base(tmp_path / "base", dtype=torch.float64)
    on_disk.save_adapter(tmp_path / "other", other)
    recipe = place.root / "recipe.yaml"
    text = recipe.read_text()
    try:
        for start, said in [
            (tmp_path / "nothing", "does not exist"),
            (tmp_path, "neither a run nor an adapter folder"),
            (tmp_path / "other", "an adapter over a base with fingerprint"),
        ]:
            recipe.write_text(text.replace("  rank: 4\n", f"  rank: 4\n  start_from: {start}\n"))
            assert run_command(["check", str(recipe)]) == 2
            shown = " ".join(capsys.readouterr().err.split())
            assert said in shown
            assert "recipe.yaml:" in shown
    finally:
        recipe.write_text(text)
    with pytest.raises(RecipeError, match="would be dropped"):
        place.train(f"adapter.start_from={run}", "adapter.target_modules=[q_proj]", out="fewer")


def test_what_a_trained_run_started_from_may_go_unless_it_is_its_reference(
    first: tuple[Place, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place, run = first
    start = place.root / "moving"
    shutil.copytree(run / "best", start)
    train, held_out = pairs(place.root / "pairs.jsonl", 8, 5), pairs(place.root / "held_out.jsonl", 4, 6)
    words = (f"adapter.start_from={start}", "training.epochs=1")
    sft = place.train(*words, out="sft-moved")
    dpo = place.train(
        *words, "training.objective=dpo", f"data.train={train}", f"data.validation={held_out}", out="dpo-moved"
    )
    shutil.rmtree(start)
    assert run_command(["eval", str(sft), "--no-generate"]) == 0
    capsys.readouterr()
    assert run_command(["eval", str(dpo), "--no-generate"]) == 2
    assert "moving does not exist" in " ".join(capsys.readouterr().err.split())
