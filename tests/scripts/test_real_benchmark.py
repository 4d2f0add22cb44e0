"""The benchmark on a real model: rows that no search sees, plans, halving, statistics, files and the page."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import method_benchmark
import pytest
import yaml
from docgen import evidence
from method_benchmark import files as toy
from real_benchmark import claims, design, page, peers, plan, results, running, stages, statistics
from real_benchmark.design import BASELINE, TIERS, around, middle
from real_benchmark.rows import intents, task
from real_benchmark.rows.all import TASKS
from real_benchmark.rows.sentences import NAMES, coverage

from lrft import recipe as recipes
from lrft import registry
from lrft.compare import config
from lrft.utils import files

ROOT = Path(method_benchmark.__file__).parents[2]
COST = plan.Cost(start=10, token=0.01, seen=0.004, judge=20, said=0.01, merge=30)
SMALL = replace(TIERS[1], name="small", tasks=("intents",), methods=("dora", "mora", "pissa", "vera"), finalists=1)


# --- rows ---


@pytest.mark.parametrize("name", TASKS)
def test_test_rows_are_in_no_other_set_and_the_same_each_time(name: str) -> None:
    sets, again = TASKS[name].sets(), TASKS[name].sets()
    assert sets == again
    searched = {row["prompt"] for row in [*sets.train, *sets.validation]}
    assert not searched & {row["prompt"] for row in sets.test}
    if name != "facts":  # which are to be remembered
        prompts = [row["prompt"] for row in [*sets.final_train, *sets.validation, *sets.test]]
        assert len(set(prompts)) == len(prompts) == task.TRAIN + task.VALIDATION + task.TEST
    wanted = [(row["prompt"], row["completion"], row["completion"]) for row in sets.test]
    assert TASKS[name].score(wanted) == 1
    assert TASKS[name].score([(prompt, right, "none of it") for prompt, right, _ in wanted]) < 0.2


def test_what_is_tested_differs_in_kind_from_what_is_trained() -> None:
    def commands(rows: list[task.Row]) -> set[tuple[str, ...]]:
        answers = [json.loads(row["completion"]) for row in rows]
        return {(answer["device"], answer["do"], answer["room"]) for answer in answers}

    of_commands, of_sentences = TASKS["commands"].sets(), TASKS["sentences"].sets()
    parts = [commands(rows) for rows in (of_commands.train, of_commands.validation, of_commands.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    tested = {name for name in NAMES if any(f"name: {name}," in row["prompt"] for row in of_sentences.test)}
    assert tested
    assert not any(name in row["prompt"] for name in tested for row in of_sentences.train)
    assert all(len(phrases) == intents.SETS[-1][1] for phrases in intents.PHRASES.values())


def test_sums_are_right() -> None:
    """By Python's own arithmetic, and with the numbers of the story."""
    for row in TASKS["sums"].sets().train:
        shown, result = row["completion"].split(" = ")
        assert re.fullmatch(r"[\d +*-]+", shown)
        assert eval(shown) == int(result) >= 0
        assert set(re.findall(r"\d+", shown)) <= set(re.findall(r"\d+", row["prompt"]))


def test_figures_of_answers() -> None:
    assert task.digits_right([("", " ab12", "ab21"), ("", " cd", "")]) == 2 / 6
    assert task.last_number([("", "3 + 4 = 7", "4 + 3 = 7"), ("", "3 + 4 = 7", "7 = 3"), ("", "1", "")]) == 1 / 3
    assert task.first_word([("", " news", "news today"), ("", " news", ""), ("", " news", "newspaper")]) == 1 / 3
    prompt = "name: The Fox, food: Thai\n"
    said = ["The Fox has Thai food.", "The Fox has food.", "name: The Fox, food: Thai"]
    assert coverage([(prompt, "", answer) for answer in said]) == (1 + 0.5 + 0) / 3


def test_wrong_labels_are_wrong_and_as_many_as_said() -> None:
    rows = TASKS["intents"].sets().train
    noisy = intents.mislabelled(rows, 0.3, seed=1)
    assert sum(a != b for a, b in zip(rows, noisy, strict=True)) == round(0.3 * len(rows))
    assert {row["completion"].strip() for row in noisy} == {*intents.PHRASES}


# --- statistics ---


def test_holm_and_the_intervals_by_quantiles_from_a_table() -> None:
    """Student's t with 2 degrees of freedom: 4.302653 at 97.5 %, 6.205347 at 98.75 %. p in closed form:
    1 - t / sqrt(t² + 2)."""
    values = {"lora": [1.0, 2.0, 3.0], "a": [0.5, 1.4, 2.6], "b": [1.2, 1.9, 3.05]}
    found = statistics.differences(values, "lora")
    apart = [-0.5, -0.6, -0.4]
    error = 0.1 / math.sqrt(3)
    t = 0.5 / error
    assert found["a"].p == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert found["a"].mean == pytest.approx(sum(apart) / 3)
    assert found["a"].high == pytest.approx(-0.5 + 6.205347 * error, rel=1e-6)
    assert found["a"].differs
    assert not found["b"].differs
    alone = statistics.differences({"lora": values["lora"], "a": values["a"]}, "lora")
    assert alone["a"].low == pytest.approx(-0.5 - 4.302653 * error, rel=1e-6)


def test_holm_goes_on_where_bonferroni_stops() -> None:
    assert statistics.holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert statistics.holm({"a": 0.01, "b": 0.03, "c": 0.04}) == {"a"}
    assert statistics.holm({"a": 0.02, "b": 0.02, "c": 0.02}) == set()


def test_nothing_is_told_without_any_deviation() -> None:
    same = {"lora": [0.5, 0.5, 0.5], "a": [0.25, 0.25, 0.25]}
    assert statistics.differences(same, "lora")["a"] == statistics.Difference(-0.25, None, None, 1.0, False)
    coarse = statistics.differences(same, "lora", least=1 / 64)["a"]
    assert coarse.differs
    assert coarse.low is not None
    assert statistics.differences({"lora": [1.0], "a": [2.0]}, "lora")["a"].p == 1


# --- the plan ---


def test_the_largest_tier_that_fits_is_taken() -> None:
    taken = [plan.total(tier, COST) for tier in TIERS]
    assert taken == sorted(taken)
    for tier, seconds in zip(TIERS, taken, strict=True):
        assert plan.fitting(seconds, COST) is tier
    assert plan.fitting(taken[1] - 1, COST) is TIERS[0]
    with pytest.raises(ValueError, match=r"smallest tier takes .* hours here; --budget 0\.1 is less"):
        plan.fitting(360, COST)


def test_on_the_measured_machine_the_tiers_take_what_they_are_named_for() -> None:
    cost = plan.Cost(**design.cost())
    assert [plan.fitting(3600 * hours, cost).name for hours in (0.5, 4, 12, 48)] == [tier.name for tier in TIERS]


def test_a_final_run_costs_its_steps_and_its_questions() -> None:
    stage = plan.Stage("final-sums", "final", "sums", 2, 1, (2, 3), 50)
    tokens = TASKS["sums"].tokens
    run = 10 + 50 * 8 * tokens * 0.01 * 2 + 64 * tokens * 0.004
    judged = 20 + 64 * (tokens * 0.004 + 20 * 0.01)
    assert plan.seconds_of(stage, 2.0, COST) == pytest.approx(4 * (run + judged) + 2 * 30)


def test_every_tier_names_methods_that_there_are() -> None:
    known = {*registry.methods(), *registry.PRESETS}
    for tier in design.ALL:
        assert {*tier.methods} <= known - {BASELINE}
        assert len({*tier.methods}) == len(tier.methods) >= tier.finalists
    left = known - {*TIERS[-1].methods, BASELINE}
    assert {"eigenlorax", "autolora-ranks", "booster"} <= left < {*toy.OUTSIDE}


# --- halving and files ---


def kept(losses: dict[str, dict[float, float | None]], **more: Any) -> dict[str, Any]:
    """What docs/benchmark/real would have of a search: losses by method and rate."""
    done = {run: [loss for loss in those.values() if loss is not None] for run, those in losses.items()}
    return {
        "comparison": "small/search",
        "methods": [{"run": run, "mean": min(those, default=None)} for run, those in done.items()],
        "grid": [
            {"run": run, "point": {stages.RATE: rate}, "mean": loss}
            for run, those in losses.items()
            for rate, loss in those.items()
        ],
        **more,
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is kept, empty."""
    for module in (stages, running, design, peers):
        monkeypatch.setattr(module, "KEPT", tmp_path)
    monkeypatch.setattr(peers, "FILE", tmp_path / "peers.json")
    monkeypatch.chdir(ROOT)
    return tmp_path


def put(place: Path, name: str, facts: dict[str, Any], group: str = "small") -> None:
    (place / group).mkdir(exist_ok=True)
    files.write_json(place / group / f"{name}.json", facts)


def stage_of(name: str, tier: design.Tier = SMALL) -> plan.Stage:
    return next(stage for stage in plan.stages(tier) if stage.name == name)


def test_halving_keeps_the_best_and_always_the_baseline(place: Path) -> None:
    screened = stages.rates(SMALL, stage_of("screen"))
    assert screened == {run: around(middle(run), design.WIDE) for run in (BASELINE, *SMALL.methods)}
    with pytest.raises(LookupError, match="screen"):
        stages.rates(SMALL, stage_of("narrow"))
    losses: dict[str, dict[float, float | None]] = {
        "lora": {0.1: 9.0, 0.2: 8.0, 0.3: 8.5},
        "dora": {0.1: 3.0, 0.2: 1.0, 0.3: 2.0},
        "mora": {0.1: 1.5, 0.2: None, 0.3: 4.0},
        "pissa": {0.1: 5.0, 0.2: 6.0, 0.3: 7.0},
        "vera": {0.1: None, 0.2: None, 0.3: None},
    }
    put(place, "screen", kept(losses))
    narrowed = stages.rates(SMALL, stage_of("narrow"))
    assert narrowed == {"lora": [0.2, 0.3], "dora": [0.2, 0.3], "mora": [0.1, 0.3]}
    put(place, "narrow", kept({"lora": {0.2: 5.0, 0.3: 6.0}, "dora": {0.2: 2.0, 0.3: 2.5}, "mora": {0.1: 1.0, 0.3: 2}}))
    rates = stages.rates(SMALL, stage_of("rates-intents"))
    assert rates == {"lora": [0.08, 0.2, 0.5], "mora": [0.04, 0.1, 0.25]}
    put(place, "rates-intents", kept({"lora": {0.08: 1.0, 0.2: 2.0}, "mora": {0.04: 3.0, 0.1: 2.0}}))
    assert stages.rates(SMALL, stage_of("final-intents")) == {"lora": [0.08], "mora": [0.1]}
    put(place, "rates-intents", kept({"lora": {0.1: None}, "mora": {0.1: 1.0}}))
    with pytest.raises(ValueError, match="lora has no result in small/search"):
        stages.rates(SMALL, stage_of("final-intents"))


@pytest.mark.parametrize("tier", design.ALL[-2:], ids=lambda tier: tier.name)
def test_the_first_file_of_a_tier_is_a_comparison_that_lrft_takes(tier: design.Tier, place: Path) -> None:
    part = stages.parts(tier)[0]
    path = place / "screen.yaml"
    path.write_text(json.dumps(part.made()))
    comparison = config.read(path)
    assert [variant.name for variant in comparison.variants] == [BASELINE, *tier.methods]
    assert all(len(variant.points) == 3 for variant in comparison.variants)
    assert comparison.budget == "parameters"
    assert comparison.seeds == design.SEARCH_SEEDS


def test_final_runs_train_with_seeds_and_rows_of_their_own(place: Path) -> None:
    put(place, "rates-facts", kept({"lora": {0.1: 1.0}}), TIERS[-1].name)
    made = stages.comparison(TIERS[-1], stage_of("final-facts", TIERS[-1]))
    assert made["recipe"]["data"]["train"].endswith("facts-final-train.jsonl")
    assert not {*made["seeds"]} & {*design.SEARCH_SEEDS}
    assert "test" not in json.dumps(made)


def test_the_recipes_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in {tier.recipe for tier in design.ALL}:
        recipe = recipes.load(path)
        assert recipe.training.global_batch_size == design.ROWS_A_STEP
        assert recipe.adapter.rank == 8


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.name)
def test_claims_are_comparisons_that_lrft_takes(claim: claims.Claim, place: Path) -> None:
    search, final = claims.parts(claim)
    path = place / "claim.yaml"
    path.write_text(json.dumps(search.made()))
    comparison = config.read(path)
    assert {variant.name for variant in comparison.variants} == {claim.run, *claim.than} | {*claim.runs}
    assert comparison.baseline == claim.baseline
    with pytest.raises(LookupError):
        final.made()
    put(place, search.stage.name, kept({run: {0.1: 2.0, 0.2: 1.0} for run in claim.runs}), claims.FOLDER)
    path.write_text(json.dumps(final.made()))
    assert all(len(variant.points) == 1 for variant in config.read(path).variants)


def test_a_claim_shows_where_its_run_is_better_on_every_seed() -> None:
    by_name = {claim.name: claim for claim in claims.CLAIMS}
    low, high = [1.0, 1.0, 1.0], [2.0, 2.0, 1.5]
    assert claims.verdict(by_name["near-full"], {"lora": high, "lora-pro": low}).startswith("**shows**")
    assert claims.verdict(by_name["near-full"], {"lora": low, "lora-pro": [0.5, 0.5, 1.0]}).startswith("**does not")
    assert claims.verdict(by_name["memorising"], {"lora": low, "mora": high}).startswith("**shows**")
    assert "a run failed" in claims.verdict(by_name["near-full"], {"lora": low})


# --- running ---


def test_a_part_is_told_to_stop_in_time() -> None:
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert running.wait(process, time.monotonic() + 0.1) == running.STOPPED == 143
    assert time.monotonic() - began < 30
    done = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert running.wait(done, None) == 3


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    facts = {"seeds": [1], "methods": [{"run": "a", "mean": 0.5}, {"run": "b", "mean": None}], "base": {"loss": 1.0}}
    text = running.compact(facts)
    assert json.loads(text) == facts == yaml.safe_load(text)
    assert len(text.splitlines()) == 8


# --- the page ---


def final(seeds: tuple[int, ...] = (2, 3, 4), **losses: list[float]) -> dict[str, Any]:
    """What is kept of final runs: losses by method; the figure is 1 - loss."""
    rows = [
        {
            "run": run,
            "methods": [run],
            "trained": 100,
            "best": {stages.RATE: 0.1},
            "tokens_per_second": 50.0 if run == "mora" else 100.0,
            "memory_gb": 1.0,
            "merge_check": "holds",
            "merge_difference": 1e-6,
            "exports_to": "PEFT LoRA",
            "mean": 1.0,
        }
        for run in losses
    ]
    judged = {
        run: {
            str(seed): {"loss": loss, "figure": 1 - loss, "general": 3.0}
            for seed, loss in zip(seeds, those, strict=True)
        }
        for run, those in losses.items()
    }
    return {
        "comparison": "night/final",
        "baseline": "lora",
        "seeds": list(seeds),
        "runs": {"finished": 3 * len(losses)},
        "failed": [],
        "methods": rows,
        "judged": judged,
        "base": {"loss": 5.0, "figure": 0.0, "general": 2.5},
        "cost": {"wall_seconds": 7200, "cpu_seconds": 3600},
        "machine": {"cpu": "a CPU", "threads": 1, "python": "3", "torch": "2", "transformers": "5", "lrft": "0"},
        "date": "2026-01-02",
    }


def test_the_page_tells_who_differs_and_what_has_not_been_run(place: Path) -> None:
    assert "**Not run yet.**" in page.page()
    facts = final(lora=[0.5, 0.6, 0.7], mora=[0.3, 0.4, 0.5001], dora=[0.5, 0.7, 0.65])
    put(place, "final-intents", facts, "night")
    text = page.page()
    assert "**Not run yet.**" not in text
    assert "| intents | mora | none | mora | none |" in text
    assert "| commands | not run | not run | not run | not run |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| mora |")]
    assert "**-0.200 (" in line
    assert "| +0.500 | 2.00 | 1.00 | holds, 1.0e-06 | PEFT LoRA |" in line
    assert "1.0 CPU hours" in text
    assert "a CPU, 1 thread" in text
    assert "Not run: `scripts/benchmark real --tier evening`." in text
    assert text.count("| not run |") >= len(claims.CLAIMS)


def test_suggestions_take_the_real_losses(place: Path) -> None:
    put(place, "final-intents", final(lora=[0.5, 1.0, 2.0], mora=[0.25, 1.0, 1.0]), "night")
    found: dict[str, dict[str, Any]] = {"mora": {"loss": {"toy": [0.5]}, "method": ["mora"]}}
    evidence.add_real_losses(found)
    assert found["mora"]["real"] == {"intents": [-0.5, 0.0, -0.5]}
    assert found["mora"]["loss"] == {"toy": [0.5]}
    assert found["lora"]["real"] == {"intents": [0.0, 0.0, 0.0]}
    assert results.best_tier() is not None


def test_the_page_is_what_the_figures_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert page.WRITTEN.read_text(encoding="utf-8") == page.page(), "run scripts/benchmark real"


def test_peers_have_rows_once_all_three_have_run() -> None:
    assert peers.section(None).count("not run") == len(peers.TOOLS)
    one = {"cpu": 10.0, "wall": 12.0, "peak_gb": 2.0}
    found = {"2": {tool: {"loss": 1.0 + at / 1000, **one} for at, tool in enumerate(peers.TOOLS)}, "3": {"lrft": one}}
    text = peers.section(found)
    assert "+0.00100" in text
    assert "| 1.0020 | +0.00200 | 10 | 12 | 2.00 |" in text


def test_middle_rates_follow_the_ratios_elsewhere() -> None:
    assert middle(BASELINE) == design.RATE
    assert middle("lora+") == pytest.approx(design.RATE * design.ratios()["lora+"])
    assert "oft" not in design.ratios()
    assert middle("oft", 1.0) == pytest.approx(registry.methods()["oft"].learning_rate / 2e-4)
    assert {*design.ratios()} <= {*registry.methods(), *registry.PRESETS}
    assert all(0.01 < ratio < 1000 for ratio in design.ratios().values())
