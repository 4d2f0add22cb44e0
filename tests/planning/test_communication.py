"""The arithmetic of distributed training, against rings and models that are really gone through; and its page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scaling_tables import tables
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import lrft
from lrft.adapters import gradient_checkpointing
from lrft.distributed import fsdp, sizes
from lrft.planning import communication
from lrft.planning.communication import Links, Memory, Ring
from lrft.utils import files

ROOT = Path(tables.__file__).parents[2]
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


def gathering(size: int, devices: int) -> int:
    """Bytes that each of the devices sends until all have `size` bytes, of which each has its part."""
    (each,) = set(gathered([{i: size // devices} for i in range(devices)]))
    return each


@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (8, 1), (8, 2), (8, 4)])
def test_what_is_sent_is_what_goes_round_a_ring(devices: int, nodes: int) -> None:
    """Scattered sums go round as often as what is gathered. What is outside of the blocks is never gathered."""
    outside, inside = 640, WHOLE.weights - 640
    summed = 2 * gathering(WHOLE.gradients, devices)
    found = {
        name: communication.sent(rings)
        for name, rings in communication.rings(WHOLE, 3, 16, outside, devices, nodes).items()
    }
    # zero2: in each of three passes half of a sum, and what each device has made of its part is gathered.
    scattered = gathering(WHOLE.gradients, devices)
    wanted = {
        "ddp": summed,
        "zero2": 3 * scattered + scattered,
        "fsdp": summed + 3 * 2 * gathering(inside, devices // nodes),
    }
    every = {"fsdp over all": summed + 3 * 2 * gathering(inside, devices)}
    assert found == wanted | (every if nodes > 1 else {})
    for rings in communication.rings(WHOLE, 3, 16, outside, devices, nodes).values():
        assert (rings[-1].devices, rings[-1].nodes) == (devices, nodes), "gradients are those of all"


def test_blocks_are_gathered_inside_a_node_or_over_all() -> None:
    found = communication.rings(WHOLE, 1, 16, 0, 32, 4)
    assert {name: (rings[0].devices, rings[0].nodes) for name, rings in found.items() if len(rings) > 1} == {
        "fsdp": (8, 1),
        "fsdp over all": (32, 4),
    }
    alone = communication.rings(WHOLE, 1, 16, 0, 4, 4)
    assert list(alone) == ["ddp", "zero2", "fsdp"], "nodes of one device have nothing to divide over inside"
    assert (alone["fsdp"][0].devices, alone["fsdp"][0].nodes) == (4, 4)
    assert communication.rings(WHOLE, 3, 16, 0, 1, 1) == {"one device": ()}
    assert list(communication.rings(WHOLE, 1, 0, 0, 8, 2)) == ["ddp", "zero2"], "without blocks it cannot be divided"


def test_deepspeed_sends_what_goes_round_a_ring() -> None:
    found = tables.deepspeed_rings(WHOLE, 3, 16, 8, 2)
    summed = 2 * gathering(WHOLE.gradients, 8)
    both = gathering(WHOLE.weights, 8) + gathering(WHOLE.adapter, 8)
    assert communication.sent(found["zero3"]) == summed / 2 + 3 * 2 * both
    assert sum(ring.times for ring in found["zero3"]) == 16 + 3 * 2 * 16


class Gathered(TorchDispatchMode):
    """Bytes of every gathering inside, once all have them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if "allgather" in str(function):
            whole = arguments[0]
            self.bytes.append(whole.numel() * whole.element_size())
        return function(*arguments, **(named or {}))


@pytest.fixture
def one_of_eight(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first of eight processes, four on each node, whose exchanges do nothing."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["none", "medium", "full"])
@pytest.mark.parametrize(("over", "name", "devices"), [("node", "fsdp", 4), ("all", "fsdp over all", 8)])
def test_a_divided_model_holds_and_gathers_what_is_calculated(
    one_of_eight: None, over: str, name: str, devices: int, kind: str
) -> None:
    """torch's own: parts of parameters that are there, gatherings that are called for."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape)).requires_grad_(False)
    weights = sum(4 * p.numel() for p in model.parameters())
    outside = sum(4 * p.numel() for n, p in model.named_parameters() if ".layers." not in n)
    fsdp.shard(model, fsdp.mesh_over("cpu", 8, over))
    lrft.attach(model, {"method": "lora", "rank": 1})
    model.train()
    if kind != "none":
        gradient_checkpointing.checkpoint(model, kind)
    with Gathered() as seen:
        for _ in range(2):
            model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits.sum().backward()
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters() if not p.requires_grad]
    held = sum(4 * part.numel() for part in parts)
    whole = replace(WHOLE, weights=weights)
    two_blocks = 2 * (weights - outside) // 6
    assert communication.over_devices(whole, 6, outside, 8, 2)[name].weights == held + two_blocks
    ring = communication.rings(whole, 2, 6, outside, 8, 2)[name][0]
    assert ring.times == len(seen.bytes)
    assert ring.size == sum(seen.bytes) * (devices - 1) / devices
    assert ring.devices == devices


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
    assert set(through) == {Ring(size, 5, devices, nodes).seconds(links)}


def test_time_is_that_of_the_slower_link_and_of_the_hops() -> None:
    links = Links(inside=100.0, between=10.0, reached=0.5, hop_inside=1.0, hop_between=7.0)
    assert Ring(1000, 0, 8, 1).seconds(links) == 20
    assert Ring(1000, 0, 8, 2).seconds(links) == 50, "a quarter through each adapter, ten times as slow"
    assert Ring(1000, 0, 32, 2).seconds(links) == 20, "sixteen adapters are faster than the node inside"
    assert Ring(0, 3, 8, 2).seconds(links) == 3 * (6 * 1 + 1 * 7)


def test_rings_are_counted_by_messages_and_blocks() -> None:
    def times(gradients: int, name: str) -> list[int]:
        return [ring.times for ring in communication.rings(replace(WHOLE, gradients=gradients), 2, 32, 0, 8, 1)[name]]

    assert [times(sizes.BUCKET + more, "ddp") for more in (0, 1)] == [[2], [4]]
    assert [times(sizes.MESSAGE + more, "fsdp") for more in (0, 1)] == [[2 * 2 * 32, 2], [2 * 2 * 32, 4]]


def test_messages_are_as_many_as_are_sent() -> None:
    parameters = [nn.Parameter(torch.empty(2**20, device="meta")) for _ in range(3 * 16 + 1)]
    size = sum(4 * p.numel() for p in parameters)
    sent = len(list(fsdp.in_messages(parameters)))
    assert 2 * sent == pytest.approx(communication.summing(size, sizes.MESSAGE, 8, 1).times, abs=2)


def test_seconds_add_up_and_the_sum_after_the_backward_pass_is_not_hidden() -> None:
    found = communication.rings(replace(WHOLE, gradients=10**9), 2, 16, 0, 8, 2)
    for name, rings in found.items():
        assert communication.exchange(rings) == pytest.approx(sum(ring.seconds() for ring in rings))
        assert communication.alone(rings) == (0 if name == "ddp" else rings[-1].seconds())


def test_a_copy_is_that_of_a_node_or_of_all() -> None:
    assert [sizes.copy_size(8, 4, over) for over in ("node", "all")] == [4, 8]
    assert sizes.copy_size(8, 1, "node") == sizes.copy_size(8, 8, "node") == 8
    assert sizes.copy_size(6, 4, "all") == 6
    with pytest.raises(ValueError, match="6 processes on nodes of 4 each"):
        sizes.copy_size(6, 4, "node")


# --- memory ---


@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (4, 1), (16, 1), (16, 4)])
def test_a_device_holds_its_part_of_each_block_and_what_is_gathered(devices: int, nodes: int) -> None:
    """Each block of 16 is cut over the devices; two of them, or the gradients of one, are whole. The rest is."""
    blocks, outside = 16, 640

    def held(size: int, whole: int, over: int) -> float:
        each = size / blocks
        return min(size, sum(each / over for _ in range(blocks)) + whole * each)

    def weights(over: int) -> Memory:
        return replace(WHOLE, weights=outside + int(held(3200 - outside, 2, over)))

    found = communication.over_devices(WHOLE, blocks, outside, devices, nodes)
    every = {"fsdp over all": weights(devices)} if nodes > 1 else {}
    # A message holds all of these few gradients; the optimiser's own copy of trainable parameters is sharded, too.
    own = replace(WHOLE, gradients=64 + 64 // devices, optimizer=(64 + 128) // devices)
    assert found == {"ddp": WHOLE, "zero2": own, "fsdp": weights(devices // nodes)} | every
    zero = tables.deepspeed_memory(WHOLE, blocks, devices)
    assert zero["zero2"] == replace(WHOLE, gradients=64 + 64 // devices, optimizer=128 // devices)
    assert zero["zero3"] == replace(
        zero["zero2"], weights=int(held(3200, 2, devices)), adapter=int(held(64, 2, devices))
    )


def test_what_cannot_be_divided_is_whole() -> None:
    assert communication.over_devices(WHOLE, 1, 0, 2, 1)["fsdp"].weights == 3200, (
        "a model of one block is gathered whole"
    )
    assert list(communication.over_devices(WHOLE, 0, 3200, 8, 2)) == ["ddp", "zero2"]
    assert communication.over_devices(WHOLE, 16, 640, 1, 1) == {"one device": WHOLE}


def test_nf4_takes_what_bitsandbytes_takes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    numbers = 256 * 64 * 64
    weight = torch.randn(1024, numbers // 1024)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    second = state.state2.absmax
    kept = sum(t.numel() * t.element_size() for t in (packed, state.absmax, second))
    assert communication.nf4_bytes(numbers) == pytest.approx(kept, rel=1e-3)


# --- time ---


def test_what_is_hidden_is_waited_for_where_it_takes_longer() -> None:
    assert communication.efficiency(4.0, 3.0, 0.0) == 1.0
    assert communication.efficiency(4.0, 8.0, 0.0) == 0.5
    assert communication.efficiency(4.0, 0.0, 4.0) == 0.5
    assert communication.efficiency(4.0, 2.0, 2.0) == 4 / 6
    assert communication.efficiency(4.0, 8.0, 8.0) == 0.25


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
        gradient_checkpointing.checkpoint(model, kind)
    trained = sum(p.numel() for p in model.get_decoder().parameters() if p.requires_grad and p.ndim > 1)
    embedded = torch.randn(1, 8, 128, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded).logits.sum().backward()
    wanted = communication.operations(8, matrix, trained, "none" if kind == "everything" else kind)
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.05)


# --- the choice ---


def case(strategy: str, seconds: float) -> tables.Case:
    return tables.Case("8B", "bf16", strategy, 8, WHOLE, 0.0, 1.0, seconds, 0.0, 1)


def test_the_plainest_of_the_fastest_is_chosen() -> None:
    same = [case(name, 0.5) for name in ("zero3", "fsdp over all", "ddp", "zero2", "fsdp")]
    for name in ("ddp", "fsdp", "fsdp over all", "zero2", "zero3"):
        assert tables.best(same).strategy == name
        same = [one for one in same if one.strategy != name]
    assert tables.best([case("fsdp", 3.0), case("zero2", 2.0)]).strategy == "zero2"
    assert tables.best([]) is None
    large = replace(case("ddp", 0.0), memory=replace(WHOLE, weights=int(communication.H100_MEMORY)))
    assert tables.chosen({"ddp": large, "fsdp": case("fsdp", 3.0)}).strategy == "fsdp"


# --- the page ---


def test_the_page_is_what_the_command_writes() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert tables.page(page, SIZES) == page, "docs/scale.md is stale: run scripts/scale"
    with pytest.raises(ValueError, match="0 places for choices"):
        tables.page(page.replace("choices:", "choice:"), SIZES)


def test_the_picture_shows_the_figures_of_the_page(tmp_path: Path) -> None:
    shown = re.findall(r">([\d,.]+)</text>", (ROOT / "docs" / "scale.svg").read_text(encoding="utf-8"))
    wanted = [tables.gb(memory.total) for model in SIZES for _, memory in tables.bars(SIZES, model)]
    assert [number for number in shown if number in wanted] == wanted, "docs/scale.svg is stale: run scripts/scale"
    tables.draw(SIZES, tmp_path / "again.svg")
    again = (tmp_path / "again.svg").read_text(encoding="utf-8")
    assert re.findall(r">([\d,.]+)</text>", again) == shown


def test_sizes_are_the_published_ones() -> None:
    """Parameters of the published checkpoints, and of LoRA by hand: rank times inputs and outputs."""
    published = {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800}
    assert {name: size["parameters"] for name, size in SIZES.items()} == published
    for name, (width, inner, blocks, heads) in tables.SHAPES.items():
        keys = 8 * width // heads
        ends = [(width, width), (width, keys), (width, keys), (width, width), (width, inner), (width, inner)]
        each = sum(a + b for a, b in [*ends, (inner, width)])
        assert SIZES[name]["lora"] == 16 * blocks * each
        assert SIZES[name]["linear_in_blocks"] == blocks * sum(a * b for a, b in [*ends, (inner, width)])
        assert SIZES[name]["outside"] == 2 * 128256 * width + width
        assert SIZES[name]["linear"] == SIZES[name]["linear_in_blocks"] + 128256 * width


@pytest.mark.slow
def test_sizes_are_counted_as_they_stand() -> None:
    assert tables.sizes("8B") == SIZES["8B"]


def test_what_the_text_says_of_the_figures_holds() -> None:
    """The sentences of docs/scale.md and recipes/cluster that carry numbers of their own."""
    small, large = SIZES["8B"], SIZES["405B"]
    for name, size in SIZES.items():
        lora, full = (tables.whole(size, base) for base in ("bf16", "full"))
        assert lora.gradients / full.gradients < 0.011
        assert tables.deepspeed_memory(lora, size["blocks"], 64)["zero2"].total > 0.97 * lora.total
        node = tables.cases(name, size, "bf16", 64)["fsdp"].memory
        assert node.weights == max(getattr(node, part) for part in tables.PARTS), "the picture's caption"
    for base, gpus, name in (("nf4", 8, "fsdp"), ("bf16", 64, "fsdp over all")):
        memory = tables.cases("405B", large, base, gpus)[name].memory
        half = replace(memory, activations=memory.activations // 2)
        assert memory.total > communication.H100_MEMORY > half.total
    for name, saved, of in (("405B", 18, 85), ("70B", 7, 28)):
        over_all = tables.cases(name, SIZES[name], "bf16", 64)["fsdp over all"].memory.total
        zero3 = tables.deepspeed_memory(tables.whole(SIZES[name], "bf16"), SIZES[name]["blocks"], 64)["zero3"].total
        assert (round((over_all - zero3) / 1e9), round(over_all / 1e9)) == (saved, of)
        assert zero3 < communication.H100_MEMORY
    seventy = tables.cases("70B", SIZES["70B"], "bf16", 16)["fsdp"]
    assert (round(seventy.memory.weights / 1e9), round(seventy.memory.total / 1e9)) == (25, 43)
    assert tables.cases("70B", SIZES["70B"], "nf4", 8)["ddp"].fits
    gathers = [communication.rings(WHOLE, 1, 80, 0, 8 * nodes, nodes)["fsdp"][0] for nodes in (1, 64)]
    assert gathers[0] == gathers[1], "inside a node it takes as long on 512 GPUs as on 8"
    assert tables.whole(small, "bf16", "none").total < communication.H100_MEMORY
    assert 42.5e9 < tables.whole(small, "bf16", "light").total < 43.5e9
    assert 140.5e9 < tables.whole(SIZES["70B"], "bf16").weights < 141.5e9
    for width, blocks, numbers, share in ((4096, 32, small["linear"], 0.07), (16384, 126, large["linear"], 0.02)):
        assert 2 * width * 4096 * blocks / (2 * numbers) == pytest.approx(share, abs=0.005)  # half of all pairs
