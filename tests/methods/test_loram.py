"""Training on a pruned base: against a smaller plain model; the factors are those of the whole base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import runs
import tiny
import torch
from runs import Place
from smaller import CHANNELS, CONFIGS, GROUP, HEADS, SIZE, family, places, smaller
from transformers import AutoModelForCausalLM

import lrft
from lrft.errors import RecipeError
from lrft.loading.from_recipe import load_data
from lrft.model.pruned import PrunedLinear
from lrft.planning.plan import make_plan

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def attached_to(model: Any, **options: Any) -> Any:
    attached = lrft.attach(model, {"method": {"loram": options}, "rank": 3})
    torch.manual_seed(1)
    with torch.no_grad():  # B is what the pruned base has trained: zero where no gradient comes
        for name, p in attached.trained().items():
            if name.endswith("B"):
                layer = model.get_submodule(name.removesuffix(".B")).base
                rows = slice(None) if layer.rows is None else layer.rows
                p[rows] = 0.1 * torch.randn_like(p[rows])
    return attached


def kept_units(model: Any, width: int, layer: str) -> list[list[int]]:
    """Of each block, by the rows that are left of a layer."""
    parts = [module.base for name, module in model.named_modules() if name.endswith(layer)]
    return [sorted({int(row) // width for row in part.rows}) for part in parts]


def factors_of_smaller(model: Any, attached: Any, small: Any, heads: Any, channels: Any) -> Any:
    """A plain LoRA on the smaller model with the rows and columns of `attached` that belong to it."""
    copied = lrft.attach(small, {"method": "lora", "rank": 3})
    with torch.no_grad():
        for name, p in copied.trained().items():
            site, word = name.rsplit(".", 1)
            block = int(site.split(".")[2])
            lanes = {"q_proj": places(heads[block], GROUP * SIZE), "o_proj": places(heads[block], GROUP * SIZE)}
            lanes |= dict.fromkeys(("k_proj", "v_proj"), places(heads[block], SIZE))
            mine = lanes.get(site.rsplit(".", 1)[1], channels[block])
            whole, reads = attached.tensors()[name], site.endswith(("o_proj", "down_proj"))
            if word == "B":
                p.copy_(whole if reads else whole[mine])
            else:
                p.copy_(whole[:, mine] if reads else whole)
    return copied


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_what_a_lora_on_the_smaller_plain_model_trains(name: str) -> None:
    model = family(name).double()
    before = copy.deepcopy(model)
    attached = attached_to(model, ratio=0.5, first=0.0, last=0.0)
    heads, channels = kept_units(model, SIZE, "k_proj"), kept_units(model, 1, "gate_proj")
    assert [len(units) for units in (*heads, *channels)] == [HEADS // 2] * 2 + [CHANNELS // 2] * 2
    small = smaller(before, heads, channels)
    copied = factors_of_smaller(model, attached, small, heads, channels)
    ids = tiny.tokens()
    model.train()
    found, expected = (m(input_ids=ids, labels=ids).loss for m in (model, small.train()))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    found.backward()
    expected.backward()
    for key, p in attached.trained().items():
        theirs = copied.trained()[key].grad
        assert p.grad.norm().item() == pytest.approx(theirs.norm().item(), rel=1e-9), "zero wherever theirs has nothing"
    # What is cut stays zero, exactly: by step and by decay.
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=0.1)
    optimizer.step()
    for site, layer in attached.layers().items():
        if layer.base.rows is not None:
            out = torch.ones(layer.base.shape[0], dtype=torch.bool)
            out[layer.base.rows] = False
            assert not layer.adapter.B[out].any(), site
            assert layer.adapter.B[~out].any()
        else:
            out = torch.ones(layer.base.shape[1], dtype=torch.bool)
            out[layer.base.columns] = False
            assert not layer.adapter.A[:, out].any(), site


def test_in_evaluation_it_is_the_whole_base_with_the_factors_and_detached_it_is_the_base_again() -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    whole, numbers = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    before = tiny.logits(model, ids)
    attached = attached_to(model, ratio=0.5)
    left = sum(p.numel() for n, p in model.named_parameters() if ".adapter." not in n)
    assert numbers - left == sum(layer.base.whole.weight.numel() for layer in attached.layers().values()) // 2
    with torch.no_grad():
        for name in attached.modules:
            whole.get_submodule(name).weight += attached.delta(name)
    assert torch.allclose(tiny.logits(model, ids), tiny.logits(whole, ids), atol=1e-4)
    trained = tiny.logits(model.train(), ids)
    assert not torch.allclose(trained, tiny.logits(whole, ids), atol=1e-2)
    assert torch.equal(tiny.logits(attached.detach().eval(), ids), before)
    assert not any(isinstance(module, PrunedLinear) for module in model.modules())


def test_nothing_is_cut_at_ratio_zero_nor_in_blocks_that_are_spared() -> None:
    model = tiny.make("llama")
    lrft.attach(model, {"method": {"loram": {"ratio": 0.0}}})
    assert not any(isinstance(module, PrunedLinear) for module in model.modules())
    model = tiny.make("llama")
    lrft.attach(model, {"method": {"loram": {"first": 0.5}}, "target_modules": ["q_proj", "v_proj"]})
    cut = {name for name, module in model.named_modules() if isinstance(module, PrunedLinear)}
    assert len(cut) == len(LAYERS)
    assert all(".1." in name for name in cut), "layers without an adapter too"


def test_the_least_is_cut_or_what_the_seed_draws() -> None:
    model = tiny.make("llama")
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            getattr(model.model.layers[0].mlp, name).weight[7] *= 1e-3
        model.model.layers[0].mlp.down_proj.weight[:, 7] *= 1e-3
    lrft.attach(model, {"method": {"loram": {"ratio": 0.03}}})
    assert kept_units(model, 1, "layers.0.mlp.gate_proj") == [[i for i in range(44) if i != 7]]
    drawn = []
    for seed in (0, 0, 1):
        model = tiny.make("llama")
        lrft.attach(model, {"method": {"loram": {"select": "random", "pruning_seed": seed}}})
        drawn.append(kept_units(model, 1, "gate_proj"))
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_other_families_are_refused_by_name_and_a_refused_model_is_left_whole() -> None:
    with pytest.raises(RecipeError, match=r"loram: prunes blocks of llama, mistral, qwen2, qwen3, and .* gpt2"):
        lrft.attach(tiny.make("gpt2"), {"method": "loram"})
    model = tiny.make("llama")
    with pytest.raises(RecipeError, match="nothing"):
        lrft.attach(model, {"method": "loram", "target_modules": ["nothing"]})
    assert not any(isinstance(module, PrunedLinear) for module in model.modules())


KINDS = ("nf4", "fp4", "int8", "fp8")


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """By bitsandbytes or torch alone: to codes and back. Blocks run on from row to row, so as one row."""
    if kind == "fp8":
        scales = weight.abs().amax(dim=1, keepdim=True) / 448
        return (weight / scales).to(torch.float8_e4m3fn).to(weight.dtype) * scales
    if kind == "int8":
        codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
        return codes.to(weight.dtype) * scales.to(weight.dtype)[:, None] / 127
    found = bitsandbytes.functional.quantize_4bit(weight.reshape(1, -1), quant_type=kind, compress_statistics=True)
    return bitsandbytes.functional.dequantize_4bit(*found).view_as(weight)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_it_trains_what_a_lora_on_the_smaller_rounded_model_trains_and_answers_on_the_whole(
    kind: str,
) -> None:
    """One block is cut, the other one quantised whole."""
    model, ids = family("llama"), tiny.tokens()
    before = copy.deepcopy(model)
    attached = attached_to(model, ratio=0.5, first=0.0, last=0.5, quantize=kind)
    parts = {name: module for name, module in model.named_modules() if isinstance(module, PrunedLinear)}
    assert len(parts) == 2 * len(LAYERS), "all of the blocks"
    assert all(part.part.codes.dtype in (torch.uint8, torch.int8) for part in parts.values())
    plain = copy.deepcopy(before)
    with torch.no_grad():
        for name in attached.modules:
            layer, part = plain.get_submodule(name), parts[f"{name}.base"]
            rows = slice(None) if part.rows is None else part.rows
            columns = slice(None) if part.columns is None else part.columns
            small = layer.weight[rows][:, columns]
            W = torch.zeros_like(layer.weight)
            spread = W[rows].clone()
            spread[:, columns] = rounded(small, kind)
            W[rows] = spread
            layer.weight.copy_(W)
            layer.weight += attached.delta(name)
    assert torch.allclose(tiny.logits(model.train(), ids), tiny.logits(plain, ids), atol=1e-4)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in attached.trained().items() if n.endswith("A"))
    whole = copy.deepcopy(before)
    with torch.no_grad():
        for name in attached.modules:
            whole.get_submodule(name).weight += attached.delta(name)
    assert torch.allclose(tiny.logits(model.eval(), ids), tiny.logits(whole, ids), atol=1e-4)
    assert torch.equal(tiny.logits(attached.detach().eval(), ids), tiny.logits(before, ids))


def test_a_quantised_run_resumes_to_the_same_bits_and_merges_into_the_whole_original_base(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    keys = ("adapter.method={loram: {quantize: nf4}}", "checkpoint.every=3", "checkpoint.keep=9")
    run = place.train(*keys, "training.gradient_checkpointing=light", out="run")
    part = runs.cut(run, 3, tmp_path / "cut")
    place.train(*keys, "training.gradient_checkpointing=light", out="cut", resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(run)) == []
    merged = lrft.merge(run / "last", tmp_path / "merged")
    base, ids = AutoModelForCausalLM.from_pretrained(place.root / "base"), tiny.tokens()
    lrft.load_adapter(base, run / "last")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(tiny.logits(base, ids), tiny.logits(found, ids), atol=1e-4), merged
    used = {keys: planned(place, *keys) for keys in (keys[:1], ("adapter.method=loram",), ("adapter.method=lora",))}
    assert list(used.values()) == sorted(used.values())


def planned(place: Place, *keys: str) -> int:
    """Bytes of the frozen weights on the device."""
    recipe = place.recipe(*keys)
    _, prepared = load_data(recipe, place.root / "base")
    return make_plan(recipe, place.root / "base", prepared, 1).memory["one device"].weights


def test_a_quantised_base_and_compilation_are_refused_with_what_to_do(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    with pytest.raises(RecipeError, match=r"loram cuts rows .* its own \{quantize: nf4\} quantises the rest"):
        place.recipe("adapter.method=loram", "model.quantization=nf4")
    with pytest.raises(RecipeError, match="compile does not support a quantised base"):
        place.recipe("adapter.method={loram: {quantize: nf4}}", "training.compile=true")
    place.recipe("adapter.method=loram", "training.compile=true")
