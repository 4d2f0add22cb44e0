"""Claims of papers: their files, the data they learn, the rules by which they are judged, and the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import uuid
from contextlib import chdir
from copy import deepcopy
from pathlib import Path
from typing import Any

import paper_claims
import pytest
from common import keeping, small_model
from method_benchmark import base
from paper_claims import pairs, running
from paper_claims.claim import Claim, Measure
from paper_claims.page import anchor, page
from paper_claims.papers import CLAIMS, mora
from transformers import AutoConfig, AutoTokenizer

import lrft
from lrft import recipe as recipes
from lrft.compare.config import read
from lrft.compare.run import run
from lrft.tracking.console import Reporter
from lrft.utils import files

ROOT = Path(paper_claims.__file__).parents[2]
FILES = ROOT / "recipes" / "claims"
KEPT = {path.stem: files.read_json(path) for path in (ROOT / "docs" / "claims").iterdir()}
BY_NAME = {claim.name: claim for claim in CLAIMS}
NAMES = list(BY_NAME)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of the tasks and a base that knows none, as they lie in base.FOLDER."""
    folder = tmp_path_factory.mktemp("tasks")
    with chdir(folder):
        base.FOLDER.mkdir(parents=True)
        base.write_data()
        base.write_random()
        base.RANDOM.rename(base.BASE)
    return folder / base.FOLDER


@pytest.fixture
def place(tmp_path: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pairs, the tasks, and bases that know none, where the recipes look for them."""
    monkeypatch.chdir(tmp_path)
    base.FOLDER.parent.mkdir()
    shutil.copytree(tasks, base.FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(Path(lrft.__file__).parents[1]))
    pairs.write_random(pairs.BASE)
    for name, count in (("old", 6), ("new", 8)):
        small_model.write_rows(pairs.FOLDER / f"{name}.jsonl", pairs.pairs(count, seed=count))
    return tmp_path


# --- files ---


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_a_comparison(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = read(FILES / f"{name}.yaml")
    assert comparison.output == running.RUNS / name
    with Reporter(None) as reporter:
        run(comparison, reporter, jobs=1, dry_run=True)
    said = capsys.readouterr().out
    runs = len(comparison.seeds) * sum(len(variant.points) for variant in comparison.variants)
    assert f"{runs} runs" in said
    assert not (place / "runs" / "claims" / name).exists(), "nothing is trained"


def test_every_file_is_that_of_a_claim() -> None:
    assert {path.stem for path in FILES.iterdir()} == {*NAMES, "base", "pairs"}


@pytest.mark.parametrize("name", list(KEPT))
def test_figures_were_made_by_the_files_as_they_are(place: Path, name: str) -> None:
    comparison, kept = read(FILES / f"{name}.yaml"), KEPT[name]
    assert {key: kept[key] for key in ("metric", "baseline", "budget")} == {
        key: getattr(comparison, key) for key in ("metric", "baseline", "budget")
    }
    assert kept["seeds"] == list(comparison.seeds)
    points = [(variant.name, point.plain()) for variant in comparison.variants for point in variant.points]
    assert [(point["run"], point["point"]) for point in kept["grid"]] == points


def test_mora_and_lora_are_equal_in_numbers(place: Path) -> None:
    lora, mora = KEPT["mora"]["methods"]
    assert (lora["run"], mora["run"]) == ("lora", "mora")
    assert lora["trained"] == 78_848
    assert mora["trained"] == 79_232


def test_the_base_is_trained_with_its_head(place: Path) -> None:
    pairs.write_random(pairs.RANDOM)
    recipe = recipes.load(FILES / "base.yaml")
    assert [entry.name for entry in recipe.adapter.method] == ["full"]
    assert (recipe.adapter.target_modules, recipe.adapter.exclude_modules) == (("all-linear", "lm_head"), ())
    assert (recipe.model.name, recipe.output_dir) == (str(pairs.RANDOM), str(pairs.TRAINED))


# --- data ---


def test_pairs_are_random_uuids_and_the_same_each_time() -> None:
    old, new = list(pairs.pairs(pairs.OLD, seed=1)), list(pairs.pairs(pairs.NEW, seed=2))
    assert old == list(pairs.pairs(pairs.OLD, seed=1))
    words = [text for row in old + new for text in (row["prompt"][:-1], row["completion"])]
    assert len(set(words)) == 2 * (128 + 256), "no key and no value twice"
    assert {uuid.UUID(word).version for word in words} == {4}
    assert {row["prompt"][-1] for row in old + new} == {":"}


def test_two_digits_are_one_token(tmp_path: Path) -> None:
    pairs.write_random(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == AutoConfig.from_pretrained(tmp_path).vocab_size == 259
    (row,) = pairs.pairs(1, seed=3)
    for text, count in ((row["prompt"], 17), (row["completion"], 16)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == count
        assert tokenizer.decode(ids) == text
        assert [f"{number:02x}" for number in ids[:16]] == re.findall("..", text)[:16], "the token's number is its byte"


def test_digits_are_counted_in_their_places() -> None:
    def share(expected: str, answer: str) -> float:
        return mora.right_digits([{"expected": expected, "answer": answer}])

    assert share("0123", "0123") == 1
    assert share("0123", "3210") == 0
    assert share("0123", "0193") == 0.75
    assert share("0123", "01") == share("0123", "01ff") == 0.5, "what is missing is wrong"
    assert share("0123", "") == 0
    assert share("0123", "01234567") == 1, "what comes after is not asked for"
    assert mora.right_digits([{"expected": "ab", "answer": "ab"}, {"expected": "cd", "answer": "ef"}]) == 0.5


# --- judgements ---


def loss_rows(lora: list[float], pissa: list[float]) -> dict[str, Any]:
    values = {"lora": lora, "pissa": pissa}
    return {
        "baseline": "lora",
        "methods": [
            {"run": who, "values": {str(n): x for n, x in enumerate(those, start=1)}} for who, those in values.items()
        ],
    }


def ranks(lora: list[list[float]], rslora: list[list[float]]) -> dict[str, Any]:
    """Losses by seed of ranks 64, 4 and 16, in this order: the file's order says nothing."""
    grid = [
        {"run": who, "point": {"adapter.rank": rank}, "values": {str(n): x for n, x in enumerate(values, start=1)}}
        for who, points in (("lora", lora), ("rslora", rslora))
        for rank, values in zip((64, 4, 16), points, strict=True)
    ]
    return {"baseline": "lora", "seeds": [1, 2], "grid": grid}


def test_more_digits() -> None:
    def shows(lora: list[float], mora: list[float]) -> bool:
        both = {"lora": lora, "mora": mora}
        right = {who: {str(n): share for n, share in enumerate(those)} for who, those in both.items()}
        return BY_NAME["mora"].judge({"baseline": "lora", "measured": {"digits": right}}).shows

    assert shows([0.6, 0.5], [0.9, 0.63])
    assert not shows([0.6, 0.5], [0.9, 0.61]), "eleven points on one seed"
    assert not shows([0.9, 0.63], [0.6, 0.5]), "the other way round"
    assert not shows([0.6, 0.5], [0.6, 0.5])


def test_lower_loss() -> None:
    def shows(lora: list[float], pissa: list[float]) -> bool:
        return BY_NAME["pissa"].judge(loss_rows(lora, pissa)).shows

    assert shows([2.0, 3.0], [1.9, 2.9])
    assert not shows([2.0, 3.0], [1.0, 3.0]), "no lower on one seed"
    assert not shows([1.9, 2.9], [2.0, 3.0]), "the other way round"


def test_gains_by_rank() -> None:
    def shows(lora: list[list[float]], rslora: list[list[float]]) -> bool:
        return BY_NAME["rslora"].judge(ranks(lora, rslora)).shows

    flat, falling = [[2.9, 2.9], [3.0, 3.0], [2.8, 2.8]], [[1.0, 1.1], [3.0, 3.0], [2.0, 2.0]]
    rising = [[3.5, 3.5], [3.0, 3.0], [3.2, 3.2]]
    assert shows(flat, falling)
    assert shows(rising, falling), "it may even lose"
    assert not shows(falling, flat), "the other way round"
    assert not shows(falling, falling), "LoRA gains as much"
    assert not shows([[2.0, 1.9], [3.0, 3.0], [2.9, 2.9]], falling), "more than half on one seed"
    assert not shows(flat, [[1.0, 2.1], [3.0, 3.0], [2.0, 2.0]]), "the second step is lost on one seed"


# --- the page ---


def test_the_page_is_what_the_figures_give() -> None:
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == page(KEPT)


AS_GOOD = {"loram"}
"""of methods that are to be nearly as good: exchanged with the better one they still are"""
PAIRED = [
    claim
    for claim in CLAIMS
    if claim.name in KEPT and len(KEPT[claim.name]["methods"]) == 2 and claim.name not in AS_GOOD
]


@pytest.mark.parametrize("claim", PAIRED, ids=lambda claim: claim.name)
def test_the_page_says_so_where_it_does_not_show(claim: Claim) -> None:
    """What the baseline has and what its rival has are exchanged: what showed shows no more."""
    turned = deepcopy(KEPT[claim.name])
    base = turned["baseline"]
    (rival,) = {row["run"] for row in turned["methods"]} - {base}
    names = {base: rival, rival: base}
    for row in [*turned["methods"], *turned["grid"]]:
        row["run"] = names[row["run"]]
    for name, found in turned["measured"].items():
        turned["measured"][name] = {names[who]: values for who, values in found.items()}
    pages = [page({claim.name: facts}) for facts in (turned, KEPT[claim.name])]
    verdicts = [re.findall(r"\*\*Here it (.*?)\.\*\*", text) for text in pages]
    shows = claim.judge(KEPT[claim.name]).shows
    assert verdicts[1] == ["shows" if shows else "does not show"]
    if shows:
        assert verdicts[0] == ["does not show"]


def test_links_go_to_titles() -> None:
    text = page(KEPT)
    for claim in CLAIMS:
        if claim.name in KEPT:
            assert f"(#{anchor(claim)})" in text
            assert f"\n## {claim.title}\n" in text
    assert anchor(BY_NAME["pissa"]) == "pissa-goes-further-in-the-first-steps"


# --- running ---


def test_the_cost_of_all_calls_is_added_up_and_of_those_that_fail(tmp_path: Path) -> None:
    cost = tmp_path / "new" / "cost.json"
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass\nraise SystemExit(3)"]
    with pytest.raises(subprocess.CalledProcessError), keeping.counted(cost):
        subprocess.run(busy, check=True)
    first = files.read_json(cost)
    assert 0.4 <= first["cpu_seconds"] <= first["wall_seconds"] + 0.1
    with keeping.counted(cost):
        subprocess.run(busy, check=False)
    assert files.read_json(cost)["cpu_seconds"] >= first["cpu_seconds"] + 0.4


def test_the_cost_has_what_is_left_behind_by_those_that_end_first(tmp_path: Path) -> None:
    """As the runs of a comparison are, which a fork server waits for and nobody for that."""
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}], start_new_session=True)"
    cost = tmp_path / "cost.json"
    with keeping.counted(cost):
        subprocess.run([sys.executable, "-c", leaves], check=True)
    assert files.read_json(cost)["cpu_seconds"] >= 0.45


@pytest.mark.slow
@pytest.mark.all
def test_a_claim_is_run_and_kept(place: Path) -> None:
    """Two runs of one step; then again, from what is there."""
    running.RECIPES.mkdir(parents=True)
    files.write_text(
        running.RECIPES / "tiny.yaml",
        f"recipe: {{extends: {FILES / 'pairs.yaml'}, training: {{max_steps: 1, warmup_steps: 0}}}}\n"
        "runs: [lora, pissa]\nseeds: [7]\noutput_dir: runs/claims/tiny\n",
    )
    first = running.run("tiny", [*mora.CLAIM.measures, Measure("theirs", "", lambda _, base: len(base))])
    assert first["measured"].keys() == {"digits", "theirs"}
    assert first["measured"]["digits"].keys() == {"lora", "pissa"}
    assert all(0 <= found["7"] < 0.5 for found in first["measured"]["digits"].values()), "a base that knows nothing"
    theirs = first["measured"]["theirs"]
    assert theirs["lora"] == theirs["pissa"], "each is given the baseline's folder"
    assert first["runs"] == {"finished": 2}
    assert first["machine"]["torch"]
    again = running.run("tiny", [])
    assert again["methods"] == first["methods"]
    assert again["measured"] == {}
    assert again["cost"]["cpu_seconds"] > first["cost"]["cpu_seconds"] > 1
