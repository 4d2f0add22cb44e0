"""Runs of embedding models: with several methods, resumed, over processes, evaluated, merged; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import embedders
import pytest
import runs
import torch
import two_processes
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from lrft.adapters.storage import read_adapter
from lrft.cli.main import app
from lrft.errors import LrftError
from lrft.export.merge import merge_adapter
from lrft.model.embedder import Embedder, stored_embedder
from lrft.publishing.stage import stage
from lrft.verification.run import verify_run

LEARN = (
    *("evaluation.every=6", "evaluation.at_start=true", "training.max_steps=18", "training.epochs=9"),
    *("training.global_batch_size=8", "data.query_prompt='time: '"),
)


def figures(run: Path) -> list[dict[str, float]]:
    return [record["figures"] for record in runs.records(run, "eval")]


def embed(model: Any, tokenizer: Any, texts: list[str], pooling: str) -> Tensor:
    """In a batch, padded on the right, as stock transformers does it."""
    given = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    lengths = given["attention_mask"].sum(1)
    rows = [row[:n].mean(0) if pooling == "mean" else row[n - 1] for row, n in zip(hidden, lengths, strict=True)]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.mark.parametrize(("name", "pooling"), [("llama", "last"), ("bert", "mean")])
def test_a_run_learns_and_all_commands_know_it(name: str, pooling: str, tmp_path: Path) -> None:
    """Stock transformers and stock PEFT find with the result what the run's last evaluation says."""
    place = embedders.place(tmp_path, name)
    run = place.train(*LEARN)
    before, *_, after = figures(run)
    assert list(after) == ["recall@1", "recall@10", "MRR"]
    assert after["MRR"] > before["MRR"]
    merged = merge_adapter((run / "last").resolve(), run / "merged").out
    expected = Embedder(pooling, True, 24, max_length=128, prompts={"query": "time: ", "document": ""})
    assert stored_embedder(merged) == stored_embedder((run / "last").resolve()) == expected
    assert read_adapter(run / "last").head.embedder == expected
    base = AutoModel.from_pretrained(tmp_path / "base").eval()
    adapter_config = json.loads((run / "last" / "adapter_config.json").read_text())
    assert adapter_config["task_type"] == "FEATURE_EXTRACTION"
    tokenizer = AutoTokenizer.from_pretrained(merged)
    texts = embedders.rows(9, seed=1)
    for model in (AutoModel.from_pretrained(merged).eval(), PeftModel.from_pretrained(base, run / "last").eval()):
        queries = embed(model, tokenizer, [f"time: {row['anchor']}" for row in texts], pooling)
        documents = embed(model, tokenizer, [row["positive"] for row in texts], pooling)
        scores = queries @ documents.T
        ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1)
        assert (1 / ranks).mean().item() == pytest.approx(after["MRR"])
    assert all(finding.holds for finding in verify_run(run, (run / "last").resolve()))
    data = str(tmp_path / "validation.jsonl")
    for target in (run / "last", merged):
        done = CliRunner().invoke(app, ["eval", str(target), "--data", data, "--json", "--batch-size", "2"])
        found = json.loads(done.stdout)
        assert (found["figures"], found["pairs"], found["samples"]) == (pytest.approx(after), 9, [])
    for command in ("check", "plan", "preview"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "recipe.yaml")])
        assert done.exit_code == 0, done.output
    assert "query\n" in done.output


@pytest.mark.parametrize(
    "method",
    [
        *("lora", "galore", "relora", "lora-ga"),
        *(pytest.param(name, marks=pytest.mark.all) for name in ("dora", "mora", "pissa", "vera", "full")),
    ],
)
def test_any_method_and_any_micro_batch(method: str, tmp_path: Path) -> None:
    """And resumed to the bit."""
    place = embedders.place(tmp_path)
    keys = (f"adapter.method={method}", "training.max_steps=4", "checkpoint.every=2", "checkpoint.keep=9")
    run = place.train(*keys)
    cut = runs.cut(run, 2, tmp_path / "cut")
    place.train(*keys, out="cut", resume="last")
    assert runs.differing(runs.tensors(run), runs.tensors(cut)) == []
    whole = place.train(*keys, "training.micro_batch_size=4", out="whole")
    losses = [[record["loss"] for record in runs.records(each)] for each in (run, whole)]
    # What is calibrated on batches sees the negatives of a batch alone.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if method != "lora-ga" else 1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("data.packing=true",), "data.packing: embedding trains a head, which answers each row by itself"),
        (("adapter.method=ba-lora",), "adds to the loss, which training.objective: embedding does not take up"),
        (("adapter.method=lora-ensemble",), "answers in copies, which training.objective: embedding does not take up"),
        (("training.objective={embedding: {pooling: max}}",), "pooling"),
        (("training.objective={embedding: {temperature: 0}}",), "temperature"),
        (("training.objective={embedding: {matryoshka: [24, 48]}}",), "an embedding has 24 numbers, so there is no"),
        (("training.objective={embedding: {matryoshka: [8], matryoshka_weights: [1, 2]}}",), "2 numbers for 1 widths"),
        (("data.labels=[a, b]",), r"data\.labels has no effect: the rows of training\.objective: embedding have no"),
        (("training.objective=sft", "data.query_prompt=x"), r"data\.query_prompt has no effect"),
    ],
)
def test_what_does_not_go_together_is_refused(keys: tuple[str, ...], message: str, tmp_path: Path) -> None:
    place = embedders.place(tmp_path)
    with pytest.raises(LrftError, match=message):
        place.train(*keys)


def test_a_row_that_is_compared_with_nothing_is_refused(tmp_path: Path) -> None:
    pairs = embedders.rows(6)
    place = embedders.place(tmp_path, made=pairs)
    with pytest.raises(LrftError, match=r"global_batch_size: 1 row a step.*its own alone"):
        place.train("training.global_batch_size=1")
    runs.write_rows(tmp_path / "train.jsonl", [row | {"negative": "no"} for row in pairs])
    place.train("training.global_batch_size=1", "training.max_steps=2")


def test_what_is_exported_combined_and_pushed_pools_alike(tmp_path: Path) -> None:
    place = embedders.place(tmp_path)
    run = place.train("training.max_steps=2")
    adapter = (run / "last").resolve()
    expected = stored_embedder(adapter)
    assert expected is not None
    commands = {
        "peft": ["export", str(adapter), "--to", "peft"],
        "lora": ["export", str(adapter), "--to", "lora"],
        "combined": ["combine", str(adapter), str(adapter)],
    }
    for name, words in commands.items():
        done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, (done.output, done.exception)
        assert stored_embedder(tmp_path / name) == expected
    for command in ("generate", "chat", "serve"):
        done = CliRunner().invoke(
            app, [command, str(adapter), *(["--prompt", "hello"] if command == "generate" else [])]
        )
        assert "answers with embeddings, not with text" in str(done.exception), (command, done.output)
    (tmp_path / "staged").mkdir()
    stage(adapter, tmp_path / "staged", "owner/base")
    assert stored_embedder(tmp_path / "staged") == expected


def test_the_pooling_of_the_base_is_kept_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    place = embedders.place(tmp_path)
    Embedder("cls", False, 24, prompts={"query": "what: "}).save(tmp_path / "base")
    run = place.train("training.max_steps=1")
    found = stored_embedder((run / "last").resolve())
    assert found == Embedder("cls", False, 24, max_length=128)
    pooling = tmp_path / "base" / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace('"pooling_mode_cls_token": true', '"pooling_mode_max_tokens": true'))
    with pytest.raises(LrftError, match="pools by pooling_mode_max_tokens; known are mean, last, cls"):
        place.train("training.max_steps=1", out="other")


@pytest.mark.slow
def test_two_processes_train_the_same_embeddings(tmp_path: Path) -> None:
    """The negatives are gathered from both. Nine rows in steps of four: the last step has one."""
    place = embedders.place(tmp_path, made=embedders.rows(9, negatives=2))
    keys = (*two_processes.KEYS, "evaluation.samples=0")
    one = place.train(*keys, out="one")
    two_processes.launch(place, "two", *keys)
    two = tmp_path / "two"
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-4
    for a, b in zip(runs.records(one, "eval"), runs.records(two, "eval"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["figures"] == pytest.approx(b["figures"])
