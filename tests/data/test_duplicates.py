"""`lrft data`: copies and near copies against sets compared one by one, and what the command says of files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parsed import Parsed
from prepared import lines

from lrft.cli.main import run_command
from lrft.data.duplicates import SHINGLE, SIMILAR, jaccard, same_rows, shingles, similar_rows


def brute(rows: list[list[int]], at_least: float) -> dict[tuple[int, int], float]:
    """Every pair whose sets of runs are alike, the first of equal rows standing for all."""
    sets = [{tuple(r[i : i + SHINGLE]) for i in range(max(1, len(r) - SHINGLE + 1))} if r else set() for r in rows]
    kept = [i for i in range(len(rows)) if rows.index(rows[i]) == i]
    alike = {(a, b): len(sets[a] & sets[b]) / max(len(sets[a] | sets[b]), 1) for a in kept for b in kept if a < b}
    return {pair: value for pair, value in alike.items() if value >= at_least}


@pytest.mark.parametrize("words", [3, 50, 1000])
def test_similar_rows_are_those_of_sets_compared_one_by_one(words: int) -> None:
    draw = random.Random(words)
    rows: list[list[int]] = [[], [1], [1, 2], [1]]
    for _ in range(60):
        row = [draw.randrange(words) for _ in range(draw.randrange(1, 60))]
        rows += [row, [*row[:-1], words], [words, *row[1:]], row[: len(row) * 3 // 4]]
    made = [np.array(row, dtype=np.int64) for row in rows]
    found = {(pair.a, pair.b): pair.similarity for pair in similar_rows(made)}
    expected = brute(rows, SIMILAR)
    assert expected
    assert found == pytest.approx(expected)
    groups = {tuple(row): [i for i, other in enumerate(rows) if other == row] for row in rows}
    assert sorted(same_rows(made)) == sorted(group for group in groups.values() if len(group) > 1)
    assert jaccard(shingles(made[4]), shingles(made[4])) == 1.0
    assert similar_rows([]) == []


def rows_of(n: int, start: int = 0, ending: str = "end") -> list[dict[str, str]]:
    return [{"text": " ".join(f"w{i}-{k}" for k in range(30)) + f" {ending}"} for i in range(start, start + n)]


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_command(["data", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_file_against_a_test_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = rows_of(6)
    path = lines(tmp_path / "a.jsonl", *first, first[0], first[0], *rows_of(1, 1, "stop"), {"text": ""}, {"text": "x"})
    test = lines(tmp_path / "t.jsonl", first[2], first[2], *rows_of(1, 3, "stop"), *rows_of(2, 50))
    found = facts(capsys, str(path), "--test", str(test))
    assert found["unit"] == "words"
    assert {source["role"]: (source["read"], source["used"]) for source in found["sources"]} == {
        "train": (11, 10),
        "test": (5, 5),
    }
    assert found["sources"][0]["dropped"] == {"empty": 1}
    train = found["parts"]["train"]
    assert (train["lengths"]["max"], train["shortest"][0]) == (31, {"source": f"{path}:11", "length": 1, "text": "x"})
    own, overlap = found["duplicates"]["train"], found["overlaps"][0]
    assert (own["exact"], own["near"]) == (2, 1)
    assert own["exact_examples"] == [[f"{path}:1", f"{path}:7", f"{path}:8"]]
    assert own["near_examples"][0]["rows"] == [f"{path}:2", f"{path}:9"]
    assert (overlap["first"], overlap["second"], overlap["exact"], overlap["near"]) == ("train", "test", 2, 1)
    assert overlap["near_examples"][0]["rows"] == [f"{path}:4", f"{test}:3"]
    out = tmp_path / "page.html"
    assert run_command(["data", str(path), "--test", str(test), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "train: 2 exact copies, 1 near duplicate" in said
    assert "2 test rows are also train rows, 1 more are similar to one" in said
    assert [tag for tag, _, _ in Parsed(out.read_text()).found].count("svg") == 2
    assert "<script" not in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["absent.jsonl"], 3, "no such file"),
        (["a.jsonl", "data.max_length=3"], 2, "it has no keys to override"),
        (["a.jsonl", "-o", "nowhere/x.html"], 2, "there is no folder nowhere"),
        (["bad.jsonl"], 3, "no row can be used: not JSON"),
        (["a.jsonl", "--test", "absent.jsonl"], 3, "no such file"),
    ],
)
def test_what_cannot_be_looked_at(
    tmp_path: Path, arguments: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "a.jsonl", *rows_of(2))
    (tmp_path / "bad.jsonl").write_text("{")
    before = sorted(tmp_path.iterdir())
    assert run_command(["data", *arguments]) == code
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_recipe_is_measured_in_the_tokens_that_are_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import runs

    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    place = runs.Place.make(tmp_path)
    runs.write_rows(tmp_path / "validation.jsonl", [*runs.rows(2, seed=1), *runs.rows(10)[:3]])
    runs.write_rows(tmp_path / "test.jsonl", runs.rows(10)[3:5])
    found = facts(capsys, str(place.root / "recipe.yaml"), "--test", str(tmp_path / "test.jsonl"))
    assert (found["unit"], list(found["parts"])) == ("tokens", ["train", "validation", "test"])
    longest = found["parts"]["train"]["longest"][0]
    assert longest["text"].startswith("<|im_start|>user\n")
    assert longest["length"] == found["parts"]["train"]["lengths"]["max"]
    exact = {(each["first"], each["second"]): each["exact"] for each in found["overlaps"]}
    assert exact == {("train", "validation"): 3, ("train", "test"): 2, ("validation", "test"): 0}
