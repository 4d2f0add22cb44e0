"""Tasks of lm-evaluation-harness: their figures against direct computation, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from parsed import sound
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lrft.cli.main import app
from lrft.errors import CheckFailed, DataError, MissingError, UsageError
from lrft.export.merge import merge_adapter
from lrft.judging import harness
from lrft.judging.task_page import task_page
from lrft.loading.saved import load_target

CHOICE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ANSWER = """\
task: tiny_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/answer.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["9"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ROWS = 9


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> runs.Place:
    """A run, its merged model, and two tasks."""
    place = runs.Place.make(tmp_path_factory.mktemp("tasks"))
    run = place.train("training.learning_rate=0.03")
    merged = merge_adapter((run / "last").resolve(), place.root / "merged").out
    folder = place.root / "tasks"
    folder.mkdir()
    choices = [" hello world", " forty two", " time"]
    made = [{"question": f"{i} what", "choices": choices, "answer": i % 3} for i in range(ROWS)]
    runs.write_rows(folder / "choice.jsonl", made)
    answers = [greedy(merged, f"{i} what") if i % 2 else "no" for i in range(ROWS)]
    runs.write_rows(folder / "answer.jsonl", [{"question": f"{i} what", "answer": a} for i, a in enumerate(answers)])
    (folder / "choice.yaml").write_text(CHOICE.format(folder=folder))
    (folder / "answer.yaml").write_text(ANSWER.format(folder=folder))
    return place


def stock(merged: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(merged).eval(), AutoTokenizer.from_pretrained(merged)


def greedy(merged: Path, question: str) -> str:
    """Six tokens by stock transformers' logits, up to the text that ends an answer."""
    model, tokenizer = stock(merged)
    ids = tokenizer(question, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    text: str = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    return text.split("9")[0]


def accuracy(model: Any, tokenizer: Any, prefix: str = "") -> float:
    """The share of questions whose likeliest choice, by the sum of its tokens' log-probabilities, is the right one."""
    right = 0
    for i in range(ROWS):
        scores = []
        for choice in (" hello world", " forty two", " time"):
            question = tokenizer(f"{prefix}{i} what", return_tensors="pt").input_ids
            whole = tokenizer(f"{prefix}{i} what{choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                logs = model(whole).logits[0, :-1].log_softmax(-1)
            picked = logs.gather(1, whole[0, 1:, None])[question.shape[1] - 1 :]
            scores.append(picked.sum().item())
        right += max(range(3), key=lambda k: scores[k]) == i % 3
    return right / ROWS


def evaluated(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["eval", *arguments, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index('{\n "target"') :])
    return found


@pytest.mark.filterwarnings("ignore")  # of the packages of the harness
def test_the_figures_are_those_of_stock_transformers(trained: runs.Place) -> None:
    """A folder of tasks, of a run with its adapter unmerged; its page, and what is kept beside the run."""
    pytest.importorskip("lm_eval", reason="pip install 'lrft[harness]'")
    run, merged = trained.root / "run", trained.root / "merged"
    found = evaluated(str(run), "--tasks", str(trained.root / "tasks"), "--batch-size", "4")
    by_task = {row["task"]: row for row in found["results"]}
    expected = accuracy(*stock(merged))
    assert 0 < expected < 1
    assert by_task["tiny_choice"]["value"] == pytest.approx(expected)
    assert by_task["tiny_choice"]["stderr"] == pytest.approx((expected * (1 - expected) / (ROWS - 1)) ** 0.5)
    assert by_task["tiny_answer"]["value"] == pytest.approx((ROWS // 2) / ROWS)
    assert json.loads((run / "eval/tasks.json").read_text()) == found
    assert sound((run / "eval/tasks.html").read_text()).tables[0][0][:3] == ["task", "metric", "value"]
    kept = json.loads((run / "after/eval.json").read_text())[-1]["found"]
    assert kept["tiny_choice: acc, higher is better"].startswith(f"{expected:.4f} ± ")
    base = evaluated(str(trained.root / "base"), "--tasks", str(trained.root / "tasks/choice.yaml"), "--limit", "2")
    assert base["results"][0]["rows"] == 2


@pytest.mark.filterwarnings("ignore")
def test_a_method_that_no_merge_can_hold_is_asked_as_it_is(trained: runs.Place) -> None:
    """With the trained chat template, against the model's own logits."""
    pytest.importorskip("lm_eval", reason="pip install 'lrft[harness]'")
    run = trained.train("adapter.method=denselora", "training.learning_rate=0.05", out="dense")
    task = str(trained.root / "tasks/choice.yaml")
    found = harness.run_tasks(load_target(str(run), None, False), [task], num_fewshot=0)
    target = load_target(str(run), None, False)
    assert found["results"][0]["value"] == pytest.approx(accuracy(target.model.eval(), target.tokenizer))
    chat = harness.run_tasks(load_target(str(run), None, False), [task], num_fewshot=0, chat_template=True)
    assert chat["settings"]["chat_template"]
    shots = harness.run_tasks(load_target(str(run), None, False), [task], num_fewshot=2)
    assert shots["results"][0]["num_fewshot"] == 2


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_task_is_refused(trained: runs.Place, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'lrft[harness]'")
    found = load_target(str(trained.root / "base"), None, False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("task: broken\ndataset_path: json\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/t.yaml").write_text("task: t\ninclude: _common\n")
    (tmp_path / "code/_common").write_text("include: t.yaml\ndoc_to_text: !function utils.f\n")
    for task, error, said in (
        ("hellaswg", UsageError, "there is no task"),
        (str(tmp_path / "empty"), DataError, "holds no task file"),
        (str(tmp_path / "broken.yaml"), DataError, "cannot be read"),
        (str(tmp_path / "code/t.yaml"), UsageError, "runs Python code"),
    ):
        with pytest.raises(error, match=said):
            harness.run_tasks(found, [task])


def test_without_the_package_the_command_says_what_to_install(
    trained: runs.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = CliRunner().invoke(app, ["eval", str(trained.root / "base"), "--tasks", "arc_easy"])
    assert isinstance(done.exception, MissingError)
    assert done.exception.hint == "pip install 'lrft[harness]'"


def test_models_that_it_cannot_ask_are_refused(trained: runs.Place) -> None:
    run = trained.train("adapter.method=lora-ensemble", "training.max_steps=1", out="ensemble")
    with pytest.raises(UsageError, match="ensemble"):
        harness.refuse_unfit(load_target(str(run), None, False), False)
    base = load_target(str(trained.root / "base"), None, False)
    base.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        harness.refuse_unfit(base, True)


def test_a_page_of_figures() -> None:
    row = {"task": "<b>", "metric": "acc", "filter": "strict", "value": 0.5, "stderr": None, "rows": 8}
    rows = [{**row, "num_fewshot": 0, "higher_is_better": True}, {**row, "num_fewshot": None, "higher_is_better": None}]
    settings = {"num_fewshot": None, "chat_template": True, "limit": 3}
    facts = {"target": "runs/x", "results": rows, "versions": {"lm_eval": "0"}, "settings": settings}
    page = sound(task_page(facts))
    assert page.tables[0][1:] == [
        ["<b>", "acc (strict), higher is better", "0.5000", "–", "8", "0"],
        ["<b>", "acc (strict)", "0.5000", "–", "8", "–"],
    ]
    assert any("not to be compared with published figures" in text for text in page.texts("p"))


def test_a_model_that_the_harness_changed_is_not_measured(monkeypatch: pytest.MonkeyPatch, trained: runs.Place) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'lrft[harness]'")
    found = load_target(str(trained.root / "run"), None, False)
    monkeypatch.setattr(found.model, "tie_weights", lambda *a, **k: found.attached and found.attached.detach())
    with pytest.raises(CheckFailed, match="changed the model's weights"):
        harness.asked(found, False, 2)
