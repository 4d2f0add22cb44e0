"""PRILoRA's ranks: they rise in a line with depth, keep their sum, and leave the factor alone."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import runs
import tiny
import torch
from runs import Place

import lrft
from lrft.adapters.adapter import Site
from lrft.errors import RecipeError
from lrft.methods.prilora import Prilora


def sites(layers: int, rank: int = 8) -> list[Site]:
    return [Site(f"model.layers.{i}.{word}", 30, 20, rank, 2.0, i) for i in range(layers) for word in ("q", "up")]


def ranks(layers: int, rank: int = 8, spread: float = 0.5) -> list[int]:
    return [site.rank for site in Prilora(spread).assign_ranks(sites(layers, rank))[::2]]


def test_the_papers_ranks() -> None:
    assert ranks(12) == [round(4 + 8 * i / 11) for i in range(12)] == [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]
    assert ranks(3) == [4, 8, 12]
    assert ranks(2) == [4, 12]


@pytest.mark.parametrize("layers", [2, 3, 7, 12, 32])
@pytest.mark.parametrize("rank", [1, 2, 8, 15, 16])
@pytest.mark.parametrize("spread", [0.0, 0.25, 0.5, 0.9])
def test_sum_ends_and_order(layers: int, rank: int, spread: float) -> None:
    found = ranks(layers, rank, spread)
    assert found == sorted(found)
    assert min(found) >= 1
    first, last = rank * (1 - spread), rank * (1 + spread)
    assert abs(found[-1] - last) <= 0.5
    assert abs(found[0] - max(1.0, first)) <= 0.5
    assert abs(sum(found) - layers * (first + last) / 2) <= layers / 2 + layers * max(0, 1 - first)


def test_every_target_of_a_block_has_its_rank_and_all_keep_the_factor() -> None:
    planned = Prilora().assign_ranks(sites(5))
    for site in planned:
        assert site.rank == ranks(5)[site.depth or 0]
        assert site.scale == 2.0


def test_overrides_are_scaled_too_and_what_lies_outside_the_blocks_is_left() -> None:
    attached = lrft.attach(
        tiny.make("llama"),
        {
            "method": "prilora",
            "rank": 4,
            "alpha": 8.0,
            "exclude_modules": [],
            "target_modules": ["all-linear", "lm_head"],
            "overrides": {"down_proj": {"rank": 6, "alpha": 6.0}},
        },
    )
    for site in attached.sites:
        word = site.name.rsplit(".", 1)[-1]
        expected = {None: 4, 0: 3 if word == "down_proj" else 2, 1: 9 if word == "down_proj" else 6}[site.depth]
        assert site.rank == expected, site.name
        assert site.scale == (1.0 if word == "down_proj" else 2.0)
        assert attached.modules[site.name].A.shape == (expected, site.k)


def test_one_block_or_none_keeps_the_rank() -> None:
    assert ranks(1) == [8]
    loose = [Site("a", 5, 6, 3), Site("b", 5, 6, 3)]
    assert Prilora().assign_ranks(loose) == loose
    assert Prilora().assign_ranks([]) == []


def test_depth_counts_among_the_adapted_blocks() -> None:
    assert [site.rank for site in Prilora().assign_ranks(sites(9)[8:14])] == [4, 4, 8, 8, 12, 12]


def test_without_spread_it_is_a_plain_lora(place: Place) -> None:
    one = runs.tensors(place.train("adapter.method=[lora, {prilora: {spread: 0.0}}]", out="a"))
    two = runs.tensors(place.train("adapter.method=lora", out="b"))
    assert runs.differing(one, two) == []


def test_a_run_trains_the_planned_ranks_and_resumes_exactly(place: Place) -> None:
    keys = ("adapter.method=prilora", "checkpoint.every=1", "checkpoint.keep=99")
    whole = place.train(*keys)
    shapes = {n: t.shape[0] for n, t in runs.tensors(whole).items() if "lora_A" in n and "optimizer" not in n}
    assert {rank for n, rank in shapes.items() if ".layers.0." in n} == {2}
    assert {rank for n, rank in shapes.items() if ".layers.1." in n} == {6}
    part = runs.cut(whole, 3, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_stock_peft_reads_the_ranks(place: Place) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = place.train("adapter.method=[prilora, rslora]")
    base = place.root / "base"
    ours, theirs = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(2))
    lrft.load_adapter(ours, run / "last")
    theirs = PeftModel.from_pretrained(theirs, run / "last")
    assert torch.allclose(tiny.logits(ours, tiny.tokens()), tiny.logits(theirs, tiny.tokens()), atol=1e-5)


@pytest.mark.parametrize("words", ["prilora", ["prilora", "dora"], ["pissa", "prilora", "lora+"]])
@pytest.mark.parametrize("model_name", tiny.MODELS)
def test_the_default_keeps_what_every_method_keeps(
    words: Any, model_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case of test_methods.py has no spread: there the ranks are given."""
    monkeypatch.setitem(cases.CASES, "spread", (words, cases.pair))
    cases.check_fresh_equals_base("spread", model_name)
    cases.check_fast_path_equals_definition("spread", model_name)
    cases.check_gradients_reach_every_trained_tensor_by_the_second_step("spread", model_name)


def test_who_else_decides_on_ranks_is_refused() -> None:
    with pytest.raises(RecipeError, match="prilora requires a pair of factors A and B; mora has no such pair"):
        lrft.attach(tiny.make("llama"), {"method": ["mora", "prilora"]})
    with pytest.raises(RecipeError, match="both set the ranks"):
        lrft.attach(tiny.make("llama"), {"method": ["adalora", "prilora"]})
