"""The benchmark's own parts: rows, tables, the limit against stock transformers, lrft as a contestant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from performance import (
    commands,
    contestants,
    curves,
    equal,
    gpu,
    lrft_step,
    methods,
    report,
    rounds,
    rows,
    steps,
    tables,
)
from performance.job import Job
from performance.limit import Llama, SwiGlu, passes
from performance.models import word_tokenizer
from performance.padding import Counting, examples, padded
from performance.recorder import Recorder

SHAPE = rows.Shape(rows=5, tokens=60, padding=0.4)


def made(vocabulary: int = tiny.VOCABULARY, count: int = 1) -> list[rows.Batch]:
    return rows.batches(SHAPE, vocabulary=vocabulary, steps=count, seed=3)


# rows


@pytest.mark.parametrize(("shape", "near"), [(rows.Shape(), 0.003), (SHAPE, 0.03), (rows.Shape(64, 12000), 0.003)])
def test_rows_have_the_promised_shares(shape: rows.Shape, near: float) -> None:
    (batch,) = rows.batches(shape, vocabulary=1000)
    assert len(batch.rows) == shape.rows
    assert batch.tokens == shape.tokens
    assert batch.padding == pytest.approx(shape.padding, abs=near)
    assert batch.labelled == round(shape.labelled * shape.tokens)


def test_every_row_has_a_question_and_an_answer_that_ends() -> None:
    for row in rows.batches(rows.Shape(), vocabulary=1000)[0].rows:
        assert 1 <= row.answer < len(row.tokens)
        assert row.tokens[-1] == rows.END
        assert all(rows.FIRST_WORD <= token < 1000 for token in row.tokens[:-1])
        assert row.labels[: row.answer] == [-100] * row.answer


def test_steps_differ_in_their_words_and_seeds_decide_on_them() -> None:
    first, second = made(count=2)
    assert first != second
    assert sorted(len(row.tokens) for row in first.rows) == sorted(len(row.tokens) for row in second.rows)
    assert made(count=2) == [first, second]


def test_rows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        rows.lengths(rows.Shape(rows=1, tokens=10))


def test_saved_rows_are_the_same_and_their_text_has_their_ids(tmp_path: Path) -> None:
    batches = made(count=2)
    path = rows.save(batches, tmp_path / "rows.json")
    assert rows.load(path) == batches
    tokenizer = word_tokenizer(tiny.VOCABULARY)
    texts = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    for text, row in zip(texts, [row for batch in batches for row in batch.rows], strict=True):
        assert [*tokenizer(text["prompt"] + text["completion"])["input_ids"], rows.END] == row.tokens
        assert len(tokenizer(text["prompt"])["input_ids"]) == row.answer


def test_counting_refuses_steps_of_unequal_rows() -> None:
    (batch,) = made()
    collator = Counting(padded)
    for _ in range(2):
        out = collator(examples(batch))
    assert out["input_ids"].shape == (5, batch.longest)
    assert collator.per_step(2) == {"tokens": 60, "labelled": batch.labelled, "checksum": batch.checksum}
    collator(examples(batch)[:1])
    with pytest.raises(ValueError, match="not given equal rows"):
        collator.per_step(2)


# tables


def test_spread_ratio_and_table() -> None:
    assert tables.spread([3.0, 1.0, 2.0]) == "2.00 (1.00..3.00)"
    assert tables.spread([1234.4], tables.whole) == "1,234"
    assert tables.spread([]) == "-"
    assert tables.ratio([2.0, 4.0], [2.0]) == "1.50"
    assert tables.ratio([2.0], []) == "-"
    assert tables.table(["", "a"], [["x", "1"]]) == "|  | a |\n|---|---:|\n| x | 1 |"
    assert [tables.count(n, "step") for n in (1, 2)] == ["1 step", "2 steps"]


def test_every_round_begins_with_another_contestant() -> None:
    assert [name for _, name in rounds.turns(["a", "b", "c"], 2)] == ["a", "b", "c", "b", "c", "a"]


def test_contestants_are_chosen_by_name() -> None:
    assert [entry.name for entry in contestants.chosen(" lrft ; limit")] == ["lrft", "limit"]
    assert all(entry.usual for entry in contestants.chosen(None))
    with pytest.raises(ValueError, match="no contestant is called nobody"):
        contestants.chosen("nobody")


def run(name: str, *walls: float, **more: Any) -> dict[str, Any]:
    """A record as a contestant's process leaves it."""
    (batch,) = made()
    saw = {"tokens": batch.tokens, "labelled": batch.labelled, "checksum": batch.checksum}
    times = [{"wall": wall, "cpu": 2 * wall} for wall in walls]
    return {"contestant": name, "steps": times, "losses": [4.0], "peak_mb": 10.0, "set_up": 1.0, **saw, **more}


def test_the_first_step_does_not_count() -> None:
    assert rounds.counted([run("a", 9.0, 1.0), run("b", 9.0, 5.0), run("a", 9.0, 3.0)], "a", "wall") == [1.0, 3.0]


def test_a_disturbed_machine_is_told() -> None:
    runs = [run("a", 9.0, 1.0, 1.1), run("b", 9.0, 1.0, 1.6), {"contestant": "c", "error": "x"}]
    times = rounds.times(runs, ["a", "b", "c"])
    assert tables.uneven(times) == ["b"]
    assert "(b)" in tables.noisy(times, 2)
    assert tables.noisy({"a": times["a"]}, 2) == ""
    assert "single round" in tables.noisy({"a": times["a"]}, 1)


def test_a_change_of_lrft_while_it_is_measured_is_told() -> None:
    assert report.same_sources({"sources": "a", "sources_after": "a"})
    assert not report.same_sources({"sources": "a", "sources_after": "b"})
    assert report.CHANGED in report.origin(section())


def test_unequal_work_is_told() -> None:
    (batch,) = made()
    assert steps.unequal([run("a", 1.0), run("b", 1.0, losses=[4.001])], batch) == []
    told = steps.unequal([run("a", 1.0), run("b", 1.0, labelled=7, losses=[4.5]), {"error": "x"}], batch)
    assert told == [
        f"b: labelled 7 instead of {batch.labelled}",
        "b: first loss 4.50000, a has 4.00000",
    ]


def section(**more: Any) -> dict[str, Any]:
    """What all sections have."""
    machine = {"processor": "P", "cores": 2, "memory_gb": 24.0, "gpu": None, "system": "Linux"}
    facts = {"machine": machine, "threads": 1, "lrft": "abc", "versions": {"torch": "1"}, "peers": {"trl": "2"}}
    return facts | {"seed": 0, "rounds": 1, "steps": 1, "rank": 8, "model": "small"} | more


def test_the_page_is_made_from_the_saved_figures(tmp_path: Path) -> None:
    size = {"num_hidden_layers": 2, "hidden_size": 24, "vocab_size": 97}
    runs = [run("limit", 9.0, 1.0), run("lrft", 9.0, 2.0), {"contestant": "trl", "error": "no such thing"}]
    measured = section(
        origin={"weights": "random weights", "config": size},
        shape=SHAPE.facts() | {"longest": 20, "labelled_tokens": 38},
        padding=0.4,
        contestants=[{"name": name, "says": "words"} for name in ("limit", "lrft", "trl")],
        unequal=[],
        runs=runs,
    )
    report.keep(tmp_path, "steps:small", measured)
    losses = [{"contestant": name, "losses": [2.0, 1.0 + x]} for name, x in (("lrft", 0.0), ("peft-loop", 0.0005))]
    report.keep(tmp_path, "curves", section(shape=SHAPE.facts(), runs=losses))
    known = {
        "lora": {"kind": "parametrization", "rank": 16, "trained": 4_000_000},
        "dora": {"kind": "wrapper", "rank": 16, "trained": 4_100_000},
    }
    compared = [run("lora", 1.0, 1.0), run("dora", 1.0, 1.5)]
    report.keep(tmp_path, "methods", section(shape=SHAPE.facts(), methods=known, runs=compared))
    alone = {name: {"now": [2.0, 3.0]} for name in commands.FLOORS}
    cpu = alone | {name: {"now": [4.0, 3.0], "before": [6.0, 5.0]} for name in commands.COMMANDS}
    report.keep(tmp_path, "commands", section(rounds=2, cpu=cpu, before="abc"))
    text = report.write(tmp_path).read_text()
    assert "|  | CPU seconds | lrft at abc |" in text
    assert "| `check` | 3.50 (3.00..4.00) | 5.50 (5.00..6.00) | a model's class | 2.50 (2.00..3.00) | 1.00 |" in text
    assert "| lrft | 2.00 | 4.00 | 30 | 2.00 | 10 | 1.0 |" in text
    assert "`trl` failed: no such thing" in text
    assert "| lrft | 2.00000 | 1.00000 | 5.0e-04 |" in text
    assert "| dora | wrapper | 16 | 4.100 M | 1.50 | 3.00 | 1.00 | 10 | 1.0 |" in text
    assert (tmp_path / "performance.svg").read_text().count("<svg") == 1
    assert methods.entry("dora", 8).options == {"recipe": ["adapter.method=dora", "adapter.rank=8"]}


def test_ranks_are_chosen_for_equal_numbers(tmp_path: Path) -> None:
    tiny.save(tiny.make("llama"), tmp_path)
    found = equal.ranks(tmp_path, 4)
    assert found["lora"]["rank"] == 4
    assert found["rslora"] == {"kind": "scaling", "rank": 4, "trained": found["lora"]["trained"]}
    assert found["lora-fa"]["rank"] == 8
    assert found["full"]["rank"] == 4, "the rank says nothing here"


def test_curves_of_unequal_length_are_refused() -> None:
    assert curves.difference([1.0, 2.0], [1.5, 2.1]) == 0.5
    with pytest.raises(ValueError):
        curves.difference([1.0], [1.0, 2.0])


def test_layers_that_fit_and_the_arithmetic_of_a_step() -> None:
    eight = SimpleNamespace(
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        num_hidden_layers=32,
    )
    layer, head = gpu.linear_weights(eight)
    assert 32 * layer + 2 * head == pytest.approx(8.03e9, rel=0.001)
    assert gpu.layers_that_fit(eight, 140e9) == 32
    assert 1 <= gpu.layers_that_fit(eight, 16e9) < 32
    assert gpu.step_flops(eight, 10, 4) == 4 * (320 * layer + 4 * head)


# the limit


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_the_limit_has_the_loss_and_gradients_of_stock_transformers(name: str) -> None:
    model = tiny.make(name).requires_grad_(False)
    limit = Llama(dict(model.state_dict()), model.config.to_dict())
    (batch,) = made()
    loss, gradient = limit.backward(batch.rows)
    wanted, wanted_gradients = 0.0, []
    for row in batch.rows:
        embedded = model.get_input_embeddings()(torch.tensor([row.tokens])).requires_grad_()
        logits = model(inputs_embeds=embedded).logits[0, row.answer - 1 : -1]
        alone = torch.nn.functional.cross_entropy(logits, torch.tensor(row.tokens[row.answer :]), reduction="sum")
        alone.backward()
        wanted += alone.item()
        wanted_gradients.append(embedded.grad[0])
    assert loss == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(gradient, torch.cat(wanted_gradients), rtol=1e-5, atol=1e-5)


def test_the_limit_loses_no_row_in_its_passes() -> None:
    (batch,) = made()
    dealt = list(passes(batch.rows, 2))
    assert [len(part) for part in dealt] == [2, 2, 1]
    assert sorted(row.tokens for part in dealt for row in part) == sorted(row.tokens for row in batch.rows)


def test_swiglu_has_the_gradient_of_its_definition() -> None:
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(SwiGlu.apply, (gate, up))
    torch.testing.assert_close(SwiGlu.apply(gate, up), torch.nn.functional.silu(gate) * up)


# lrft


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny Llama with the benchmark's tokenizer."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    folder = tiny.save(tiny.make("llama"), tmp_path / "model")
    word_tokenizer(tiny.VOCABULARY).save_pretrained(folder)
    yield folder
    AcceleratorState._reset_state()


def test_lrft_makes_real_steps_on_the_same_rows(model: Path, tmp_path: Path) -> None:
    batches = made(count=2)
    job = Job(
        runner="lrft_step",
        model=str(model),
        rows=str(rows.save(batches, tmp_path / "rows.json")),
        folder=str(tmp_path / "job"),
        result="",
        steps=2,
        rank=4,
        options={"recipe": ["data.packing=true"], "start": str(tmp_path / "start.safetensors")},
    )
    recorder = Recorder()
    lrft_step.run(Job.read(job.write(tmp_path / "job.json")), recorder)
    result = recorder.result()
    first = batches[0]
    assert {name: result[name] for name in ("tokens", "labelled", "checksum")} == {
        "tokens": first.tokens,
        "labelled": first.labelled,
        "checksum": first.checksum,
    }
    assert len(result["steps"]) == len(result["losses"]) == 2
    assert all(step["wall"] > 0 for step in result["steps"])
    assert result["held_mb"] > 0
    assert result["peak_mb"] >= 0
    assert (tmp_path / "start.safetensors").exists()
    alone, _ = Llama.read(model).backward(first.rows)
    assert result["losses"][0] == pytest.approx(alone / first.labelled, rel=1e-4)
