"""Blocks that are copied to the device while they are used: the same losses and gradients as where all of them stay."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from cases import CASES, attach, late
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

import lrft
from lrft.adapters import gradient_checkpointing
from lrft.model import linear, streamed
from lrft.model.layers import blocks_of
from lrft.model.load import load_model
from lrft.model.quantized import QuantizedLinear

CPU = torch.device("cpu")
BLOCKS = 4
# Of each way to read the base: not at all, its norms or singular vectors at the start or in each step, W itself, what
# its layers are given beforehand, and their gradients.
SOME = ("lora", "dora", "pissa", "mora", "hra", "lora-ga", "full", "eva", "galore")
# Adapters in files have layers for two blocks; a layer is pruned before it is streamed (tests/training).
OF_TWO_BLOCKS = ("eigenlorax", "autolora-ranks")
PRUNED = ("loram",)
EVERY_CASE = pytest.mark.parametrize(
    "case",
    [case if case in SOME else pytest.param(case, marks=pytest.mark.all) for case in CASES if case not in PRUNED],
)
EVERY_KIND = pytest.mark.parametrize("kind", ["none", "light", "medium", "full"])


def llama() -> Any:
    """Four blocks in bfloat16, with norms that are not ones."""
    torch.manual_seed(0)
    model = tiny.llama(layers=BLOCKS)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
            elif "embed" not in name:
                p.mul_(4.0)
    return model.eval().requires_grad_(False).bfloat16()


def widened() -> Any:
    """`llama` whose blocks are streamed as they are, and computed in float32."""
    model = llama()
    streamed.stream(model, CPU, torch.float32, small=0)
    return model


def backward(model: Any, kind: str = "none") -> Tensor:
    """The loss, after its backward pass."""
    if kind != "none":
        gradient_checkpointing.checkpoint(model, kind)
    ids = tiny.tokens()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach()


def answer(model: Any, case: str, kind: str = "none") -> tuple[Tensor, dict[str, Tensor | None]]:
    """(loss, gradients) of adapters that are not at their start."""
    attached = attach(model.train(), case, layers="0-1" if case in OF_TWO_BLOCKS else "all")
    late(attached)
    loss = backward(model, kind)
    return loss, {name: p.grad for name, p in attached.trained().items()}


def same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        other = found[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or other is None or torch.equal(gradient, other), name


class Noted:
    """How many blocks have memory, noted at each module inside of them in each pass, forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        self.blocks, self.counts = blocks_of(model), list[int]()
        for module in (each for block in self.blocks for each in block.modules()):
            module.register_forward_hook(self.forward)

    def forward(self, _: nn.Module, __: Any, output: Any) -> None:
        self.note()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self.note)

    def note(self, _: Tensor | None = None) -> None:
        held = [[p.waiting for p in block.parameters() if hasattr(p, "waiting")] for block in self.blocks]
        self.counts.append(sum(any(each.is_here for each in tensors) for tensors in held))


# Losses and gradients, each for itself


@EVERY_CASE
def test_losses_are_those_of_a_resident_base_bit_for_bit(case: str) -> None:
    assert torch.equal(answer(widened(), case)[0], answer(llama().float(), case)[0])


@EVERY_CASE
def test_gradients_are_those_of_a_resident_base_bit_for_bit(case: str) -> None:
    same(answer(widened(), case)[1], answer(llama().float(), case)[1])


@EVERY_KIND
def test_so_they_are_with_checkpointing_and_with_two_blocks_at_a_time(kind: str) -> None:
    expected = answer(llama().float(), "dora", kind)
    model = widened()
    noted = Noted(model)
    found = answer(model, "dora", kind)
    assert torch.equal(found[0], expected[0])
    same(found[1], expected[1])
    assert max(noted.counts) == 2
    assert len(noted.counts) > 2 * 3 * BLOCKS


def test_a_second_pass_an_evaluation_and_generated_tokens_are_the_same() -> None:
    def several(model: Any) -> list[Tensor]:
        attached = attach(model.train(), "lora")
        late(attached)
        losses = [backward(model), backward(model.eval()), backward(model.train())]
        tokens = model.eval().generate(input_ids=tiny.tokens(), max_new_tokens=5, do_sample=False, pad_token_id=0)
        return [*losses, tiny.logits(model, tiny.tokens()), tokens, *(p.grad for p in attached.trained().values())]

    model = widened()
    noted = Noted(model)
    for found, expected in zip(several(model), several(llama().float()), strict=True):
        assert torch.equal(found, expected)
    assert max(noted.counts) == 2


@pytest.mark.parametrize("quantization", ["nf4", "int8", "fp8"])
def test_codes_are_streamed_as_codes(quantization: str, tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny.save(llama().float(), tmp_path)

    def base() -> Any:
        return load_model(folder, dtype=torch.float32, quantization=quantization)

    expected = answer(base(), "dora")
    model = base()
    streamed.stream(model, CPU, small=0, always=True)
    codes = [m.codes for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert codes
    assert all(not code.waiting.is_here and code.waiting.host.dtype == code.dtype for code in codes)
    noted = Noted(model)
    found = answer(model, "dora")
    assert torch.equal(found[0], expected[0])
    same(found[1], expected[1])
    assert max(noted.counts) == 2


def beside(model: Any, section: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """(loss, gradients) of all that an adapter section trains, not at its start."""
    attached = lrft.attach(model.train(), {"method": "dora", "rank": 2, **section})
    tiny.disturb(list(attached.trained().values()))
    loss = backward(model)
    return loss, {name: p.grad for name, p in attached.trained().items()}


@pytest.mark.parametrize("stacked", [True, False], ids=["experts", "norms, biases and layers in full"])
def test_experts_and_what_is_trained_beside_adapters_start_from_the_weights(stacked: bool) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}

    def base() -> Any:
        torch.manual_seed(0)
        config = Qwen3MoeConfig(vocab_size=tiny.VOCABULARY, **sizes, **experts, attention_bias=True)
        model = Qwen3MoeForCausalLM(config).eval().requires_grad_(False)
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape)) if name.endswith("bias") else p.mul_(3.0)
        return model.bfloat16()

    section = {
        True: {"target_modules": ["expert-linear"]},
        False: {"target_modules": ["v_proj"], "norms": True, "biases": "all", "modules_to_save": ["k_proj"]},
    }[stacked]
    expected = beside(base().float(), section)
    model = base()
    streamed.stream(model, CPU, torch.float32, small=0)
    found = beside(model, section)
    assert torch.equal(found[0], expected[0])
    same(found[1], expected[1])


class Large(GradientCheckpointingLayer):
    """A block of one 4-bit layer whose codes take 210 MB."""

    SIDE = 20_480

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        numbers = self.SIDE**2
        codes = torch.randint(0, 256, (numbers // 2, 1), dtype=torch.uint8, generator=generator)
        scales = torch.rand(numbers // 64, generator=generator) / self.SIDE**0.5
        shape = (self.SIDE, self.SIDE)
        self.layer = QuantizedLinear("nf4", shape, {"codes": codes, "scales": scales}, None, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nn.functional.silu(self.layer(x))


@pytest.mark.all
def test_blocks_of_more_than_200_mb_have_the_same_outputs_and_gradients() -> None:
    pytest.importorskip("bitsandbytes")

    def run(stream: bool) -> tuple[Tensor, Tensor]:
        model = nn.Sequential(*(Large(seed) for seed in range(3)))
        if stream:
            waiting = streamed.stream(model, CPU, small=0, always=True)
            assert min(block.size for block in waiting.blocks) > 200e6
        x = torch.randn(2, Large.SIDE, generator=torch.Generator().manual_seed(5)).bfloat16().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad

    for found, expected in zip(run(True), run(False), strict=True):
        assert expected.isfinite().all()
        assert torch.equal(found, expected)


# What waits


def test_weights_that_wait_are_nan_to_a_stray_read_and_themselves_to_those_who_ask() -> None:
    plain, model = llama().float(), widened()
    for (name, layer), (_, other) in zip(linear.named_linears(model), linear.named_linears(plain), strict=True):
        assert layer.weight.shape == other.weight.shape
        assert layer.weight.dtype == torch.float32
        assert torch.equal(linear.dense(layer), other.weight), name
        assert layer.weight.isnan().all() == ("layers" in name)


def test_a_tensor_of_two_places_and_a_small_one_stay() -> None:
    model = llama()
    blocks = blocks_of(model)
    blocks[2].mlp.up_proj.weight = blocks[1].mlp.up_proj.weight
    small = blocks[0].input_layernorm.weight.numel() * 4
    streamed.stream(model, CPU, torch.float32, small=small)
    waits = {name for name, p in model.named_parameters(remove_duplicate=False) if hasattr(p, "waiting")}
    assert not [name for name in waits if "norm" in name or "embed" in name or "lm_head" in name]
    assert not waits & {f"model.layers.{n}.mlp.up_proj.weight" for n in (1, 2)}
    assert len(waits) == 7 * BLOCKS - 2


def test_nothing_is_copied_that_can_be_read_where_it_lies() -> None:
    model = llama()
    streamed.stream(model, CPU, small=0)
    assert not any(hasattr(p, "waiting") for p in model.parameters())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="declares no blocks"):
        streamed.stream(nn.Sequential(nn.Linear(2, 2)), CPU, small=0)
