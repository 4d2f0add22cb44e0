"""Bases that are stored in codes: converted once into plain weights, and a base as any other from there on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lrft.cli import main
from lrft.errors import LrftError, MissingError
from lrft.export.merge import merge_adapter
from lrft.model import dequantized
from lrft.model.hub import find_model
from lrft.model.load import load_model
from lrft.utils import files
from lrft.verification.merge import verify_merge

# The numbers of 4 bits in MXFP4: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats v1.0, 5.3.3).
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [4, 4]}
MXFP4: dict[str, Any] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(folder: Path, tensors: Mapping[str, Tensor], section: Mapping[str, Any], **keys: Any) -> Path:
    """Other weights in a model folder, with what its configuration says of them."""
    dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(dense, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys, "quantization_config": dict(section)}))
    return folder


def in_fp8(folder: Path) -> tuple[Tensors, Tensors]:
    """(tensors of a folder with matrices in 8-bit floats and a scale for 4 x 4 of them, what those mean)."""
    codes, meant = {}, {}
    for name, W in load_file(folder / "model.safetensors").items():
        meant[name] = W
        if W.ndim != 2 or not name.endswith("_proj.weight"):
            codes[name] = W
            continue
        d, k = W.shape
        scales = W.view(d // 4, 4, k // 4, 4).abs().amax(dim=(1, 3)) / 448
        wide = scales.repeat_interleave(4, 0).repeat_interleave(4, 1)
        codes[name] = (W / wide).to(torch.float8_e4m3fn)
        codes[f"{name}_scale_inv"] = scales
        meant[name] = codes[name].float() * wide
    return codes, meant


def in_mxfp4(shape: tuple[int, int, int], seed: int) -> tuple[Tensors, Tensor]:
    """({blocks, scales}, what they mean) of a stack of experts (E, inputs, outputs): codes of 32 inputs share 2^n."""
    experts, k, d = shape
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (experts, d, k // 32, 32), generator=generator)
    exponents = torch.randint(-6, -1, (experts, d, k // 32), generator=generator)
    values = E2M1[codes % 8] * torch.where(codes >= 8, -1.0, 1.0) * torch.exp2(exponents.float())[..., None]
    packed = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
    tensors = {"blocks": packed, "scales": (exponents + 127).to(torch.uint8)}
    return tensors, values.reshape(experts, d, k).transpose(1, 2)


def gpt_oss(folder: Path, vocabulary: int = tiny.VOCABULARY) -> tuple[Path, Tensors]:
    """(a folder as gpt-oss is published, what its tensors mean)."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    tiny.save(GptOssForCausalLM(config), folder)
    stored, meant = {}, load_file(folder / "model.safetensors")
    for seed, (name, W) in enumerate(sorted(meant.items())):
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = W
            continue
        codes, meant[name] = in_mxfp4((W.shape[0], W.shape[1], W.shape[2]), seed)
        stored |= {f"{name}_{word}": tensor for word, tensor in codes.items()}
    return store(folder, stored, MXFP4), meant


def tensors_of(folder: Path) -> Tensors:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], W) for name, W in expected.items())


def test_fp8_in_blocks_becomes_what_its_codes_mean_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.save_base(tmp_path / "base")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    stored, meant = in_fp8(folder)
    store(folder, stored, FP8)
    plain = find_model(str(folder))
    assert same(tensors_of(plain), meant)
    config = json.loads((plain / "config.json").read_text())
    assert "quantization_config" not in config
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names <= {str(path.relative_to(plain)) for path in plain.rglob("*")}
    assert (plain / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (plain / "additional_chat_templates" / "rag.jinja").read_text() == "{{ messages }}"
    with monkeypatch.context() as once:
        once.setattr(dequantized, "_convert", lambda *_: pytest.fail("converted again"))
        assert find_model(str(folder)) == plain
    stored["model.norm.weight"] = stored["model.norm.weight"] + 1
    store(folder, stored, FP8)
    other = find_model(str(folder))
    assert other != plain
    assert torch.equal(tensors_of(other)["model.norm.weight"], meant["model.norm.weight"] + 1)


def test_what_was_codes_gets_the_dtype_that_the_configuration_names(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama-tied"), tmp_path / "base")
    stored, meant = in_fp8(folder)
    store(folder, stored, FP8, dtype="bfloat16")
    expected = {name: W.bfloat16() if f"{name}_scale_inv" in stored else W for name, W in meant.items()}
    assert same(tensors_of(find_model(str(folder))), expected)


def test_experts_in_fp8_are_read_one_by_one_and_written_as_they_were(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=24,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    folder = tiny.save(Qwen3MoeForCausalLM(config), tmp_path / "base")
    stored, meant = in_fp8(folder)
    assert "model.layers.1.mlp.experts.3.down_proj.weight_scale_inv" in stored
    plain = find_model(str(store(folder, stored, FP8)))
    assert same(tensors_of(plain), meant)
    shutil.copytree(plain, tmp_path / "twin")
    save_file(meant, tmp_path / "twin" / "model.safetensors", {"format": "pt"})
    found, expected = (load_model(each, dtype=torch.float32) for each in (plain, tmp_path / "twin"))
    assert torch.equal(tiny.logits(found, tiny.tokens()), tiny.logits(expected, tiny.tokens()))


def test_gpt_oss_in_mxfp4_becomes_what_its_codes_mean(tmp_path: Path) -> None:
    folder, meant = gpt_oss(tmp_path / "base")
    assert same(tensors_of(find_model(str(folder))), meant)


def test_a_run_over_gpt_oss_in_mxfp4_says_so_is_planned_by_its_real_bytes_and_merges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.make(tmp_path)
    base = place.root / "base"
    own, _ = gpt_oss(tmp_path / "oss", vocabulary=json.loads((base / "config.json").read_text())["vocab_size"])
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(own / name, base / name)
    assert main.run_command(["plan", str(place.root / "recipe.yaml")]) == 0
    assert "dequantised from mxfp4" in capsys.readouterr().out
    assert main.run_command(["plan", str(place.root / "recipe.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    model = load_model(find_model(str(base)), dtype=torch.float32)
    assert plan["dequantized_from"] == "mxfp4"
    assert plan["memory"]["one device"]["weights"] == sum(4 * p.numel() for p in model.parameters())
    keys = ("training.epochs=4", "adapter.target_modules=[q_proj, expert-linear]")
    arguments = [f"output_dir={place.root / 'run'}", *keys]
    assert main.run_command(["train", str(place.root / "recipe.yaml"), *arguments]) == 0
    assert "dequantised from mxfp4, frozen in float32" in capsys.readouterr().out
    run = place.root / "run"
    losses = [record["loss"] for record in runs.records(run)]
    assert losses[-1] < losses[0]
    assert files.read_json(run / "best" / "lrft.json")["base"]["dequantized_from"] == "mxfp4"
    result = merge_adapter(run / "best", place.root / "merged")
    assert verify_merge(result.out, run / "best", base_folder=result.base).relative < 1e-4
    assert "quantization_config" not in json.loads((result.out / "config.json").read_text())


def test_it_can_be_quantised_as_any_base(tmp_path: Path) -> None:
    """Rows of the codes' meaning, in 8-bit floats again."""
    place = Place.make(tmp_path)
    stored, _ = in_fp8(place.root / "base")
    store(place.root / "base", stored, FP8)
    run = place.train("model.quantization=fp8", "training.max_steps=2")
    base = files.read_json(run / "last" / "lrft.json")["base"]
    assert (base["quantization"], base["dequantized_from"], base["name"]) == ("fp8", "fp8", str(place.root / "base"))
    assert main.run_command(["eval", str(run), "--data", str(place.root / "validation.jsonl"), "--no-generate"]) == 0


def integers(values: Tensor, bits: int, order: Sequence[int]) -> Tensor:
    """(rows, n) of so many bits -> int32 (rows, n bits / 32): number order[j] of each has the bits from j `bits` on."""
    wide = sum(values[:, at :: len(order)].long() << (bits * j) for j, at in enumerate(order))
    return torch.where(wide >= 2**31, wide - 2**32, wide).int()


def in_gptq(W: Tensor, bits: int, *, ordered: bool = True, second: bool = False) -> tuple[Tensors, Tensor]:
    """(the tensors of a layer with groups of 4 inputs, what they mean). ordered: groups are inputs in turn. second:
    the second version of the format."""
    d, k = W.shape
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (k, d), generator=generator)
    zeros = torch.randint(1, 2**bits, (k // 4, d), generator=generator)
    scales = (0.02 + 0.1 * torch.rand(k // 4, d, generator=generator)).half()
    group = torch.arange(k) // 4
    group = group if ordered else group[torch.randperm(k, generator=generator)]
    turn = range(32 // bits)
    tensors = {
        "qweight": integers(codes.T, bits, turn).T,
        "qzeros": integers(zeros if second else zeros - 1, bits, turn),
        "scales": scales,
        "g_idx": group.int(),
    }
    return tensors, ((codes - zeros[group]) * scales.float()[group]).T


def in_awq(W: Tensor) -> tuple[Tensors, Tensor]:
    d, k = W.shape
    generator = torch.Generator().manual_seed(d)
    codes, zeros = (torch.randint(0, 16, (n, d), generator=generator) for n in (k, k // 4))
    scales = (0.02 + 0.1 * torch.rand(k // 4, d, generator=generator)).half()
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ, awq/utils/packing_utils.py
    tensors = {"qweight": integers(codes, 4, order), "qzeros": integers(zeros, 4, order), "scales": scales}
    return tensors, ((codes - zeros.repeat_interleave(4, 0)) * scales.float().repeat_interleave(4, 0)).T


def packed(folder: Path, of_layer: Callable[[Tensor], tuple[Tensors, Tensor]]) -> tuple[Tensors, Tensors]:
    """(tensors of a folder with the layers' weights in packed integers, what they mean)."""
    stored, meant = {}, dict(load_file(folder / "model.safetensors"))
    for name, W in list(meant.items()):
        if not name.endswith("_proj.weight"):
            stored[name] = W
            continue
        tensors, meant[name] = of_layer(W)
        stored |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in tensors.items()}
    return stored, meant


def wide_llama(folder: Path) -> Path:
    """All sides are multiples of 16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    return tiny.save(LlamaForCausalLM(config), folder)


@pytest.mark.parametrize(
    ("section", "of_layer"),
    [
        ({"quant_method": "gptq", "bits": 4, "desc_act": False}, partial(in_gptq, bits=4)),
        ({"quant_method": "gptq", "bits": 2, "desc_act": True}, partial(in_gptq, bits=2, ordered=False)),
        ({"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}, partial(in_gptq, bits=8, second=True)),
        ({"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, in_awq),
    ],
    ids=["gptq", "gptq in another order", "gptq_v2", "awq"],
)
def test_packed_integers_become_what_they_mean(
    section: dict[str, Any], of_layer: Callable[[Tensor], tuple[Tensors, Tensor]], tmp_path: Path
) -> None:
    folder = wide_llama(tmp_path / "base")
    stored, meant = packed(folder, of_layer)
    plain = find_model(str(store(folder, stored, section)))
    assert same(tensors_of(plain), meant)
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    model = load_model(plain, dtype=torch.float32)
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, meant["model.layers.1.mlp.down_proj.weight"])
    lacking = {name: tensor for name, tensor in stored.items() if not name.endswith("g_idx")}
    if section["bits"] == 4 and len(lacking) < len(stored):  # groups in turn need no list
        assert same(tensors_of(find_model(str(store(folder, lacking, section)))), meant)


def test_packed_integers_are_read_over_several_files(tmp_path: Path) -> None:
    """The parts of one weight need not lie in one file."""
    folder = wide_llama(tmp_path / "base")
    stored, meant = packed(folder, partial(in_gptq, bits=4))
    store(folder, stored, {"quant_method": "gptq", "bits": 4})
    (folder / "model.safetensors").unlink()
    names, placed = sorted(stored), {}
    for n in range(3):
        file = f"model-{n + 1:05}-of-00003.safetensors"
        placed |= dict.fromkeys(names[n::3], file)
        save_file({name: stored[name].contiguous() for name in names[n::3]}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    plain = find_model(str(folder))
    assert same(tensors_of(plain), meant)
    found = load_model(plain, dtype=torch.float32).state_dict()
    assert all(torch.equal(found[name], W) for name, W in meant.items())


def changed(tensors: Tensors, name: str, new: str | None = None) -> Tensors:
    """Without a tensor, or with it under another name."""
    found = {key: tensor for key, tensor in tensors.items() if key != name}
    return found if new is None else {**found, new: tensors[name]}


def test_layouts_that_are_not_known_are_refused(tmp_path: Path) -> None:
    folder = wide_llama(tmp_path / "base")
    stored, _ = packed(folder, partial(in_gptq, bits=4))
    first = "model.layers.0.mlp.up_proj"
    gptq = {"quant_method": "gptq", "bits": 4}
    for tensors, section, sentence in (
        (stored, {**gptq, "checkpoint_format": "marlin"}, "checkpoint_format marlin of gptq cannot be read"),
        (stored, {"quant_method": "awq", "bits": 4, "version": "gemv"}, "version gemv of awq cannot be read"),
        (changed(stored, f"{first}.qzeros"), gptq, f"{first} has no qzeros"),
        (changed(stored, f"{first}.scales", "act.scales"), gptq, "act.scales belongs to no packed weight"),
        (changed(stored, f"{first}.g_idx"), {**gptq, "bits": 3}, f"{first} has 3 bits"),
    ):
        with pytest.raises(LrftError, match=sentence):
            find_model(str(store(folder, tensors, section)))
    transposed = tiny.save(tiny.make("gpt2"), tmp_path / "gpt2")
    with pytest.raises(LrftError, match="inputs first"):
        find_model(str(store(transposed, load_file(transposed / "model.safetensors"), gptq)))


@pytest.mark.parametrize("method", ["hqq", "aqlm"])
def test_other_formats_are_refused_by_name_with_the_way_out(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.make(tmp_path)
    base = place.root / "base"
    store(base, load_file(base / "model.safetensors"), {"quant_method": method, "bits": 4})
    with pytest.raises(LrftError, match=f"model.name: .* is stored quantised by {method}, which cannot") as caught:
        find_model(str(base))
    assert "full precision" in str(caught.value.hint)
    assert main.run_command(["train", str(place.root / "recipe.yaml")]) == LrftError.exit_code
    assert f"recipe.yaml:1:8: {base} is stored quantised by {method}" in capsys.readouterr().err


def test_what_is_quantised_inside_of_a_larger_model_is_found_and_codes_of_bitsandbytes_stay(tmp_path: Path) -> None:
    for section, expected in (
        ({"text_config": {"quantization_config": {"quant_method": "hqq"}}}, "hqq"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes"),
        ({"quantization_config": None, "text_config": None}, ""),
    ):
        (tmp_path / "config.json").write_text(json.dumps(section))
        assert dequantized.stored_as(tmp_path) == expected
        if expected in ("", "bitsandbytes"):
            assert dequantized.plain(tmp_path, "model.name") == tmp_path


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantized.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "compressed-tensors"}}')
    with pytest.raises(MissingError, match="requires the package compressed-tensors") as caught:
        dequantized.plain(tmp_path, "model.name")
    assert caught.value.hint == "pip install compressed-tensors"


def of_floats(W: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scales = W.abs().amax(dim=1, keepdim=True) / 448
    codes = (W / scales).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def of_integers(W: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """4 bits each, eight of them in an integer of 32, the first lowest; zero is 8."""
    d, k = W.shape
    scales = W.view(d, -1, 4).abs().amax(dim=2) / 7
    codes = (W / scales.repeat_interleave(4, 1)).round().clamp(-8, 7)
    filled = torch.nn.functional.pad(codes + 8, (0, -k % 8)).long().view(d, -1, 8)
    packed = (filled << (4 * torch.arange(8))).sum(dim=2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    tensors = {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor([d, k])}
    return tensors, codes * scales.repeat_interleave(4, 1)


@pytest.mark.parametrize(
    ("form", "weights", "made"),
    [
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, of_floats),
        ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 4}, of_integers),
    ],
)
def test_compressed_tensors_become_what_their_codes_mean(
    form: str, weights: dict[str, Any], made: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    folder = tiny.save(tiny.make("llama"), tmp_path / "base")
    stored, meant = {}, load_file(folder / "model.safetensors")
    for name, W in list(meant.items()):
        if not name.endswith("_proj.weight"):
            stored[name] = W
            continue
        codes, meant[name] = made(W)
        stored |= {f"{name.removesuffix('weight')}{word}": tensor for word, tensor in codes.items()}
    group = {"targets": ["Linear"], "weights": {**weights, "symmetric": True, "dynamic": False}}
    section = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    store(folder, stored, {**section, "quantization_status": "compressed", "config_groups": {"group_0": group}})
    found = tensors_of(find_model(str(folder)))
    assert found.keys() == meant.keys()
    for name, W in meant.items():
        assert torch.allclose(found[name], W, rtol=1e-6, atol=0), name


def test_torchaos_weights_become_what_their_codes_mean(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    tiny.save(tiny.make("llama"), tmp_path / "base")
    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32, quantization_config=config)
    model.save_pretrained(tmp_path / "codes")
    found = load_model(find_model(str(tmp_path / "codes")), dtype=torch.float32)
    assert type(found.model.layers[0].mlp.up_proj.weight) is torch.nn.Parameter
    expected = tiny.logits(model, tiny.tokens())
    assert (tiny.logits(found, tiny.tokens()) - expected).abs().max() < 1e-4 * expected.abs().max()
