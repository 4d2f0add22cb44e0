"""What comes out of a run, read by stock transformers alone: template, end token, answers."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import lrft
from lrft.cli.main import run_command
from lrft.data import Rows, prepare
from lrft.distributed import strategy
from lrft.evaluation import generate as evaluation_generate
from lrft.evaluation.generate import stop_tokens
from lrft.objectives import packing
from lrft.objectives.cross_entropy import trained_tokens
from lrft.objectives.sft import TokenLoss
from lrft.training.setup import set_up
from lrft.training.state import Options
from lrft.verification.run import CheckFailed, Finding, verify_run


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runs.Place]:
    """A run long enough to know its few short answers by heart, and its merged folder."""
    root = tmp_path_factory.mktemp("learnt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRFT_CACHE", str(root / "cache"))
        place = runs.Place.make(root)
        learn(place)
        yield place


def learn(place: runs.Place) -> None:
    made = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in (("1?", "hello"), ("2?", "world"), ("3?", "forty two"), ("4?", "time"))
    ]
    runs.write_rows(place.root / "train.jsonl", made)
    runs.write_rows(place.root / "validation.jsonl", made)
    place.train(
        "training.epochs=80",
        "training.global_batch_size=4",
        "training.learning_rate=0.01",
        "adapter.rank=16",
        "adapter.target_modules=[all-linear, lm_head]",
        "data.packing=true",
    )
    assert run_command(["merge", str(place.root / "run")]) == 0


def test_stock_transformers_renders_and_stops_as_trained(learnt: runs.Place) -> None:
    """Trust 7, 11: pad == eos, and the model has learnt to stop; the template that trained lies with the result."""
    folder = learnt.root / "run" / "merged"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in (model.generation_config.eos_token_id, model.config.eos_token_id)
    rows = trained_rows(learnt, tokenizer)
    for i in range(len(rows)):
        chat = json.loads((learnt.root / "train.jsonl").read_text().splitlines()[i])["messages"]
        prompt = tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert prompt["input_ids"][0].tolist() == rows.prompt(i).tolist()
        out = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answer = out[0, prompt["input_ids"].shape[1] :].tolist()
        assert answer[-1] == tokenizer.eos_token_id, "the model talks on"
        assert tokenizer.decode(answer, skip_special_tokens=True).strip() == chat[1]["content"]


def test_a_trained_end_token_that_is_not_the_bases_stops_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trust 11: a base model, whose end token closes texts, is trained on turns that its template closes otherwise."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    place = runs.Place.make(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "base")
    GenerationConfig(eos_token_id=0, bos_token_id=1).save_pretrained(tmp_path / "base")
    both = [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    session = set_up(place.recipe("training.max_steps=1"), Options(quiet=True))
    assert stop_tokens(session.base.model, session.inputs.tokenizer) == both  # of samples while training

    place.train("training.max_steps=1")
    assert run_command(["merge", str(tmp_path / "run")]) == 0
    for folder in ("run/last", "run/merged"):
        assert GenerationConfig.from_pretrained(tmp_path / folder).eos_token_id == both
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.generation_config.eos_token_id == 0
    lrft.load_adapter(model, tmp_path / "run" / "last")
    assert model.generation_config.eos_token_id == both
    capsys.readouterr()
    said = [stops_in_eval(tmp_path / target, monkeypatch) for target in ("run", "run/merged", "base")]
    assert said == [both] * 3


def stops_in_eval(target: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that `lrft eval` stops at."""
    found: list[int] = []
    generate = evaluation_generate.generate

    def watched(*arguments: Any, **options: Any) -> list[list[int]]:
        found[:] = options["stop_ids"]
        return generate(*arguments, **options)

    rows = next(folder / "train.jsonl" for folder in target.parents if (folder / "train.jsonl").is_file())
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_generate, "generate", watched)
        assert run_command(["eval", str(target), "--data", str(rows), "--limit", "1", "--max-new-tokens", "1"]) == 0
    return found


def trained_rows(place: runs.Place, tokenizer: object) -> Rows:
    section = place.recipe().data
    return prepare(
        section, tokenizer, seed=42, limit=256, where=lambda key: "default", cache=place.root / "cache"
    ).train


def test_eval_of_run_adapter_and_merged_agree(learnt: runs.Place, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(learnt.root / "validation.jsonl")
    found = []
    for target in ("run", "run/best", "run/merged"):
        assert run_command(["eval", str(learnt.root / target), "--data", data, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [result["exact_match"] for result in found] == [1.0, 1.0, 1.0]
    assert found[0]["tokens"] == found[2]["tokens"]
    assert found[1]["loss"] == pytest.approx(found[2]["loss"], rel=1e-4)
    assert run_command(["eval", str(learnt.root / "base"), "--data", data, "--json", "--no-generate"]) == 0
    base = json.loads(capsys.readouterr().out)
    assert "exact_match" not in base
    assert base["loss"] > 10 * found[0]["loss"]


def test_eval_reads_rows_of_other_columns_when_it_is_told_how(
    learnt: runs.Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = runs.write_rows(tmp_path / "rows.jsonl", [{"question": "1?", "answer": "hello"}] * 2)
    command = ["eval", str(learnt.root / "run"), "--data", str(rows), "--no-generate", "--json"]
    assert run_command(command) == 3
    advice = capsys.readouterr().err.split("Try ")[1]
    assert run_command([*command, *shlex.split(advice)]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
    for wrong, says in (
        (["--columns", "{question: promt}"], "Did you mean prompt"),
        (["--columns", "{question"], "--columns  not valid YAML"),
        (["--format", "completon"], "Did you mean completion"),
        (["--columns", "{qestion: prompt, answer: completion}"], "Did you mean question"),
    ):
        assert run_command([*command, *wrong]) == 2
        assert says in capsys.readouterr().err
    assert run_command(["eval", str(learnt.root / "run"), "--format", "text"]) == 2
    assert "--format requires --data" in capsys.readouterr().err


def test_eval_needs_rows_and_preview_and_check_work_on_a_run(
    learnt: runs.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["eval", str(learnt.root / "run" / "merged")]) == 2
    assert "--data" in capsys.readouterr().err
    assert run_command(["preview", str(learnt.root / "run"), "-n", "1"]) == 0
    assert "[[hello" in capsys.readouterr().out
    assert run_command(["check", str(learnt.root / "run")]) == 0
    assert "OK" in capsys.readouterr().out


def found_in(run: Path) -> list[Path]:
    """All but what commands leave for the run's page."""
    return sorted(p for p in run.rglob("*") if "after" not in p.relative_to(run).parts)


def test_verify_holds_for_a_good_run_and_leaves_nothing(learnt: runs.Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = learnt.root / "run"
    before = found_in(run)
    assert run_command(["verify", str(run)]) == 0
    said = capsys.readouterr().out
    for name in ("packed", "accumulation", "merged", "resumed"):
        assert f"holds      {name}" in said
    assert found_in(run) == before


def test_verify_fails_with_the_figure_when_the_merged_folder_is_another(learnt: runs.Place, tmp_path: Path) -> None:
    run = shutil.copytree(learnt.root / "run", tmp_path / "run", symlinks=True)
    path = run / "merged" / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "down_proj" in n)
    tensors[name] = tensors[name] + torch.randn_like(tensors[name])
    save_file(tensors, path, {"format": "pt"})
    assert run_command(["verify", str(run)]) == 4


def test_verify_notices_each_broken_promise(learnt: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = learnt.root / "run"

    def fails(name: str) -> None:
        told: list[Finding] = []
        with pytest.raises(CheckFailed, match=name):
            verify_run(run, run / "best", tell=told.append)
        assert [finding.name for finding in told if not finding.holds] == [name]

    with monkeypatch.context() as broken:  # rows that see each other
        broken.setattr(packing, "packed_equals_alone", lambda model, rows, form: float("nan"))
        fails("packed")
    with monkeypatch.context() as broken:  # a little
        broken.setattr(packing, "largest_move", lambda ask, pair, rows: float("nan"))
        fails("packed")
    with monkeypatch.context() as broken:  # means of means
        whole = TokenLoss.forward
        broken.setattr(TokenLoss, "forward", lambda self, batch: whole(self, batch) / trained_tokens(batch))
        fails("accumulation")
    with monkeypatch.context() as broken:  # an optimiser that starts anew
        broken.setattr(strategy, "load_state_tensors", lambda optimizer, tensors, expected: None)
        fails("resumed")
