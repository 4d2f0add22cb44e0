"""PRILoRA: ranks rise in a line with depth, keep their sum, and leave the factor alone; A is pruned by its inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cases
import pytest
import runs
import tiny
import torch
from runs import Place

import lrft
from lrft.adapters.adapter import Site
from lrft.adapters.part import Run
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


def test_without_spread_and_pruning_it_is_a_plain_lora(place: Place) -> None:
    one = runs.tensors(place.train("adapter.method=[lora, {prilora: {spread: 0.0, pruned: 0.0}}]", out="a"))
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


def test_the_least_of_each_row_become_zero_by_the_inputs_of_its_tokens_and_nothing_else() -> None:
    """Two passes of a step, one with padding, and an evaluation that does not count; then a second step."""
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": "lora", "rank": 4})
    part = Prilora(pruned=0.3, every=2, smoothing=0.75)
    run = Run(0, 10, model, attached.modules, None, 0, lambda t: t)  # type: ignore[arg-type]
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    stock, seen = tiny.make("llama"), {name: [] for name in attached.modules}  # the same, for B is zero
    for name, inputs in seen.items():
        stock.get_submodule(name).register_forward_pre_hook(lambda _, x, inputs=inputs: inputs.append(x[0].detach()))
    expected = {name: [0.0] * site.k for name, site in ((site.name, site) for site in attached.sites)}
    start = {name: adapter.A.detach().clone() for name, adapter in attached.modules.items()}
    for step in range(2):
        run.step = step
        part.before_step(run)
        for given, rows in ((mask, 1 + step), (None, 2)):
            for each in (model.train(), stock):
                each(input_ids=ids[:rows] + step, attention_mask=None if given is None else given[:rows])
        model.eval()(input_ids=ids)
        with torch.no_grad():
            model.train()(input_ids=ids)
        part.after_step(run)
        for name, inputs in seen.items():
            padded, whole = inputs.pop(0), inputs.pop(0)
            tokens = [*padded[mask[: 1 + step].bool()].tolist(), *whole.flatten(0, 1).tolist()]
            for j, n in enumerate(expected[name]):
                expected[name][j] = 0.75 * n + 0.25 * math.sqrt(sum(x[j] ** 2 for x in tokens))
        if step == 0:
            assert all(torch.equal(attached.modules[name].A, A) for name, A in start.items())
    for name, A in start.items():
        assert part.norms[name].tolist() == pytest.approx(expected[name], rel=1e-4)
        for row, found in zip(A.tolist(), attached.modules[name].A.tolist(), strict=True):
            order = sorted(range(len(row)), key=lambda j: abs(row[j]) * expected[name][j])
            zero = set(order[: math.floor(0.3 * len(row))])
            assert found == [0.0 if j in zero else row[j] for j in range(len(row))]


def test_a_run_prunes_and_what_is_pruned_trains_on(place: Place) -> None:
    def zeros(run: Path) -> list[float]:
        found = [t for n, t in runs.tensors(run).items() if "lora_A" in n and "optimizer" not in n]
        return [(A == 0).float().mean().item() for A in found]

    keys = ("adapter.method={prilora: {spread: 0.0, every: 2}}", "training.learning_rate=0.01")
    assert zeros(place.train(*keys, "training.max_steps=4", out="at")) == pytest.approx([0.5] * 14, abs=0.03)
    assert max(zeros(place.train(*keys, "training.max_steps=5", out="after"))) < 0.1


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
