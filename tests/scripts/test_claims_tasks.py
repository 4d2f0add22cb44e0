"""Claims that are tried on the tasks: wrong labels, what is measured of their runs, the rules that judge them."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paper_claims
import pytest
import torch
from common import small_model
from method_benchmark import base
from method_benchmark.tasks import REQUESTS, mislabelled, rows
from paper_claims import __main__ as script
from paper_claims import few_numbers, pairs, running
from paper_claims.page import page
from paper_claims.papers import CLAIMS
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import lrft
from lrft.compare.config import read
from lrft.utils import files

ROOT = Path(paper_claims.__file__).parents[2]
JUDGE = {claim.name: claim.judge for claim in CLAIMS}
SETTING = {claim.name: claim.setting for claim in CLAIMS}


# --- wrong labels ---


def test_a_share_of_the_labels_is_wrong_and_nothing_else() -> None:
    made = rows("classification", 500, seed=4)
    noisy = mislabelled(made, 0.3, seed=1)
    assert [row["prompt"] for row in noisy] == [row["prompt"] for row in made]
    labels = {f" {label}" for label in REQUESTS}
    assert {row["completion"] for row in noisy} == labels
    wrong = [at for at in range(500) if noisy[at] != made[at]]
    assert len(wrong) == 150
    assert 40 < sum(at < 250 for at in wrong) < 110, "from the whole file"
    taken = Counter(noisy[at]["completion"] for at in wrong)
    assert min(taken.values()) > 5, "no label is left out"
    assert len(taken) == 8


def test_wrong_labels_are_the_same_each_time() -> None:
    made = rows("classification", 100, seed=4)
    assert mislabelled(made, 0.3, seed=1) == mislabelled(made, 0.3, seed=1) != mislabelled(made, 0.3, seed=2)
    assert mislabelled(made, 0.0, seed=1) == made


def test_only_the_training_rows_have_wrong_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base.FOLDER.mkdir(parents=True)
    base.write_data()
    noisy, clean = (written(f"classification{kind}") for kind in ("-noisy", ""))
    assert sum(one != other for one, other in zip(noisy, clean, strict=True)) == round(0.3 * len(clean))
    data = read(ROOT / "recipes" / "claims" / "ba-lora.yaml").first_recipe().data
    assert [entry.path for entry in data.train] == [str(base.FOLDER / "classification-noisy.jsonl")]
    assert data.validation == str(base.FOLDER / "classification-validation.jsonl")
    assert written("classification-validation") == rows("classification", 256, seed=2)


def written(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (base.FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


# --- judgements ---


def gains(run: str, *, trained: int, lora: list[float], found: list[float], **others: list[float]) -> dict[str, Any]:
    """Facts of a comparison with a lora of 800 numbers."""
    measured = {"lora": lora, run: found, **others}
    return {
        "methods": [{"run": who, "trained": trained if who == run else 800} for who in measured],
        "measured": {"gain": {who: dict(zip("12", those, strict=True)) for who, those in measured.items()}},
    }


@pytest.mark.parametrize("run", ["vera", "lora-xs"])
def test_near_lora_with_few_numbers(run: str) -> None:
    def shows(found: list[float], trained: int = 100) -> bool:
        return JUDGE[run](gains(run, trained=trained, lora=[4.0, 2.0], found=found)).shows

    assert shows([3.81, 1.91])
    assert shows([5.0, 3.0]), "it may be better"
    assert not shows([3.79, 1.91]), "94.75 % on one seed"
    assert not shows([3.81, 1.89]), "94.5 % on the other"
    assert not shows([3.81, 1.91], trained=101), "more than an eighth of the numbers"


def test_what_stands_beside_is_told_and_not_judged() -> None:
    judged = [
        JUDGE["vera"](gains("vera", trained=100, lora=[4.0, 2.0], found=[3.9, 1.9], **{"lora-1": other}))
        for other in ([0.4, 0.4], [8.0, 4.0])
    ]
    assert [verdict.shows for verdict in judged] == [True, True]
    assert judged[0].figures == (
        "vera has 97.5 %, 95.0 % of the gain of lora, with 12.5 % of its numbers; "
        "lora-1 (not judged) has 10.0 %, 20.0 % of the gain of lora, with 100.0 % of its numbers."
    )


def test_lower_loss_than_pissa() -> None:
    def shows(pissa: list[float], ba_lora: list[float]) -> bool:
        values = {"pissa": pissa, "ba-lora": ba_lora}
        methods = [{"run": who, "values": dict(zip("12", those, strict=True))} for who, those in values.items()]
        return JUDGE["ba-lora"]({"baseline": "pissa", "methods": methods}).shows

    assert shows([0.3, 0.4], [0.2, 0.3])
    assert not shows([0.3, 0.4], [0.1, 0.4]), "no lower on one seed"
    assert not shows([0.2, 0.3], [0.3, 0.4]), "the other way round"


# --- measures ---


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a base of random weights and six validation rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(lrft.__file__).parents[1]))
    base.FOLDER.mkdir(parents=True)
    small_model.write_rows(few_numbers.VALIDATION, rows("instructions", 6, seed=5))
    base.write_random()
    base.RANDOM.rename(base.BASE)
    few_numbers.before.cache_clear()
    yield tmp_path
    few_numbers.before.cache_clear()


@pytest.mark.slow
@pytest.mark.all
def test_the_gain_is_what_the_loss_is_below_the_bases(untrained: Path) -> None:
    """A model with a head of zeros guesses: its loss is the logarithm of the number of words."""
    shutil.copytree(base.BASE, untrained / "guesses")
    weights = files.read_tensors(base.BASE / "model.safetensors")
    words = len(weights["lm_head.weight"])
    weights["lm_head.weight"].zero_()
    files.write_tensors(untrained / "guesses" / "model.safetensors", weights, {"format": "pt"})
    found = few_numbers.gain(str(untrained / "guesses"), "")
    assert found == pytest.approx(by_hand(base.BASE) - math.log(words), rel=1e-4)
    assert few_numbers.gain(str(base.BASE), "") == 0


def by_hand(folder: Path) -> float:
    """Mean loss of the answers and their end tokens, row by row."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for row in written("instructions-validation"):
        prompt, answer = (
            tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "completion")
        )
        ids = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        total += float(cross_entropy(logits[len(prompt) - 1 : -1], ids[len(prompt) :], reduction="sum"))
        count += len(answer) + 1
    return total / count


# --- files and settings ---


def test_lora_has_the_rate_that_was_best_with_the_same_recipe() -> None:
    best = {name: {row["run"]: row["best"] for row in kept(name)["methods"]}["lora"] for name in ("vera", "lora-xs")}
    assert best["vera"] == best["lora-xs"]
    values = {name: {row["run"]: row["values"] for row in kept(name)["methods"]}["lora"] for name in best}
    assert values["vera"] == pytest.approx(values["lora-xs"], rel=1e-3)


def kept(name: str) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(ROOT / running.kept_at(name))
    return found


@pytest.mark.parametrize("name", list(SETTING))
def test_a_claim_says_which_base_it_takes(name: str) -> None:
    """The base of its runs is that of its setting."""
    recipe = read(ROOT / "recipes" / "claims" / f"{name}.yaml").first_recipe()
    assert recipe.model.name == str({"pairs": pairs.BASE, "tasks": base.BASE}[SETTING[name]])
    told = page({name: kept(name)})
    assert f"**The rule** ([{SETTING[name]}](#{SETTING[name]}))" in told
    assert f"\n### {SETTING[name].capitalize()}\n" in told


@pytest.mark.parametrize("name", ["mora", "ba-lora"])
def test_only_the_base_that_is_needed_is_made(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both bases are already finished, as folders: what is made then is their data. Nothing is compared."""
    monkeypatch.chdir(tmp_path)
    for folder in (pairs.BASE, base.BASE, running.KEPT):
        folder.mkdir(parents=True)
    monkeypatch.setattr(running, "run", lambda claim, measures: kept(claim))
    monkeypatch.setattr(sys, "argv", ["claims", "run", name])
    script.main()
    made = {
        "pairs": (pairs.FOLDER / "new.jsonl").exists(),
        "tasks": (base.FOLDER / "classification-noisy.jsonl").exists(),
    }
    assert made == {setting: setting == SETTING[name] for setting in made}
    assert files.read_json(running.kept_at(name)) == kept(name)
    assert page({name: kept(name)}) == script.WRITTEN.read_text(encoding="utf-8")
