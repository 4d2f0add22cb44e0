"""Metrics of an evaluation: by their definitions, in runs, and what decides which state is the best."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from runs import Place
from transformers import AutoModelForCausalLM

from lrft import registry
from lrft.cli.main import run_command
from lrft.data import Row, Rows
from lrft.errors import DataError, LrftError, MissingError, RecipeError, UsageError
from lrft.evaluation.loss import loss_of
from lrft.metrics.exact_match import ExactMatch
from lrft.metrics.f1 import F1
from lrft.objectives.sft import Sft
from lrft.training.state import Progress
from lrft.training.validation import note_loss

EVALUATED = ("evaluation.every=2", "evaluation.max_new_tokens=4", "evaluation.answers=3", "evaluation.at_start=true")
PAIRS = [("The cat sat.", "a cat sat down"), ("forty two", "forty two"), ("", ""), ("yes", ""), ("x y z z", "z z q")]


def answers(pairs: list[tuple[str, str]] = PAIRS) -> list[dict[str, str]]:
    return [{"prompt": "?", "expected": expected, "answer": answer} for expected, answer in pairs]


def test_exact_match_and_f1_are_those_of_squad() -> None:
    assert ExactMatch().score(answers()) == 2 / 5
    found = [F1().score(answers([pair])) for pair in PAIRS]
    assert found == pytest.approx([4 / 5, 1.0, 1.0, 0.0, 4 / 7])  # cat sat | cat sat down, and two of four and three
    assert F1().score(answers()) == pytest.approx(sum(found) / 5)


def test_rouge_is_its_definition() -> None:
    pytest.importorskip("rouge_score", reason="pip install rouge-score")
    rouge = registry.declared("metrics")["rouge"].load()
    pair = answers([("the cat sat on mats", "the mats sat on")])
    assert rouge(kind="rouge1").score(pair) == pytest.approx(2 * (4 / 4) * (4 / 5) / (4 / 4 + 4 / 5))
    assert rouge().score(pair) == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))  # the sat on


def test_bleu_is_its_definition() -> None:
    pytest.importorskip("sacrebleu", reason="pip install sacrebleu")
    bleu = registry.declared("metrics")["bleu"].load()
    pair = answers([("a b c d e f", "a b c d e")])
    assert bleu().score(pair) == pytest.approx(100 * math.exp(1 - 6 / 5))  # all n-grams, one word too short


@pytest.mark.parametrize("direct", [False, True])
def test_token_accuracy_counts_the_likeliest_of_trained_tokens(place: Place, direct: bool) -> None:
    """Beside the loss, from one pass over every row, whatever the micro-batch."""
    model = AutoModelForCausalLM.from_pretrained(place.root / "base")
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(3, 60, (n,), generator=generator).numpy() for n in (5, 9, 12)]
    rows = Rows.of([Row(t.astype("int32"), np.arange(len(t)) % 3 > 0, 1, "", "t.jsonl:", 1) for t in made])
    losses = Sft().module(model, direct=direct)
    losses.wanted = frozenset(losses.offers)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    model.model.register_forward_hook(lambda *_: passes.append(1))
    found = [loss_of(losses, rows, micro=micro, pad_id=0)["figures"]["token_accuracy"] for micro in (1, 3)]
    assert len(passes) == (4 if direct else 8)
    right = total = 0
    with torch.no_grad():
        for i, tokens in enumerate(made):
            likeliest = model(torch.from_numpy(tokens)[None]).logits[0].argmax(-1)
            for at in range(1, len(tokens)):
                if rows.trained(i)[at]:
                    right, total = right + int(likeliest[at - 1] == tokens[at]), total + 1
    assert found == [pytest.approx(right / total)] * 2


def test_a_run_reports_what_it_was_asked_for(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    other = runs.write_rows(place.root / "other.jsonl", runs.rows(4, seed=9))
    code = place.root / "mine.py"
    code.write_text("def length(answers):\n    return sum(len(a['answer']) for a in answers) / len(answers)\n")
    keys = (
        *EVALUATED,
        f"evaluation.metrics=[loss, token_accuracy, exact_match, f1, 'python:{code}:length']",
        f"evaluation.sets={{other: {other}}}",
        "evaluation.samples=1",
        "evaluation.best=length",
        "checkpoint.every=2",
    )
    run = place.train(*keys, allow_code=True)
    evals = runs.records(run, "eval")
    assert [record["step"] for record in evals] == [0, 2, 4, 6]
    for record in evals:
        assert set(record["figures"]) == {"token_accuracy", "other/loss", "exact_match", "f1", "length"}
        assert len(record["samples"]) == 1
    best = max(evals, key=lambda record: record["figures"]["length"])  # the first of equals
    assert [record["best"] for record in evals].index(True) == 0
    assert max(record["step"] for record in evals if record["best"]) == best["step"]
    capsys.readouterr()
    assert run_command(["eval", str(run), "--json", "--allow-code", "--samples=9"]) == 0
    told = json.loads(capsys.readouterr().out)
    answers = [len(sample["answer"]) for sample in told["samples"]]
    assert len(answers) == 5
    assert told["figures"].pop("length") == sum(answers) / 5  # a run may look at fewer answers
    assert told["figures"] == pytest.approx({name: best["figures"][name] for name in told["figures"]}, rel=1e-5)
    assert set(told["figures"]) == set(best["figures"]) - {"length"}
    assert run_command(["eval", str(run), "--json", "--data", str(other), "--no-generate"]) == 0
    assert set(json.loads(capsys.readouterr().out)["figures"]) == {"token_accuracy"}
    assert run_command(["eval", str(run)]) == 2
    assert "--allow-code" in capsys.readouterr().err
    alone = place.train(f"data.validation={other}", "evaluation.every=2", "evaluation.at_start=true", out="alone")
    losses = [record["loss"] for record in runs.records(alone, "eval")]
    assert [record["figures"]["other/loss"] for record in evals] == pytest.approx(losses)
    assert "python:" in (run / "resolved.yaml").read_text()


def test_the_best_state_is_that_of_the_metric_and_stopping_follows_it() -> None:
    progress, best = Progress(), []
    for step, (loss, score) in enumerate([(3.0, -0.1), (2.0, -0.1), (4.0, -0.5), (1.0, -0.4), (1.0, math.nan)]):
        progress.step = step
        best.append(note_loss(progress, loss, "none", score))
    assert best == [True, False, True, False, False]
    assert (progress.best_step, progress.best_loss, progress.best_score, progress.stale) == (2, 4.0, -0.5, 2)
    assert (progress.start_loss, progress.last_loss) == (3.0, 1.0)


def test_code_of_a_file_runs_only_where_it_is_allowed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code = place.root / "mine.py"
    code.write_text("def bad(answers):\n    return 'text'\nimport os\nos.mkdir(__file__ + '.ran')\n")
    metric = f"evaluation.metrics=['python:{code}:bad']"
    with pytest.raises(UsageError, match="runs Python code of a file") as refused:
        place.train(metric, *EVALUATED)
    assert "--allow-code" in refused.value.lines()[-1]
    ran = Path(f"{code}.ran")
    assert not ran.exists()
    assert run_command(["train", str(place.root / "recipe.yaml"), "--quiet", metric, *EVALUATED]) == 2
    assert run_command(["train", str(place.root / "recipe.yaml"), "--quiet", "--allow-code", metric, *EVALUATED]) == 3
    assert "bad failed: ValueError" in capsys.readouterr().err
    ran.rmdir()
    for name, said, kind in (
        (f"{code}:absent", "has no function absent", MissingError),
        (f"{code}x:bad", "there is no file", MissingError),
        (f"{code}:bad", "bad failed: ValueError", DataError),
    ):
        with pytest.raises(LrftError, match=said) as failed:
            place.train(f"evaluation.metrics=['python:{name}']", *EVALUATED, allow_code=True, out=f"run-{name[-6:]}")
        assert isinstance(failed.value, kind)
        assert ran.exists() == (kind is not MissingError or "function" in said)
        ran.rmdir() if ran.exists() else None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["evaluation.best=f1"], r"evaluation\.best: expected loss or perplexity; got 'f1'"),
        (["evaluation.answers=3"], "evaluation.answers has no effect: no metric"),
        (["evaluation.metrics=[token_accuracy]", "evaluation.answers=3"], "evaluation.answers has no effect"),
        (["evaluation.metrics=[rogue]"], "Did you mean rouge"),
        (["evaluation.metrics=['python:x.py']"], "expected python:FILE:FUNCTION"),
        (["data.validation=none", "evaluation.metrics=[f1]", "evaluation.at_start=false"], "has no effect"),
        (["evaluation.metric_for_best_model=f1"], r"In lrft: evaluation\.best"),
    ],
)
def test_what_cannot_be_measured_is_refused(place: Place, keys: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        place.recipe(*keys[:-1], keys[-1], *([] if "data.validation=none" in keys else ["evaluation.every=2"]))
