"""Default learning rates: who decides, where the number is said, and that every method learns by its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cases import CASES
from runs import Place
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lrft
from lrft import recipe as recipes
from lrft import registry
from lrft.adapters import compose
from lrft.adapters.attach import rebuild_site
from lrft.adapters.part import Run
from lrft.cli import init, method_list
from lrft.compare.config import read
from lrft.errors import RecipeError
from lrft.optim.named_state import set_lr
from lrft.training.optimizer import make_optimizer
from lrft.training.run import train
from lrft.training.state import Options

STEPS = 20
LEAST = 0.01
"""share of the loss that goes in STEPS; LoRA loses 7 %"""
KEY = "training.learning_rate"


def write(folder: Path, method: Any, training: dict[str, Any] | None = None) -> Path:
    text = {"model": "m", "data": "d", "output_dir": "o", "adapter": {"method": method, "rank": 4}}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**text, **({} if training is None else {"training": training})}))
    return path


def rate_of(folder: Path, method: Any) -> tuple[float, str]:
    """The rate of a recipe that gives none, and whose it is."""
    recipe = recipes.load(write(folder, method))
    return recipe.training.learning_rate, recipe.where(KEY).removeprefix("default of ").split(",")[0]


# --- who decides ---


def test_every_method_that_builds_declares_a_rate_and_where_it_is_from() -> None:
    for card in registry.methods().values():
        assert bool(card.learning_rate) == bool(card.rate_source), card.name
        assert card.learning_rate or not card.builds, card.name


@pytest.mark.parametrize(
    ("method", "owner"),
    [
        ("vera", "vera"),
        ({"vera": {"d_initial": 0.2}}, "vera"),
        (["dora", "vera"], "vera"),  # a part that declares none
        ("dora", "lora"),
        (["milora", "lora"], "milora"),  # a part before its method, though its rate is higher
        ("galore", "galore"),
        (["lora-dropout", "milora"], "milora"),  # of two parts the lower
        (["roselora", "rslora", "lora+"], "lora+"),
        ("dct-adamw", "dct-adamw"),  # a preset before its entries
        (["remora"], "remora"),
        ("asymmetry", "lora-fa"),  # a preset that declares none
        (["cola", "lora+"], "lora+"),
    ],
)
def test_whose_rate_it_is(method: Any, owner: str, tmp_path: Path) -> None:
    declared = registry.PRESETS.get(owner) or registry.methods()[owner]
    assert rate_of(tmp_path, method) == (declared.learning_rate, owner)


def test_without_an_adapter_section_it_is_loras(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\ndata: d\noutput_dir: o\n")
    assert recipes.load(path).training.learning_rate == registry.methods()["lora"].learning_rate


@pytest.mark.parametrize("given", [1e-3, 2e-4, 5e-3])  # the common number and the method's own, too
def test_a_given_rate_holds(given: float, tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, "vera", {"learning_rate": given}))
    assert recipe.training.learning_rate == given
    assert "recipe.yaml" in recipe.where(KEY)
    argument = recipes.load(write(tmp_path, "vera"), [f"{KEY}={given}"])
    assert (argument.training.learning_rate, argument.where(KEY)) == (given, "argument 1")


def test_null_returns_to_the_methods_rate(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, "vera", {"learning_rate": 0.1}), [f"{KEY}=null"])
    assert recipe.training.learning_rate == registry.methods()["vera"].learning_rate


def test_in_a_comparison_each_method_has_its_own(tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text(
        "recipe: {model: m, data: {train: a.jsonl, validation: b.jsonl}}\n"
        "runs: {lora: null, vera: null, quick: {adapter.method: vera, training.learning_rate: 0.1}}\n"
        "seeds: [1]\noutput_dir: out\n"
    )
    variants = read(path).variants
    found = [one.recipe(one.points[0], seed=1, output=tmp_path)[0].training.learning_rate for one in variants]
    assert found == [2e-4, 5e-3, 0.1]


def test_an_overridden_method_brings_its_own_rate(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, "vera", {"epochs": 2}), ["adapter.method=c3a"])
    assert recipe.training.learning_rate == registry.methods()["c3a"].learning_rate


@pytest.mark.parametrize("method", ["vear", ["lora", 3], [], {"lora": 3}, [["vera"]], 7, {"vera": {}, "dora": {}}])
def test_a_method_that_is_wrong_is_refused_as_ever(method: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.method"):
        recipes.load(write(tmp_path, method))


@pytest.mark.parametrize("training", [7, "fast", [1]])
def test_a_training_section_that_is_wrong_is_refused_as_ever(training: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="training"):
        recipes.load(write(tmp_path, "vera", training))


def test_a_rate_without_its_origin_is_a_bug_that_names_the_file(tmp_path: Path) -> None:
    text = (registry.FOLDER / "vera.py").read_text()
    lines = [line for line in text.splitlines() if "rate_source" not in line]
    (tmp_path / "vera.py").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"vera\.py.*learning_rate and rate_source must be declared together"):
        registry.read_card(registry.Source(tmp_path / "vera.py", "lrft.methods.vera", ""))


# --- where it is said ---


def test_the_resolved_recipe_says_the_number_and_its_origin_and_keeps_it(tmp_path: Path) -> None:
    vera = registry.methods()["vera"]
    recipe = recipes.load(write(tmp_path, "vera"))
    text = recipes.resolved(recipe)
    assert f"  learning_rate: 0.005  # default of vera, {vera.rate_source}\n" in text
    (tmp_path / "resolved.yaml").write_text(text)
    assert recipes.load(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize("word", ["vera", "dora", "galore", "remora", "cola"])
def test_the_lists_say_it(word: str) -> None:
    rate = registry.default_rate([word])
    said = method_list.render("show", word, kind=None, as_json=False)
    assert f"rate       {rate.value:g}   " in said
    assert (rate.source if rate.owner == word else f"default of {rate.owner}") in said
    (facts,) = json.loads(method_list.render("show", word, kind=None, as_json=True))
    assert (facts["learning_rate"], facts["rate_source"]) == (rate.value, rate.source)


def test_a_new_recipe_has_the_rate_of_its_method(tmp_path: Path) -> None:
    for method in ("vera", "galore", "lora"):
        path = tmp_path / f"{method}.yaml"
        init.write(path, model="m", data="data: d", method=method, full=False)
        assert recipes.load(path).training.learning_rate == registry.default_rate([method]).value


def test_the_start_of_a_run_says_where_its_rate_is_from(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("adapter.method=vera", "training.max_steps=1")
    for rate, times in (("null", 1), ("0.1", 0)):
        train(place.recipe(*keys, f"{KEY}={rate}", out=rate), Options(source=place.root / "recipe.yaml"))
        said = "".join(capsys.readouterr())
        assert said.count("the learning rate is the default of vera, docs/benchmark.md") == times


# --- and that it is one to learn with ---


def sharp_model() -> PreTrainedModel:
    """One block whose layers keep the size of what they are given, under a head that makes the loss large: so a few
    steps at rates for real models are seen."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 1.0 if "embed" in name or "lm_head" in name else p.shape[1] ** -0.5)
    return model


def losses(recipe: recipes.Recipe, words: Any) -> tuple[float, float]:
    """Before and after STEPS on one batch, with the optimiser, the rates and the hooks of a run."""
    model, ids = sharp_model(), tiny.tokens(rows=1, length=8, seed=3)
    attached = lrft.attach(model, {"method": words, "rank": 4}, batches=[{"input_ids": ids, "labels": ids}])
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    optimizer = make_optimizer(recipe, attached, composition, lambda t: t)
    lr = recipe.training.learning_rate

    def loss() -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    def held_out() -> float:
        with torch.no_grad():
            return loss().item()

    found = [held_out()]
    for step in range(STEPS):
        run = Run(
            step, STEPS, model, attached.modules, optimizer, 0, lambda t: t, learning_rate=lr, held_out=held_out,
            fresh=lambda site, n: rebuild_site(site, n, composition=composition, seed=0),
        )  # fmt: skip
        set_lr(optimizer, lr, lambda site, run=run: composition.rate(run, site))
        optimizer.zero_grad()
        for part in composition.parts:
            part.before_step(run)
        terms = [loss(), *(term for part in composition.parts if (term := part.loss(run)) is not None)]
        torch.stack(terms).sum().backward()
        for part in composition.parts:
            part.after_backward(run)
        optimizer.step()
        for part in composition.parts:
            part.after_step(run)
    found.append(held_out())
    return found[0], found[-1]


def one_for_each() -> list[str]:
    """The first case of each method, part and preset."""
    first: dict[str, str] = {}
    for case, (words, _) in CASES.items():
        listed = words if isinstance(words, list) else [words]
        for word in listed:
            first.setdefault(word if isinstance(word, str) else next(iter(word)), case)
    return list(dict.fromkeys(first.values()))


def test_a_case_for_each_is_found() -> None:
    named = {word for case in one_for_each() for word in json.dumps(CASES[case][0]).replace('"', " ").split()}
    assert named >= {*registry.methods(), *registry.PRESETS} - {"asymmetry", "cola"}  # these are lora-fa and relora


# What a method needs here: the size of the heads, a token that the row has.
HERE: dict[str, Any] = {"lorta": {"lorta": {"head_dim": 16}}, "alora": {"alora": {"invocation_tokens": [51]}}}


@pytest.mark.parametrize(
    "case", [case for case in one_for_each() if case != "eigenlorax"]
)  # wants adapters of its base
def test_every_method_learns_by_its_default_rate(case: str, tmp_path: Path) -> None:
    words = HERE.get(case, CASES[case][0])
    before, after = losses(recipes.load(write(tmp_path, words)), words)
    assert after < (1 - LEAST) * before
