"""`lrft generate`: prompts as in training, answers that do not depend on the batch, drawn tokens, and resumption."""

from __future__ import annotations

import json
import math
from pathlib import Path

import answering
import numpy as np
import pytest
import tiny
import tiny_tokenizers
import torch
from answering import lines
from runs import rows, write_rows
from transformers import GPT2Config, GPT2LMHeadModel

from lrft.cli.main import run_command
from lrft.data.prompts import Asking, read_prompts
from lrft.data.token_mask import encode_prompt
from lrft.evaluation.sampling import Draw, Sampling
from lrft.serving.text import Growing


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering.make(tmp_path_factory.mktemp("generate"))


def test_a_row_is_asked_as_training_and_a_conversation_ask_it_with_or_without_its_answer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizers.chatml()
    asked = {"role": "user", "content": "hello <|im_end|> world"}
    answer = {"role": "assistant", "content": "forty two"}
    path = write_rows(
        tmp_path / "rows.jsonl",
        [
            {"messages": [asked]},
            {"messages": [asked, answer]},
            {"conversations": [{"from": "human", "value": asked["content"]}]},
            {"prompt": asked["content"]},
            {"prompt": [asked]},
            {"prompt": [asked], "completion": [answer]},
            {"instruction": asked["content"]},
            {"instruction": asked["content"], "output": "forty two"},
            {"text": asked["content"]},
        ],
    )
    expected = encode_prompt(tokenizer, [asked])
    found = read_prompts(str(path), {"": Asking(tokenizer)})
    assert [prompt.place.rpartition(":")[2] for prompt in found] == [str(n) for n in range(1, 10)]
    assert all(np.array_equal(prompt.ids, expected) for prompt in found)
    thinking = "{% if not think %}be short {% endif %}" + tiny_tokenizers.CHATML
    options = {"think": True}
    trained = Asking(tiny_tokenizers.chatml(thinking), options=options)
    assert np.array_equal(trained.text(asked["content"]), expected)
    plain = Asking(tokenizer, plain=True).text("hello")
    assert tokenizer.decode(plain) == "hello"
    assert Asking(tokenizer).ends == ("<|im_end|>",)


def test_answers_stand_beside_their_rows_in_order_whatever_the_batch(place: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(6, seed=3))
    run, words = str(place / "one"), ["--data", str(data), "--max-new-tokens", "12"]
    for drawn in ([], ["--temperature", "1.5", "--top-p", "0.9", "--seed", "3"]):
        one, many = tmp_path / f"one{len(drawn)}.jsonl", tmp_path / f"many{len(drawn)}.jsonl"
        assert run_command(["generate", run, *words, *drawn, "-o", str(one), "--batch-size", "1"]) == 0
        assert run_command(["generate", run, *words, *drawn, "-o", str(many), "--batch-size", "4"]) == 0
        assert one.read_text() == many.read_text()
        assert [line["input"] for line in lines(one)] == rows(6, seed=3)
        assert [line["row"] for line in lines(one)] == [1, 2, 3, 4, 5, 6]
        assert all(line["finish"] in ("stop", "length") and line["tokens"] <= 12 for line in lines(one))
    assert lines(tmp_path / "one0.jsonl") != lines(tmp_path / "one6.jsonl")


def test_an_interrupted_file_continues_and_ends_as_if_never_interrupted(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrft.serving.answerer import Answerer

    data = write_rows(tmp_path / "rows.jsonl", rows(6, seed=3))
    words = ["generate", str(place / "one"), "--data", str(data), "--max-new-tokens", "6", "--batch-size", "2"]
    assert run_command([*words, "-o", str(tmp_path / "whole.jsonl")]) == 0
    real, asked = Answerer.answer, []

    def interrupted(self: Answerer, requests: list) -> list:
        asked.append(len(requests))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, requests)

    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(Answerer, "answer", interrupted)
    assert run_command([*words, "-o", str(out)]) == 130
    assert not out.exists()
    partial = out.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-5])  # as a kill tears the last line
    assert run_command([*words, "-o", str(out), "--seed", "1"]) == 2
    assert "with other settings (seed)" in capsys.readouterr().err
    asked.clear()
    asked += [0, 0, 0]
    assert run_command([*words, "-o", str(out)]) == 0
    assert sum(asked) == 3  # two that had not been asked, and the one whose answer was torn
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not partial.exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "pass either --data FILE or --prompt TEXT"),
        (["--data", "x.jsonl"], 2, "--data requires -o FILE"),
        (["--prompt", "x", "-o", "y"], 2, "-o is only for --data"),
        (["--prompt", "x", "--as", "poem"], 2, "--as must be one of chat, text (got poem)"),
        (["--prompt", "x", "--as", "text", "--system", "y"], 2, "--system requires a chat template"),
        (["--prompt", " ".join(["hello"] * 600)], 2, "the model has 256 positions"),
        (["--prompt", "", "--as", "text"], 2, "the prompt has no tokens"),
        (["--prompt", "x", "--adapter", "a=b"], 2, "--adapter is only for --data"),
        (["--data", "{good}", "-o", "{new}", "--adapter", "two"], 2, "--adapter must be NAME=RUN (got two)"),
        (["--data", "{good}", "-o", "{new}", "--adapter", "one=x"], 2, "one is another's name already"),
        (["--data", "{good}", "-o", "{new}", "--adapter", "a=nowhere"], 2, "nowhere is neither a run nor an adapter"),
        (["--data", "{bad}", "-o", "{new}"], 3, "bad.jsonl: 3 rows cannot be asked"),
        (["--data", "{bad}", "-o", "{new}"], 3, "no 'content'"),
        (["--data", "{bad}", "-o", "{new}"], 3, "bad.jsonl:3  has no tokens"),
        (["--data", "{bad}", "-o", "{new}"], 3, "bad.jsonl:4  tools: is not empty"),
        (["--data", "{long}", "-o", "{new}"], 3, "long.jsonl:1"),
        (["--data", "{good}", "-o", "{good}"], 2, "good.jsonl exists"),
    ],
)
def test_a_wrong_call_is_answered_and_writes_nothing(
    place: Path, tmp_path: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"messages": [{"role": "user", "content": "hello"}]}
    bad = [{"messages": [{"role": "user"}]}, {"prompt": "", "completion": "x"}]
    bad.append({**good, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]})
    made = {
        "good": write_rows(tmp_path / "good.jsonl", [good]),
        "bad": write_rows(tmp_path / "bad.jsonl", [good, *bad]),
        "long": write_rows(tmp_path / "long.jsonl", [{"prompt": "hello " * 600}]),
        "new": tmp_path / "new.jsonl",
    }
    assert run_command(["generate", str(place / "one"), *[word.format(**made) for word in words]]) == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl", "long.jsonl"]


def test_each_row_is_answered_by_the_adapter_that_it_names_as_by_that_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["two", "base", None, "one", "two", None]
    asked = [{"prompt": f"{n}?", **({"adapter": name} if name else {})} for n, name in enumerate(names)]
    data, most = write_rows(tmp_path / "rows.jsonl", asked), ["--max-new-tokens", "8"]
    words = ["generate", str(place / "one"), "--data", str(data), *most, "--adapter", f"two={place / 'two'}"]
    assert run_command([*words, "-o", str(tmp_path / "out.jsonl")]) == 0
    found = lines(tmp_path / "out.jsonl")
    assert [line["adapter"] for line in found] == [name or "one" for name in names]
    assert [line["input"] for line in found] == asked
    for line in found:
        adapter = None if line["adapter"] == "base" else line["adapter"]
        assert line["answer"] == answering.stock(place, adapter, answering.turns(line["input"]["prompt"]))
    assert len({line["answer"] for line in found}) > 4
    # A plain model answers what names no adapter; other adapters are other answers.
    plain = ["generate", str(place / "base"), "--data", str(data), *most, "--adapter", f"one={place / 'one'}"]
    assert run_command([*plain, "-o", str(tmp_path / "plain.jsonl"), "--limit", "1"]) == 3
    assert "rows.jsonl:1  adapter: there is no 'two'; there are base, one" in capsys.readouterr().err
    both = [*plain, "--adapter", f"two={place / 'two'}", "-o", str(tmp_path / "plain.jsonl")]
    assert run_command(both) == 0
    assert [line["adapter"] for line in lines(tmp_path / "plain.jsonl")] == [name or "base" for name in names]
    (tmp_path / "x.jsonl.partial").write_text(json.dumps({"asked": {"weights": "others"}}) + "\n")
    assert run_command([*both[:-1], str(tmp_path / "x.jsonl")]) == 2
    assert "holds answers to other rows or with other settings (weights" in capsys.readouterr().err


def test_answers_end_at_the_model_s_positions_and_rows_beside_them_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizers.chatml()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=2, eos_token_id=2
    )
    torch.manual_seed(0)
    tiny.save(GPT2LMHeadModel(config), tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "?" * n} for n in (26, 2)])
    words = ["generate", str(tmp_path / "base"), "--data", str(data), "--as", "text", "--max-new-tokens", "20"]
    for size in ("1", "2"):
        assert run_command([*words, "-o", str(tmp_path / f"{size}.jsonl"), "--batch-size", size]) == 0
        told = capfd.readouterr()
        assert "1 answer had no end at the model's last position of 32" in " ".join(told.out.split())
        assert "reminder" not in told.err
    long, short = lines(tmp_path / "2.jsonl")
    assert lines(tmp_path / "1.jsonl") == [long, short]
    assert len(tokenizer("?" * 26)["input_ids"]) + long["tokens"] == 32
    assert short["tokens"] == 20


def test_a_file_that_exists_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = write_rows(tmp_path / "taken.jsonl", [{}])
    assert run_command(["generate", "nowhere", "--data", "neither.jsonl", "-o", str(taken)]) == 2
    assert "taken.jsonl exists" in capsys.readouterr().err


def test_one_prompt_is_printed(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "1?"}]}])
    run, out = str(place / "one"), tmp_path / "out.jsonl"
    assert run_command(["generate", run, "--data", str(data), "-o", str(out), "--max-new-tokens", "9"]) == 0
    capsys.readouterr()
    assert run_command(["generate", run, "--prompt", "1?", "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().out == lines(out)[0]["answer"] + "\n"


def test_drawn_tokens_have_the_probabilities_of_the_definition() -> None:
    scores, n, temperature, top_p = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0]), 4000, 0.7, 0.9
    weights = [math.exp(score / temperature) for score in scores.tolist()]
    expected = [weight / sum(weights) for weight in weights]
    kept = next(k for k in range(1, 6) if sum(expected[:k]) >= top_p)  # the scores are in descending order
    nucleus = [p / sum(expected[:kept]) if i < kept else 0.0 for i, p in enumerate(expected)]
    draw = Draw([Sampling(temperature, top_p, seed=5)])
    counts = torch.zeros(5)
    for _ in range(n):
        counts[draw(torch.zeros(1, 1), scores[None])[0].argmax()] += 1
    assert kept < 4
    for found, p in zip((counts / n).tolist(), nucleus, strict=True):
        assert abs(found - p) <= 4 * math.sqrt(p * (1 - p) / n)


def test_drawing_depends_on_the_row_s_own_seed_alone() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = [Sampling(1.0, 1.0, 1), Sampling(0.0), Sampling(2.0, 0.5, 9)]
    together, alone = Draw(rows, copies=2), Draw(rows[2:])
    for _ in range(20):
        found = together(torch.zeros(6, 1), scores.repeat(2, 1)).argmax(-1).tolist()
        assert found[:3] == found[3:]
        assert found[1] == scores[1].argmax()
        assert found[2] == alone(torch.zeros(1, 1), scores[2:]).argmax()


def test_growing_text_is_told_whole_characters_and_never_a_stop_text() -> None:
    tokenizer = tiny_tokenizers.chatml()
    written = "héllo 🌍 world END tail"
    ids = tokenizer(written)["input_ids"]
    told: list[str] = []
    answer = Growing(tokenizer, told=lambda text: told.append(text) is None)
    for token in ids:
        answer.add(token)
    answer.end("length")
    assert "".join(told) == answer.text == written
    assert not any("\ufffd" in text for text in told)
    cut = Growing(tokenizer, stop=("END", "never"), told=lambda text: told.append(text) is None)
    told.clear()
    for token in ids:
        if not cut.finish:
            cut.add(token)
    assert cut.finish == "stop"
    assert "".join(told) == cut.text == "héllo 🌍 world "
    gone = Growing(tokenizer, told=lambda text: False)
    gone.add(ids[0])
    assert gone.finish == "cancelled"
