"""The standing benchmark: its rows, its comparisons, its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import method_benchmark
import pytest
from method_benchmark import base, language, page
from method_benchmark import files as comparisons
from method_benchmark.tasks import TASKS, rows

from lrft import recipe as recipes
from lrft import registry
from lrft.compare.config import read
from lrft.utils import files

ROOT = Path(method_benchmark.__file__).parents[2]
KEPT = {path.stem: files.read_json(path) for path in (ROOT / "docs" / "benchmark").glob("*.json")}


# --- rows ---


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_the_same_each_time_and_none_is_in_both_sets(task: str) -> None:
    validation = rows(task, base.VALIDATION, seed=2)
    assert validation == rows(task, base.VALIDATION, seed=2)
    train = rows(task, base.TRAIN, seed=1, unlike={row["prompt"] for row in validation})
    prompts = [row["prompt"] for row in train + validation]
    assert len(set(prompts)) == len(prompts) == base.TRAIN + base.VALIDATION


def test_sums_are_right() -> None:
    """Read by words that the generator does not share: what comes adds, what goes is taken away."""
    for row in rows("arithmetic", 400, seed=3):
        found = [int(number.replace(" ", "")) for number in re.findall(r"\d(?: \d)*", row["prompt"])]
        gone = re.search("gives|takes|loses", row["prompt"])
        expected = {2: found[0] - found[-1] if gone else sum(found)}
        if len(found) == 3:
            expected[3] = found[0] - found[1] + found[2]
        assert row["completion"].replace(" ", "") == str(expected[len(found)]), row
        assert 0 <= expected[len(found)] <= language.BIGGEST


def test_answers_to_instructions_are_made_of_the_list_or_its_kinds() -> None:
    seen = set()
    for row in rows("instructions", 400, seed=3):
        words = [word for word in row["prompt"].split() if word in language.KIND]
        answer = row["completion"].split()
        assert set(answer) <= {*words, *(language.KIND[word] for word in words)}
        if "backwards" in row["prompt"]:
            assert answer == words[::-1]
        if "two times" in row["prompt"]:
            assert answer[::2] == answer[1::2] == words
        (asked,) = re.findall(r"say [a-z ]+", row["prompt"].replace(" answer", ""))
        seen.add(asked.split(" are ")[0].strip())
    assert len(seen) == 7, seen


def test_every_label_is_there_about_as_often() -> None:
    labels = [row["completion"] for row in rows("classification", 400, seed=3)]
    counts = [labels.count(label) for label in set(labels)]
    assert len(counts) == 8
    assert min(counts) > 25


def test_the_english_has_no_line_twice_and_right_sums() -> None:
    lines = [row["text"] for row in base.english()]
    assert len(set(lines)) == len(lines) == base.LINES + base.HELD_OUT
    formulas = [line for line in lines if "=" in line]
    assert len(formulas) > 100
    for line in formulas:
        left, right = line.removesuffix(" .").replace(" ", "").split("=")
        parts = [int(part) for part in re.split(r"[+-]", left)]
        assert (sum(parts) if "+" in left else parts[0] - parts[1]) == int(right)


# --- comparisons ---


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_the_files_are_what_the_catalogue_gives(name: str) -> None:
    text = (ROOT / comparisons.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert text == comparisons.text(name), "run scripts/benchmark files"


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_every_method_has_a_run_that_trains_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    comparison = read(Path(comparisons.FOLDER / f"{name}.yaml"))
    words = {*registry.methods(), *registry.PRESETS}
    part, ending = comparisons.parted(name)
    later = {*comparisons.ADDED, *comparisons.LATER}
    assert {variant.name for variant in comparison.variants} == comparisons.methods_of(part, ending) | {"lora"}
    first = comparisons.methods_of(part, "")
    assert first | later | {*comparisons.OUTSIDE} == words
    assert {*comparisons.IN_TASKS} <= {*comparisons.ADDED}
    assert not {*comparisons.ADDED} & {*comparisons.LATER}
    assert not first & (later | {*comparisons.OUTSIDE})
    assert not later & {*comparisons.OUTSIDE}
    assert {*comparisons.RATES, *comparisons.OPTIONS, *comparisons.OUTSIDE, *later} <= words
    assert comparison.baseline == "lora"
    for variant in comparison.variants:
        assert len(variant.points) in ((3, 4, 5) if part == comparisons.SEARCH else (1,))
        recipe, _ = variant.recipe(variant.points[0], seed=1, output=Path("out"))
        named = {entry.name for entry in recipe.adapter.method}
        preset = registry.PRESETS.get(variant.name)
        assert (variant.name in named) if preset is None else named >= {name for name, _ in preset.entries}


@pytest.mark.parametrize("ending", ["", comparisons.OF_ADDED])
def test_tasks_take_the_rates_that_were_found_and_seeds_that_did_not_find_them(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    search = comparisons.SEARCH + ending
    found = {row["run"]: row["best"] for row in KEPT[search]["methods"]}
    searched = read(Path(comparisons.FOLDER / f"{search}.yaml"))
    for task in TASKS:
        comparison = read(Path(comparisons.FOLDER / f"{task}{ending}.yaml"))
        assert not {*comparison.seeds} & {*searched.seeds}
        for variant in comparison.variants:
            recipe, _ = variant.recipe(variant.points[0], seed=2, output=Path("out"))
            assert {"training.learning_rate": recipe.training.learning_rate} == found[variant.name]


@pytest.mark.parametrize("search", [comparisons.SEARCH, comparisons.SEARCH + comparisons.OF_ADDED])
def test_what_was_searched_is_what_the_search_says(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    searched = read(Path(comparisons.FOLDER / f"{search}.yaml"))
    wanted = {(variant.name, *point.plain().values()) for variant in searched.variants for point in variant.points}
    kept = KEPT[search]["grid"]
    assert {(point["run"], *point["point"].values()) for point in kept} == wanted
    assert len(kept) == len(wanted)


def test_the_base_is_trained_with_its_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipes.load(ROOT / base.RECIPE)
    assert (recipe.model.name, recipe.output_dir) == (str(base.RANDOM), str(base.TRAINED))
    assert recipe.adapter.target_modules == ("all-linear", "lm_head")


def test_the_tokenizer_has_every_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    base.FOLDER.mkdir(parents=True)
    base.write_data()
    base.write_random()
    tokenizer = AutoTokenizer.from_pretrained(base.RANDOM)
    assert AutoConfig.from_pretrained(base.RANDOM).vocab_size == len(tokenizer)
    assert tokenizer.unk_token_id in tokenizer("zebra")["input_ids"]
    for path in base.FOLDER.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            text = "".join(json.loads(line).values())
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) < 60


# --- the page ---


def test_changes_are_ordered_and_complete() -> None:
    def facts(**seeds: list[float] | None) -> dict:
        rows = [
            {"run": run, "mean": values and sum(values) / 2, "values": dict(zip("23", values or [], strict=False))}
            for run, values in seeds.items()
        ]
        return {"baseline": "lora", "methods": rows}

    one = facts(lora=[1.0, 2.0], a=[0.5, 1.5], b=[1.5, 2.5], c=None)
    two = facts(lora=[2.0, 2.5], a=[2.25, 2.75], b=[0.5, 2.0], c=[1.0, 1.0])
    three = facts(lora=[1.0, 1.0], a=[1.0, 1.0], b=[1.0, 1.0], c=[0.0, 0.0])
    found = page.changes(dict(zip(TASKS, (one, two, three), strict=True)))
    first, second, third = TASKS
    assert found == {
        "b": {first: [0.5, 0.5], second: [-1.5, -0.5], third: [0.0, 0.0]},
        "a": {first: [-0.5, -0.5], second: [0.25, 0.25], third: [0.0, 0.0]},
        "lora": {task: [0.0, 0.0] for task in TASKS},
    }
    assert list(found) == ["b", "a", "lora"]


def test_the_page_is_what_the_figures_give() -> None:
    newer = {name for name in comparisons.COMPARISONS if name.endswith(comparisons.OF_NEWER)}
    assert {*comparisons.COMPARISONS} - newer <= set(KEPT) <= {*comparisons.COMPARISONS}, "scripts/benchmark run"
    text = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    assert text == page.page(KEPT)
    for row in (row for ending in ("", comparisons.OF_ADDED) for row in KEPT[comparisons.SEARCH + ending]["methods"]):
        assert re.search(rf"\| \**{re.escape(row['run'])}\** \|", text)
    for name in (*comparisons.OUTSIDE, *comparisons.LATER):
        assert re.search(rf"^- .*{re.escape(name)}[,:]|\| {re.escape(name)} \|", text, re.MULTILINE)


def test_newer_figures_join_the_table_over_the_same_base_alone() -> None:
    def facts(base: float, run: str) -> dict:
        rows = [{"run": name, "values": {"2": value}} for name, value in (("lora", base), (run, 1.0))]
        grid = [{"run": name} for name in ("lora", run)]
        cost = {"cpu_seconds": 1.0, "wall_seconds": 2.0}
        more = {"failed": [], "runs": {"finished": 2}, "cost": cost, "date": "2026-01-01"}
        return {"baseline": "lora", "methods": rows, "grid": grid, **more}

    both = page.joined(facts(0.5, "a"), facts(0.5, "b"))
    assert [row["run"] for row in both["methods"]] == [point["run"] for point in both["grid"]] == ["lora", "a", "b"]
    assert (both["runs"]["finished"], both["cost"]["cpu_seconds"]) == (4, 2.0)
    with pytest.raises(ValueError, match="the baseline was"):
        page.joined(facts(0.5, "a"), facts(0.5000001, "b"))


def test_a_rate_at_the_edge_has_a_star() -> None:
    grid = [{"run": "a", "point": {"training.learning_rate": rate}, "mean": 1.0} for rate in (0.1, 0.2, 0.3)]
    row: dict = {"run": "a", "best": {"training.learning_rate": 0.2}}
    assert page.rate_text(row, {"grid": grid}) == "0.2"
    row["best"] = {"training.learning_rate": 0.3}
    assert page.rate_text(row, {"grid": grid}) == "0.3*"
    row["best"] = None
    assert page.rate_text(row, {"grid": grid}) == "–"
