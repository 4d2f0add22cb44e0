"""The arithmetic of distributed training, against rings and models that are really gone through; and its page."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import scaling
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import lrft
from lrft import files, scale
from lrft.core import checkpointing
from lrft.scale import Links, Memory

ROOT = Path(scaling.__file__).parents[1]
SIZES = files.read_json(ROOT / "docs" / "scale.json")
WHOLE = Memory(0, weights=3200, adapter=64, gradients=64, optimizer=128, activations=100, logits=10, moment=20)


# --- bytes ---


def gathered(parts: list[dict[int, int]]) -> list[int]:
    """Bytes that each device sends until all have all: in each round, what came last goes on to the next device.

    parts: of each device, {number: bytes} of the one that it holds.
    """
    n, sends, last = len(parts), [0] * len(parts), [next(iter(held)) for held in parts]
    while any(len(held) < n for held in parts):
        moving = [(i, last[i], parts[i][last[i]]) for i in range(n)]
        for i, number, size in moving:
            sends[i] += size
            parts[(i + 1) % n][number] = size
            last[(i + 1) % n] = number
    return sends


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_what_is_sent_is_what_goes_round_a_ring(devices: int) -> None:
    def gathering(size: int) -> float:
        (each,) = set(gathered([{i: size // devices} for i in range(devices)]))
        return each

    found = scale.sent(WHOLE, 3, devices)
    summed = 2 * gathering(WHOLE.gradients)  # scattered sums go round as often as what is gathered
    assert found["ddp"] == found["zero2"] == summed
    assert found["fsdp"] == summed + 3 * 2 * gathering(WHOLE.weights)
    assert found["zero3"] == summed / 2 + 3 * 2 * (gathering(WHOLE.weights) + gathering(WHOLE.adapter))
    assert scale.sent(WHOLE, 3, 1) == {}


@pytest.mark.parametrize(("nodes", "local"), [(2, 4), (4, 2), (3, 1)])
def test_each_adapter_carries_its_part_of_what_leaves_the_node(nodes: int, local: int) -> None:
    """As many rings as adapters, each with its part of the data, each leaving a node at another device."""
    devices, size = nodes * local, 2400.0
    through = [0.0] * devices
    for ring in range(local):
        order = [node * local + (ring + 1 + i) % local for node in range(nodes) for i in range(local)]
        for at, device in enumerate(order):
            if order[(at + 1) % devices] // local != device // local:
                through[device] += size / local
    links = Links(inside=math.inf, between=1.0, reached=1.0, hop_inside=0.0, hop_between=0.0)
    assert set(through) == {scale.sending_seconds(size, 5, devices, nodes, links)}


def test_time_is_that_of_the_slower_link_and_of_the_hops() -> None:
    links = Links(inside=100.0, between=10.0, reached=0.5, hop_inside=1.0, hop_between=7.0)
    assert scale.sending_seconds(1000, 0, 8, 1, links) == 20
    assert scale.sending_seconds(1000, 0, 8, 2, links) == 50, "a quarter through each adapter, ten times as slow"
    assert scale.sending_seconds(1000, 0, 32, 2, links) == 20, "sixteen adapters are faster than the node inside"
    assert scale.sending_seconds(0, 3, 8, 2, links) == 3 * (6 * 1 + 1 * 7)
    assert scale.sending_seconds(1000, 3, 1, 1, links) == 0


def test_rings_are_counted_by_buckets_and_blocks() -> None:
    one = replace(WHOLE, gradients=scale.BUCKET)
    more = replace(WHOLE, gradients=scale.BUCKET + 1)
    assert scale.rounds(one, 2, 32) == {"ddp": 2, "zero2": 2, "fsdp": 2 + 2 * 2 * 32, "zero3": 32 + 2 * 2 * 32}
    assert scale.rounds(more, 2, 32)["ddp"] == 4


# --- memory ---


@pytest.mark.parametrize("devices", [2, 4, 16])
def test_a_device_holds_its_part_of_each_block_and_what_is_gathered(devices: int) -> None:
    """Each block of 16 is cut over the devices; two of them, or the gradients of one, are whole."""
    blocks = 16

    def held(size: int, whole: int) -> float:
        each = size / blocks
        return min(size, sum(each / devices for _ in range(blocks)) + whole * each)

    found = scale.over_devices(WHOLE, blocks, devices)
    assert found["ddp"] == WHOLE
    assert found["fsdp"] == replace(WHOLE, weights=int(held(3200, 2)))
    assert found["zero2"] == replace(WHOLE, gradients=int(held(64, 1)), optimizer=128 // devices)
    assert found["zero3"] == replace(found["zero2"], weights=int(held(3200, 2)), adapter=int(held(64, 2)))
    assert [scale.over_devices(WHOLE, 1, 2)["fsdp"].weights] == [3200], "a model of one block is gathered whole"
    assert scale.over_devices(WHOLE, blocks, 1) == {"one device": WHOLE}


def test_nf4_takes_what_bitsandbytes_takes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    numbers = 256 * 64 * 64
    weight = torch.randn(1024, numbers // 1024)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    second = state.state2.absmax
    kept = sum(t.numel() * t.element_size() for t in (packed, state.absmax, second))
    assert scale.nf4_bytes(numbers) == pytest.approx(kept, rel=1e-3)


# --- time ---


def test_what_is_hidden_is_waited_for_where_it_takes_longer() -> None:
    assert scale.efficiency(4.0, 3.0) == 1.0
    assert scale.efficiency(4.0, 8.0) == 0.5
    assert scale.efficiency(4.0, 4.0, 0.0) == 0.5
    assert scale.efficiency(4.0, 4.0, 0.5) == 4 / 6
    assert scale.efficiency(4.0, 0.0, 0.0) == 1.0


@pytest.mark.parametrize("kind", ["none", "light", "medium", "full", "everything"])
def test_operations_are_those_that_torch_counts(kind: str) -> None:
    """Below adapters of rank 1, by strength of checkpointing; and with every weight trained, without."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).train()
    matrix = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    if kind != "everything":
        lrft.attach(model, {"method": "lora", "rank": 1})
    if kind in ("light", "medium", "full"):
        checkpointing.checkpoint(model, kind)
    trained = sum(p.numel() for p in model.get_decoder().parameters() if p.requires_grad and p.ndim > 1)
    embedded = torch.randn(1, 8, 128, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded).logits.sum().backward()
    wanted = scale.operations(8, matrix, trained, "none" if kind == "everything" else kind)
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.05)


# --- the choice ---


def sized(total: int) -> Memory:
    return Memory(0, total, 0, 0, 0, 0, 0, 0)


def test_the_plainest_of_the_fastest_that_fit_is_chosen() -> None:
    memory = {"ddp": sized(90), "zero2": sized(70), "fsdp": sized(40), "zero3": sized(30)}
    same = dict.fromkeys(memory, 1.0)
    assert scale.best(memory, same, limit=100) == "ddp"
    assert scale.best(memory, same, limit=80) == "fsdp"
    assert scale.best(memory, same | {"zero2": 2.0}, limit=80) == "zero2"
    assert scale.best(memory, same, limit=30) == "zero3"
    assert scale.best(memory, same, limit=29) is None


# --- the page ---


def test_the_page_is_what_the_command_writes() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert scaling.page(page, SIZES) == page, "docs/scale.md is stale: run scripts/scale"
    with pytest.raises(ValueError, match="0 places for choices"):
        scaling.page(page.replace("choices:", "choice:"), SIZES)


def test_the_picture_shows_the_figures_of_the_page(tmp_path: Path) -> None:
    shown = re.findall(r">([\d,.]+)</text>", (ROOT / "docs" / "scale.svg").read_text(encoding="utf-8"))
    wanted = [scaling.gb(memory.total) for model in SIZES for _, memory in scaling.bars(SIZES, model)]
    assert [number for number in shown if number in wanted] == wanted, "docs/scale.svg is stale: run scripts/scale"
    scaling.draw(SIZES, tmp_path / "again.svg")
    again = (tmp_path / "again.svg").read_text(encoding="utf-8")
    assert re.findall(r">([\d,.]+)</text>", again) == shown


def test_sizes_are_the_published_ones() -> None:
    """Parameters of the published checkpoints, and of LoRA by hand: rank times inputs and outputs."""
    published = {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800}
    assert {name: size["parameters"] for name, size in SIZES.items()} == published
    for name, (width, inner, blocks, heads) in scaling.SHAPES.items():
        keys = 8 * width // heads
        ends = [(width, width), (width, keys), (width, keys), (width, width), (width, inner), (width, inner)]
        each = sum(a + b for a, b in [*ends, (inner, width)])
        assert SIZES[name]["lora"] == 16 * blocks * each
        assert SIZES[name]["linear_in_blocks"] == blocks * sum(a * b for a, b in [*ends, (inner, width)])
        assert SIZES[name]["linear"] == SIZES[name]["linear_in_blocks"] + 128256 * width


@pytest.mark.slow
def test_sizes_are_counted_as_they_stand() -> None:
    assert scaling.sizes("8B") == SIZES["8B"]


def test_what_the_text_says_of_the_figures_holds() -> None:
    """The sentences of docs/scale.md and recipes/cluster that carry numbers of their own."""
    small, large = SIZES["8B"], SIZES["405B"]
    for size in SIZES.values():
        lora, full = (scaling.whole(size, base) for base in ("bf16", "full"))
        assert lora.gradients / full.gradients < 0.011
        devices = scale.over_devices(lora, size["blocks"], 64)
        assert devices["zero2"].total > 0.97 * devices["ddp"].total
    held = scaling.whole(large, "bf16")
    assert 9.5e9 < held.adapter + held.gradients + held.optimizer < 10.5e9
    eight = scaling.cases("405B", large, "nf4", 8)["fsdp"].memory
    assert eight.total > scale.H100_MEMORY > replace(eight, activations=eight.activations // 2).total
    assert scaling.whole(small, "bf16", "none").total < scale.H100_MEMORY
    assert 42.5e9 < scaling.whole(small, "bf16", "light").total < 43.5e9
    assert 140.5e9 < scaling.whole(SIZES["70B"], "bf16").weights < 141.5e9
    for width, blocks, numbers, share in ((4096, 32, small["linear"], 0.07), (16384, 126, large["linear"], 0.02)):
        assert 2 * width * 4096 * blocks / (2 * numbers) == pytest.approx(share, abs=0.005)  # half of all pairs
