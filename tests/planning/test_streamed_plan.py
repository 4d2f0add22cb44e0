"""The forecast of a streamed base: what it copies and holds, against blocks that really are streamed."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from runs import Place
from safetensors.torch import load_file, save_file

from lrft.loading.from_recipe import load_data
from lrft.model import streamed
from lrft.model.layers import blocks_of
from lrft.planning import render, speed, streaming
from lrft.planning.communication import Memory
from lrft.planning.plan import Plan, make_plan
from lrft.planning.streaming import Link

BLOCKS = 6


def test_copied_bytes_are_those_of_blocks_that_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama(layers=BLOCKS).requires_grad_(False).bfloat16()
    found = streamed.stream(model, torch.device("cpu"), torch.float32, small=0)
    moved: list[int] = []
    come = streamed.Block.come
    monkeypatch.setattr(streamed.Block, "come", lambda block: (moved.append(block.size), come(block)))
    ids = tiny.tokens()
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_())

    def passed(*, backward: bool) -> int:
        moved.clear()
        with torch.set_grad_enabled(backward):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if backward:
            loss.backward()
        return sum(moved)

    passed(backward=True)
    assert passed(backward=True) == streaming.copied(found.size, BLOCKS, both=1)
    passed(backward=False)
    assert passed(backward=False) == streaming.copied(found.size, BLOCKS, both=0, forward=1)


def test_time_is_that_of_the_slower_of_computation_and_link() -> None:
    link = Link("a link", 100.0, behind=True)
    whole = Memory(0, 1000, 1, 1, 1, 1, 1, 1)
    for compute, seconds in ((1.0, 16.0), (20.0, 20.0)):
        found = streaming.placements(whole, 10, 0, compute, link, both=1, forward=0)
        assert found["resident"].seconds == compute
        assert found["streamed"].seconds == seconds
        assert found["streamed"].copied == 1600
        assert found["streamed"].memory.weights == 200
    # Sixteen seconds of copies are hidden behind as many tokens of one second each.
    assert streaming.tokens_at_par(1000, 10, 1.0, link) == 16
    assert streaming.seconds(20.0, 1600, Link("a CPU", 100.0, behind=False)) == 36
    assert math.isinf(streaming.tokens_at_par(1000, 10, 1.0, Link("a CPU", 100.0, behind=False)))
    assert list(streaming.placements(whole, 2, 0, 1.0, link, both=1, forward=0)) == ["resident"]


def planned(place: Place, *keys: str) -> Plan:
    recipe = place.recipe(*keys)
    _, prepared = load_data(recipe, place.root / "base")
    return make_plan(recipe, place.root / "base", prepared, 1)


def test_a_plan_has_both_placements_and_takes_that_of_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEASURED_SECONDS", 0.01)
    base = place.root / "base"
    plain = planned(place, "model.placement=streamed")
    assert list(plain.placements) == ["resident"]  # float32 in the files: there is nothing to copy
    tiny.save(tiny.llama(layers=BLOCKS, vocabulary=len(load_data(place.recipe(), base)[0])).bfloat16(), base)
    model = tiny.llama(layers=BLOCKS, vocabulary=len(load_data(place.recipe(), base)[0]))
    within = sum(4 * p.numel() for block in blocks_of(model) for p in block.parameters())
    outside = sum(4 * p.numel() for p in model.parameters()) - within
    for where, weights in (("streamed", outside + within // BLOCKS * 2), ("resident", outside + within)):
        made = planned(place, f"model.placement={where}", "training.gradient_checkpointing=full")
        assert made.placement == where
        assert made.memory["one device"] == made.placements[where].memory
        assert made.memory["one device"].weights == weights
        assert made.time.steps == pytest.approx(made.placements[where].seconds * made.steps)
        # Four rows of a step in passes of two.
        assert made.placements["streamed"].copied == 2 * streaming.copied(within, BLOCKS, both=1)
        lines = dict(render.table_rows(made, place.recipe()))["placement"]
        assert lines[0].startswith("resident")
        assert f"has it {where}" in lines[-1]
        assert json.dumps(render.to_dict(made))


def test_files_of_several_dtypes_leave_a_cpu_nothing_to_stream(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEASURED_SECONDS", 0.01)
    weights = load_file(place.root / "base" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()
    save_file(weights, place.root / "base" / "model.safetensors", {"format": "pt"})
    assert list(planned(place).placements) == ["resident"]
