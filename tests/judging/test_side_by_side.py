"""Two models on the same rows: what each row adds, intervals, answers, the page, and `lrft eval --compare`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import classifiers
import numpy as np
import pytest
import runs
import torch
from hypothesis import given
from hypothesis import strategies as st
from parsed import EVIL, sound
from typer.testing import CliRunner

import lrft
from lrft import registry
from lrft.cli.main import app
from lrft.data import Rows
from lrft.errors import UsageError
from lrft.evaluation.generate import pad_token
from lrft.evaluation.loss import loss_of
from lrft.export.merge import merge_adapter
from lrft.judging import paired
from lrft.judging.data_files import OWN, data_files
from lrft.judging.side import Side, measure
from lrft.judging.side_page import side_page
from lrft.judging.words import marked
from lrft.loading.evaluation_rows import rows_for
from lrft.loading.saved import Target, answering, load_target
from lrft.objectives.base import Objective
from lrft.objectives.classification import Classification
from lrft.objectives.dpo import Dpo
from lrft.objectives.kto import Kto
from lrft.objectives.sft import Sft


def preference_rows(n: int) -> list[dict[str, Any]]:
    made = runs.rows(2 * n)
    return [
        {"prompt": a["messages"][:1], "chosen": a["messages"][1:], "rejected": b["messages"][1:]}
        for a, b in zip(made[:n], made[n:], strict=True)
    ]


def labelled_answers(n: int) -> list[dict[str, Any]]:
    made = runs.rows(n)
    return [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:], "label": bool(i % 2)}
        for i, row in enumerate(made)
    ]


CASES: dict[str, tuple[Objective, list[dict[str, Any]]]] = {
    "sft": (Sft(), runs.rows(9)),
    "dpo": (Dpo(), preference_rows(6)),
    "kto": (Kto(), labelled_answers(7)),
    "classification": (Classification(), classifiers.rows(9)),
    "regression": (
        Classification(problem="regression"),
        [{"text": row["text"], "label": k * 0.7} for k, row in enumerate(classifiers.rows(8))],
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_base(tmp_path_factory.mktemp("base") / "base")


def loaded(base: Path, name: str, folder: Path) -> tuple[Target, Rows]:
    """A base with a random adapter under an objective, and rows for it."""
    objective, made = CASES[name]
    found = load_target(str(base), None, False)
    head = None
    if objective.head:
        head = replace(classifiers.HEAD, labels=(), problem="regression") if name == "regression" else classifiers.HEAD
        found = replace(found, model=classifiers.stock(base, head), head=head)
    torch.manual_seed(1)
    attached = lrft.attach(found.model, {"method": "lora", "rank": 2})
    with torch.no_grad():
        for parameter in attached.trained().values():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    found = replace(found, objective=objective, attached=attached)
    path = str(runs.write_rows(folder / "rows.jsonl", made))
    kind = registry.rows_of(objective.name, vars(objective))
    rows, _ = rows_for("x", path, {}, None, found.tokenizer, base, found.model.config, kind, head)
    return found, rows


def whole(found: Target, rows: Rows, micro: int = 4) -> dict[str, float]:
    """Loss and figures as `lrft eval` measures them, in batches."""
    losses, layout = answering(found.model, rows, found.objective, found.attached, {}, found.head)
    pad_id = pad_token(found.tokenizer)
    measured = loss_of(losses, rows, micro=micro, pad_id=pad_id, objective=found.objective, form=layout.form)
    named = {name: measured[name] for name in ("loss", "perplexity") if name in measured}
    return named | measured.get("figures", {})


def figures(side: Side, objective: Objective, counts: torch.Tensor) -> dict[str, float]:
    return {name: values.item() for name, values in paired.figures_of(side, objective, counts[None]).items()}


@pytest.mark.parametrize("name", CASES)
def test_rows_add_up_to_what_batches_measure(name: str, base: Path, tmp_path: Path) -> None:
    """Every figure of every row by itself; and again of rows that are drawn, against measuring the drawn rows."""
    found, rows = loaded(base, name, tmp_path)
    side = measure(found, rows, found.objective, longest=0, batch_size=2)
    once = torch.ones(len(rows), dtype=torch.float64)
    assert figures(side, found.objective, once) == pytest.approx(whole(found, rows), rel=1e-5, abs=1e-7)
    if name == "kto":  # its reference point is a mean over the set, so other rows have another
        return
    counts = torch.tensor([2.0, 0.0, 1.0, 3.0, *([1.0] * (len(rows) - 4))], dtype=torch.float64)
    drawn = rows.slice(np.repeat(np.arange(len(rows)), counts.int().numpy()))
    # One row a pass: in batches a row that is drawn twice may get two answers, by rounding, and its rank is not tied.
    assert figures(side, found.objective, counts) == pytest.approx(whole(found, drawn, micro=1), rel=1e-5, abs=1e-7)


def test_the_base_is_measured_with_the_adapters_switched_off(base: Path, tmp_path: Path) -> None:
    found, rows = loaded(base, "sft", tmp_path)
    side = measure(found, rows, found.objective, longest=5, batch_size=2, as_base=True)
    plain = measure(load_target(str(base), None, False), rows, Sft(), longest=5, batch_size=3)
    assert side.losses.tolist() == pytest.approx(plain.losses.tolist(), rel=1e-6)
    assert side.answers == plain.answers
    adapted = measure(found, rows, found.objective, longest=5, batch_size=2)
    assert adapted.losses.tolist() != pytest.approx(plain.losses.tolist(), rel=1e-3)


def side_of(values: np.ndarray, matches: np.ndarray) -> Side:
    keys = tuple((f"r:{i}", 0) for i in range(len(values)))
    answers = {key: {"match": bool(hit)} for key, hit in zip(keys, matches, strict=True)}
    ones = torch.ones(len(values), dtype=torch.float64)
    return Side(keys, tuple(b"" for _ in keys), torch.from_numpy(values), ones, {}, answers)


def test_the_interval_is_that_of_the_normal_distribution_where_it_must_be() -> None:
    """Of a mean of 400 rows: d ± 1.96 s / √n. Noise that both share makes it no wider."""
    generator = np.random.default_rng(5)
    shared, own = 50 * generator.normal(size=400), generator.normal(size=400)
    hits = generator.random(400) < 0.5
    a, b = side_of(shared + 0.2 + own, hits), side_of(shared, np.zeros(400, dtype=bool))
    found = paired.differences(a, b, Sft())
    half = 1.96 * own.std(ddof=1) / 20
    loss = found["loss"]
    assert loss.difference == pytest.approx(0.2 + own.mean())
    assert (loss.low, loss.high) == pytest.approx((loss.difference - half, loss.difference + half), abs=0.1 * half)
    share = hits.mean()
    half = 1.96 * math.sqrt(share * (1 - share) / 400)
    match = found[paired.EXACT_MATCH]
    assert (match.low, match.high) == pytest.approx((share - half, share + half), abs=0.1 * half)
    assert match.tells_apart
    same = paired.differences(a, a, Sft())
    assert [(one.difference, one.low, one.high, one.tells_apart) for one in same.values()] == [(0, 0, 0, False)] * 3


def test_one_row_has_no_interval_and_what_cannot_be_compared_no_difference() -> None:
    one = side_of(np.array([1.0]), np.array([True]))
    assert {(d.low, d.high) for d in paired.differences(one, one, Sft()).values()} == {(None, None)}
    two = side_of(np.array([1.0, 2.0]), np.array([True, False]))
    found = paired.differences(two, two, Sft(), lambda name: name != "loss")
    assert found["loss"] == paired.Difference(1.5, 1.5)
    assert found["perplexity"].low == 0
    assert paired.interval([1.0] * 8 + [math.nan] * 2) == (None, None)  # too few are finite


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> runs.Place:
    """A run, and its merged model beside it."""
    place = runs.Place.make(tmp_path_factory.mktemp("trained"))
    run = place.train("training.learning_rate=0.05")
    merge_adapter((run / "last").resolve(), place.root / "merged")
    return place


def evaluated(place: runs.Place, *arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["eval", *arguments, "--json", "--max-new-tokens", "6"])
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_and_its_base(trained: runs.Place) -> None:
    """The figures are those of `lrft eval` of each, and page and JSON say the same."""
    run, base = str(trained.root / "run"), str(trained.root / "base")
    found = evaluated(trained, run, "--compare", "base")
    part = found["data"][OWN]
    for side, target in (("first", run), ("second", base)):
        alone = evaluated(trained, target, "--data", str(trained.root / "validation.jsonl"))
        for name in ("loss", "perplexity", "exact_match"):
            assert part["figures"][name][side] == pytest.approx(alone[name], rel=1e-6), (side, name)
    assert part["figures"]["loss"]["high"] < 0  # it has learned
    assert part["figures"]["loss"]["tells_apart"]
    assert json.loads((trained.root / "run/eval/compare-base.json").read_text()) == found
    page = sound((trained.root / "run/eval/compare-base.html").read_text())
    assert page.tables[0][0][:3] == ["figure", run, "base"]
    assert page.tables[0][1][0] == "loss"
    kept = json.loads((trained.root / "run/after/eval.json").read_text())[0]["found"]
    assert kept[f"{OWN}: loss"].startswith(f"{part['figures']['loss']['first']:.4f}, base")


def test_a_run_and_its_merged_model_are_told_apart_by_nothing(trained: runs.Place, tmp_path: Path) -> None:
    """A plain model of the same vocabulary gets the same tokens, also without a template, and answers the same."""
    out = tmp_path / "page.html"
    (trained.root / "merged" / "chat_template.jinja").unlink()
    options = ["--compare", str(trained.root / "merged"), "-o", str(out)]
    part = evaluated(trained, str(trained.root / "run"), *options)["data"][OWN]
    assert part["same_tokens"]
    for figure in part["figures"].values():
        assert figure["difference"] == pytest.approx(0, abs=1e-3)
    assert all(answer["first"] == answer["second"] for answer in part["answers"])
    assert out.is_file()


def test_several_files_with_columns_and_formats_of_their_own(trained: runs.Place, tmp_path: Path) -> None:
    """The same questions written in two ways are the same rows."""
    chats = runs.rows(4, seed=3)
    alpaca = [{"frage": row["messages"][0]["content"], "output": row["messages"][1]["content"]} for row in chats]
    named = [
        *("--data", f"chats={runs.write_rows(tmp_path / 'a.jsonl', chats)}"),
        *("--data", f"{runs.write_rows(tmp_path / 'b.jsonl', alpaca)}"),
        *("--format", "b=alpaca", "--columns", "b={frage: instruction}"),
    ]
    run = str(trained.root / "run")
    alone = evaluated(trained, run, *named, "--no-generate")["data"]
    both = evaluated(trained, run, *named, "--compare", "base", "--no-generate", "--limit", "3")["data"]
    assert list(alone) == list(both) == ["chats", "b"]
    assert alone["chats"]["loss"] == pytest.approx(alone["b"]["loss"], rel=1e-6)
    assert [part["rows"] for part in both.values()] == [3, 3]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--format", "alpaca"], "--format requires --data"),
        (["--data", "a/x.jsonl", "--data", "b/x.jsonl"], "two files of --data are named x"),
        (["--data", "x.jsonl", "--columns", "y={a: b}"], "--columns: no file of --data is named y"),
        (["--num-fewshot", "2"], "--num-fewshot is only for --tasks"),
        (["--allow-code", "--compare", "base"], "--allow-code is for --tasks and for the metrics"),
        (["--tasks", "t", "--compare", "base"], "cannot be given with --compare"),
        (["--judge", "http://x"], "require each other"),
        (["-o", "x.html"], "-o is the page of"),
    ],
)
def test_options_that_mean_nothing_are_refused(given: list[str], said: str, trained: runs.Place) -> None:
    done = CliRunner().invoke(app, ["eval", str(trained.root / "run"), *given])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_models_that_cannot_be_compared_are_refused(trained: runs.Place, tmp_path: Path) -> None:
    base, run = str(trained.root / "base"), str(trained.root / "run")
    head = classifiers.stock(trained.root / "base", classifiers.HEAD)
    head.save_pretrained(tmp_path / "head")
    load_target(base, None, False).tokenizer.save_pretrained(tmp_path / "head")
    for arguments, said in (
        ([base, "--compare", "base"], "its own base"),
        ([run, "--compare", str(tmp_path / "head")], "cannot be compared"),
        ([run, "--compare", "base", "-o", str(tmp_path)], "cannot be written"),
    ):
        done = CliRunner().invoke(app, ["eval", *arguments])
        assert isinstance(done.exception, UsageError)
        assert said in str(done.exception)


def test_files_and_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k=v.jsonl").write_text("")
    found = data_files(["a=x.jsonl", "k=v.jsonl", "https://h/q?n=1"], {"format": ["a=text", "chat"], "columns": []})
    assert [(one.name, one.path) for one in found] == [
        ("a", "x.jsonl"),
        ("k=v", "k=v.jsonl"),
        ("q?n=1", "https://h/q?n=1"),
    ]
    assert [one.reading for one in found] == [{"format": "text"}, {"format": "chat"}, {"format": "chat"}]
    assert data_files([], {"format": []}) == [data_files([], {})[0]]


@given(st.text("ab .\n", max_size=30), st.text("ab .\n", max_size=30))
def test_marked_texts_are_whole_and_what_is_not_marked_is_in_both(a: str, b: str) -> None:
    first, second = marked(a, b)
    assert ("".join(text for text, _ in first), "".join(text for text, _ in second)) == (a, b)
    kept = [[text for text, own in parts if not own] for parts in (first, second)]
    assert "".join("".join(kept[0]).split()) == "".join("".join(kept[1]).split())


def test_the_page_says_what_differs_without_colour_and_runs_nothing() -> None:
    figure = {"first": 1.0, "second": 2.0, "difference": -1.0, "low": -1.5, "high": -0.5, "tells_apart": True}
    answer = {
        "row": "a.jsonl:1",
        "prompt": EVIL,
        "expected": EVIL,
        "first": f"Paris. {EVIL}",
        "second": f"Rome. {EVIL}",
    }
    part = {
        **{"file": EVIL, "rows": 2, "left_out": 1, "same_tokens": False, "counted": [3, 3], "unit": "trained token"},
        **{"figures": {"loss": figure, "perplexity": {**figure, "difference": None, "low": None, "high": None}}},
        "answers": [{**answer, "first_match": True, "second_match": False}],
    }
    made = side_page({"first": EVIL, "second": "base", "draws": 2000, "data": {EVIL: part}})
    page = sound(made)
    assert page.texts("mark") == ["Paris", "Rome"]
    assert 'mark::before { content: "["; }' in made
    assert page.tables[0][1:] == [
        ["loss", "1.0000", "2.0000", "-1.0000", "-1.5000 to -0.5000", "yes"],
        ["perplexity", "1.0000", "2.0000", "–", "–", "–"],
    ]
    words = " ".join(page.texts("p", "summary"))
    for said in ("1 row left out", "different tokens", f"only {EVIL} as expected", "1 row answered, 0 by both alike"):
        assert said in words
