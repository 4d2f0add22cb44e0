"""Runs over pairs and judged answers: the reference kept or asked anew, resumed, measured again, and refused."""

from __future__ import annotations

import json
import math

import pytest
import runs
from runs import Place
from two_processes import launch

from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.loading.from_recipe import load_data
from lrft.model.weights import cache_dir
from lrft.recipe import Recipe
from lrft.verification.run import accumulation

DPO = (
    "training.objective=dpo",
    "evaluation.every=2",
    "evaluation.at_start=true",
    "training.max_steps=4",
    "training.optimizer={adamw: {eps: 1e-3}}",
)


def pairs(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of the answers of `runs.rows`."""
    made = [row["messages"] for row in runs.rows(2 * n, seed)]
    return [
        {"prompt": made[i][:1], "chosen": made[i][1:], "rejected": made[i + n][1:]}
        for i in range(n)
        if made[i][1] != made[i + n][1]
    ]


@pytest.fixture
def preferences(place: Place) -> Place:
    runs.write_rows(place.root / "train.jsonl", pairs(9))
    runs.write_rows(place.root / "validation.jsonl", pairs(4, seed=1))
    return place


def test_a_run_of_pairs_is_the_same_with_its_reference_kept_or_asked_and_when_resumed(
    preferences: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trust 48."""
    place = preferences
    straight = place.train(*DPO, "checkpoint.every=2", out="straight")
    kept = sorted(cache_dir().rglob("reference/*.safetensors"))
    assert len(kept) == 2
    kept[0].write_bytes(b"torn")  # made again
    stopped = runs.cut(straight, 2, place.root / "stopped")
    place.train(*DPO, "checkpoint.every=2", out="stopped", resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(stopped)) == []

    each = ("training.objective={dpo: {reference: each-step}}", "data.packing=false", "training.micro_batch_size=1")
    asked = place.train(*DPO[1:], *each, out="asked")
    assert runs.distance(runs.tensors(straight), runs.tensors(asked), "adapter") < 1e-4
    for kind in ("step", "eval"):
        for mine, theirs in zip(runs.records(straight, kind), runs.records(asked, kind), strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
            for record in (mine, theirs):
                record["figures"].pop("reward accuracy")  # before the first step rewards are rounding
            assert theirs["figures"] == pytest.approx(mine["figures"], rel=1e-3, abs=1e-4)
    before = runs.records(straight, "eval")[0]
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert before["figures"]["reward margin"] == pytest.approx(0, abs=1e-5)  # the reference is the base alone
    end = runs.records(straight, "eval")[-1]
    assert (end["pairs"], "perplexity" in end) == (4, False)

    capsys.readouterr()
    assert run_command(["eval", str(straight), "--json", "--no-generate"]) == 0
    said = json.loads(capsys.readouterr().out)
    best = min(runs.records(straight, "eval")[1:], key=lambda record: record["loss"])
    assert said["loss"] == pytest.approx(best["loss"], rel=1e-4)
    assert said["figures"] == pytest.approx(best["figures"], rel=1e-3, abs=1e-4)
    report = (straight / "report.md").read_text()
    assert "| step | loss | reward accuracy |" in " ".join(report.split("  "))
    assert "preference" in report

    recipe: Recipe = place.recipe(*DPO, out="straight")
    tokenizer, prepared = load_data(recipe, place.root / "base")
    assert accumulation(recipe, place.root / "base", straight / "last", prepared.train, tokenizer).holds


def test_a_run_of_judged_answers_notes_its_kl_and_says_when_labels_are_of_one_kind(place: Place) -> None:
    rows = [{**row, "label": i % 2 == 0} for i, row in enumerate(runs.rows(6))]
    runs.write_rows(place.root / "train.jsonl", rows)
    runs.write_rows(place.root / "validation.jsonl", rows[::2])
    run = place.train("training.objective=kto", "training.max_steps=2", "evaluation.every=1")
    assert runs.records(run)[0]["figures"]["KL"] == pytest.approx(0, abs=1e-5)
    assert runs.records(run)[0]["loss"] == pytest.approx(0.5, abs=1e-3)
    assert "rejected reward" not in runs.records(run, "eval")[0]["figures"]
    assert json.loads((run / "run.json").read_text())["data"]["labels"] == {"true": 3, "false": 3}  # of the train rows


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("data.train.0.format=messages",), "got messages, but training.objective: dpo takes pairs of a chosen"),
        (("data.train_on=all",), "dpo compares answers: expected assistant or last-assistant; got all"),
        (("training.objective=kto", "data.train.0.format=preference"), "training.objective: cpo takes this format"),
        (("training.objective=ipo",), "Here: {dpo: {loss: ipo}}"),
        (("training.objective={dpo: {beta: 0}}",), "beta"),
        (("training.objective={dpo: {loss: hinge, label_smoothing: 0.1}}",), "label_smoothing is only for loss"),
        (("training.objective=sppo",), "Here: {dpo: {loss: sppo_hard}}"),
        (("training.objective=rm",), "Here: reward, a reward model of pairs"),
        (("training.objective=grpo",), "answers that the model itself samples is not supported"),
        (("training.objective={dpo: {temperature: 0.1}}",), "temperature is only for loss: discopop"),
        (("training.center_rewards_coefficient=0.1",), "In lrft: training.objective: {reward: {center: ...}}"),
        (("training.max_prompt_length=10",), "data.max_length counts prompt and answer together"),
        (("training.pref_beta=0.1",), "In lrft: training.objective: {dpo: {beta: ...}}"),
    ],
)
def test_what_does_not_suit_the_objective_is_refused_by_the_recipe(
    place: Place, keys: tuple[str, ...], says: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        place.recipe("training.objective=dpo", *keys)
    assert says in str(caught.value)


def test_the_default_learning_rate_is_lower_for_preferences(place: Place) -> None:
    recipe = place.recipe("training.objective=dpo", "~training.learning_rate")
    assert recipe.training.learning_rate == pytest.approx(1e-5)
    assert "times 0.05 for dpo" in recipe.where("training.learning_rate")


@pytest.mark.parametrize(("method", "name"), [("[lora, ba-lora]", "ba-lora"), ("lora-ensemble", "lora-ensemble")])
def test_methods_that_need_the_token_loss_are_refused(preferences: Place, method: str, name: str) -> None:
    with pytest.raises(RecipeError, match=r"which training\.objective: dpo does not take up") as caught:
        preferences.train("training.objective=dpo", f"adapter.method={method}")
    assert f"Take {name} out, or train with sft" in str(caught.value)


def test_a_method_that_does_not_train_on_the_base_is_refused_beside_a_reference(place: Place) -> None:
    with pytest.raises(RecipeError) as caught:
        place.recipe("training.objective=dpo", "adapter.method=[lora, loram]")
    assert "loram trains on a pruned base and answers on the whole one" in str(caught.value)
    assert "Use another method, or training.objective: cpo, orpo, reward or simpo" in str(caught.value)
    place.recipe("training.objective=simpo", "adapter.method=[lora, loram]")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "bco_pair"])
def test_two_processes_train_on_pairs_as_one_does(preferences: Place, loss: str) -> None:
    objective = f"training.objective={{dpo: {{loss: {loss}}}}}"
    one = preferences.train(objective, *DPO[1:], out="one")
    two = launch(preferences, "two", objective, "evaluation.every=2", "training.max_steps=4")
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-4
    for mine, theirs in zip(runs.records(one), runs.records(two), strict=True):
        assert theirs["figures"] == pytest.approx(mine["figures"], rel=1e-4, abs=1e-5)
