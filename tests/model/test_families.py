"""Models that also see or hear, layers that cannot carry an adapter, and plans of models with experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import tiny
import torch
import transformers
from families import CROSS, GATED, IDS, LATENT, LLAVA, MAMBA, ROUTED, SMALL, model_of
from runs import Place
from torch import Tensor, nn
from transformers import AutoConfig

import lrft
from lrft import recipe
from lrft.adapters import compose, targets, unfit
from lrft.adapters.attach import attach_adapter, attach_sites, composition_warnings
from lrft.adapters.reach import UNCALLED, UNLED, reach, uncalled
from lrft.cli.main import run_command
from lrft.data import Rows, pictures
from lrft.data.collate import Form, collate
from lrft.data.dataset import Row
from lrft.data.records import BadRow
from lrft.errors import CheckFailed, LrftError, RecipeError
from lrft.export.merge import merge_adapter
from lrft.model import fake_kernels
from lrft.model.attention_kernels import kernels_of
from lrft.model.classes import auto_class
from lrft.model.layers import decoder_of, head_of
from lrft.model.load import imagine_quantized, load_model, load_skeleton
from lrft.model.packed_attention import window_mask
from lrft.objectives.packing import find_layout
from lrft.planning import activation_memory


def saved(kind: str, words: dict[str, Any], folder: Path) -> Path:
    return tiny.save(model_of(kind, words), folder)


def chosen(model: Any, **words: Any) -> targets.Choice:
    section = recipe.parse_adapter({"rank": 2, **words})
    return targets.choose(model, section, lambda key: key, uncalled(model))


# --- which class


@pytest.mark.parametrize(
    ("kind", "named", "expected"),
    [
        ("llama", ["LlamaForCausalLM"], "AutoModelForCausalLM"),
        ("llava", ["LlavaForConditionalGeneration"], "AutoModelForImageTextToText"),
        ("llava", None, "AutoModelForImageTextToText"),
        ("qwen3_5", ["Qwen3_5ForConditionalGeneration"], "AutoModelForImageTextToText"),
        ("qwen3_5", ["Qwen3_5ForCausalLM"], "AutoModelForCausalLM"),
        ("qwen3_5", None, "AutoModelForCausalLM"),
        ("llama4", ["Llama4ForConditionalGeneration"], "AutoModelForImageTextToText"),
        ("voxtral", ["VoxtralForConditionalGeneration"], "AutoModelForMultimodalLM"),
    ],
)
def test_the_class_is_the_one_that_the_checkpoint_names(kind: str, named: list[str] | None, expected: str) -> None:
    config = AutoConfig.for_model(kind)
    config.architectures = named
    assert auto_class(config, Path("here")).__name__ == expected


@pytest.mark.parametrize(("kind", "named"), [("t5", "T5ForConditionalGeneration"), ("bart", None), ("vit", "ViTModel")])
def test_what_is_no_causal_language_model_is_refused_by_its_name(kind: str, named: str | None) -> None:
    config = AutoConfig.for_model(kind)
    config.architectures = [named] if named else None
    with pytest.raises(LrftError, match=f"here holds a {named or 'model of type bart'}, which transformers cannot"):
        auto_class(config, Path("here"))


def test_an_encoder_that_reads_ahead_is_refused() -> None:
    model = model_of("bert", {**SMALL, "intermediate_size": 40})
    rows = runs_rows()
    with pytest.raises(CheckFailed, match="BertLMHeadModel is not a causal language model"):
        find_layout(model, rows, packing="auto", compute="fp32")


def runs_rows() -> Any:
    import numpy as np

    from lrft.data import Row, Rows

    tokens = np.arange(3, 11, dtype=np.int32)
    return Rows.of([Row(tokens, np.arange(8) > 3, 3, "", "t.jsonl:", 1)] * 3)


# --- models that also see


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    return Place.make(tmp_path, train_rows=4, validation_rows=2)


@pytest.mark.parametrize(("kind", "words"), [("llava", LLAVA), ("mllama", CROSS)])
def test_text_trains_the_language_part_and_towers_stay_whole(
    place: Place, kind: str, words: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT and the merged folder answer as lrft does on the class that the checkpoint names."""
    from peft import PeftModel
    from safetensors.torch import load_file

    folder = place.root / "base"
    saved(kind, words, folder)
    assert run_command(["check", str(place.root / "recipe.yaml")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out:" in said
    assert "not called in a forward pass over text" in said
    run = place.train("training.max_steps=2", "training.epochs=null")
    sites = json.loads((run / "last" / "lrft.json").read_text())["sites"]
    assert len(sites) == 14
    assert not any("vision" in site["name"] or "cross_attn" in site["name"] for site in sites)
    merge_adapter(run / "last", place.root / "merged")
    before, after = (load_file(at / "model.safetensors") for at in (folder, place.root / "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 14
    assert all("vision" not in name for name in changed)
    ids = torch.randint(3, 250, (1, 9))
    ours = load_model(folder, dtype=torch.float32)
    lrft.load_adapter(ours, run / "last")
    expected = tiny.logits(ours, ids)
    stock = getattr(transformers, ours.config.architectures[0])
    with_adapter = PeftModel.from_pretrained(stock.from_pretrained(folder), run / "last").eval()
    merged = stock.from_pretrained(place.root / "merged").eval()
    assert torch.allclose(tiny.logits(with_adapter, ids), expected, atol=1e-5)
    assert torch.allclose(tiny.logits(merged, ids), expected, atol=1e-4)


# --- what text does not reach


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        ("llama", SMALL, set()),
        ("mixtral", ROUTED, set()),
        ("llava", LLAVA, {"fc1", "fc2", "k_proj", "v_proj", "q_proj", "out_proj", "linear_1", "linear_2"}),
        ("mamba", MAMBA, {"dt_proj"}),
    ],
)
def test_layers_that_a_pass_does_not_call_are_found_with_and_without_content(
    tmp_path: Path, kind: str, words: dict[str, Any], expected: set[str]
) -> None:
    folder = saved(kind, words, tmp_path)
    loaded = load_model(folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    state = torch.get_rng_state()
    found = uncalled(loaded)
    assert {name.rsplit(".", 1)[-1] for name in found} == expected
    assert uncalled(load_skeleton(folder)) == found
    with imagine_quantized(folder, dtype=torch.float32) as fake:
        assert uncalled(fake) == found
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in loaded.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


class Routed(nn.Module):
    """Tokens go to the first of three experts; `never` is not called, the weight of `read` is only read, `chooses` only
    says which numbers go on, and `compresses` acts on each 100 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(3, 3)) for _ in range(3)])
        self.others = nn.ModuleList([nn.Linear(3, 3)])
        self.read, self.never, self.chooses = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.compresses = nn.Linear(3, 3)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        x = input_ids[..., None].float().expand(-1, -1, 3)
        whole = self.compresses(x)[:, : x.shape[1] // 100 * 100].unflatten(1, (-1, 100)).mean(2)
        x = torch.cat([whole, x], dim=1) if whole.shape[1] else x
        return (self.experts[0](x) @ self.read.weight).gather(-1, self.chooses(x).topk(2).indices)


def test_an_expert_that_these_tokens_do_not_choose_is_no_layer_without_use() -> None:
    assert uncalled(Routed()) == {"others.0": UNCALLED, "read": UNCALLED, "never": UNCALLED, "chooses": UNLED}


class Blocks(nn.Module):
    """Routed, as the first and only block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Routed()])

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        return self.blocks[0](input_ids, use_cache)


def test_layers_that_only_some_rows_reach_are_known() -> None:
    assert reach(Routed()).sometimes == {"compresses"}, "of the list of blocks all are called"
    assert reach(Blocks()).sometimes == {"blocks.0.compresses", *(f"blocks.0.experts.{i}.0" for i in range(3))}
    assert reach(tiny.make("llama")).sometimes == set()


def test_layers_that_wait_for_long_rows_do_not_stop_a_run_of_short_ones(place: Place) -> None:
    """Windows of 128 tokens are compressed; the rows have fewer."""
    sizes = {"q_lora_rank": 16, "o_lora_rank": 8, "o_groups": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
    sizes |= {
        "moe_intermediate_size": 24,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 2,
        "sliding_window": 8,
    }
    kinds = {"layer_types": ["heavily_compressed_attention"], "mlp_layer_types": ["moe"], "num_hidden_layers": 1}
    saved("deepseek_v4", {**SMALL, **sizes, **kinds, "num_key_value_heads": 1, "head_dim": 8}, place.root / "base")
    run = place.train("training.max_steps=2", "training.epochs=null")
    said = json.loads((run / "run.json").read_text())["checks"]["gradients"]
    sites = json.loads((run / "last" / "lrft.json").read_text())["sites"]
    compressor = [site["name"] for site in sites if ".compressor." in site["name"]]
    assert len(compressor) == 2
    assert said.startswith(f"gradients reach {2 * len(sites) - 4} of {2 * len(sites)} tensors")
    assert said.endswith(f"other rows can reach {compressor[1]}.A, {compressor[1]}.B, {compressor[0]}.A and 1 more")


def test_sparse_attention_answers_as_stock_transformers_does(tmp_path: Path) -> None:
    """Its code makes the choice of tokens a mask where the attention is called sdpa, and none under another name."""
    sparse = {**LATENT, "num_key_value_heads": 4, "index_topk": 2, "index_n_heads": 2, "index_head_dim": 8}
    folder = saved("deepseek_v32", sparse, tmp_path)
    ids = torch.arange(5, 45)[None]
    stock = transformers.DeepseekV32ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.allclose(tiny.logits(load_model(folder, dtype=torch.float32), ids), tiny.logits(stock, ids), atol=1e-5)
    assert (
        load_model(saved("llama", SMALL, tmp_path / "llama"), dtype=torch.float32).config._attn_implementation
        == "rowwise_sdpa"
    )


@pytest.mark.parametrize("asked", ["auto", "sdpa"])
def test_each_part_keeps_the_kernels_that_it_has(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower without SDPA, experts in a part of the model; a pass without content puts all back."""
    monkeypatch.setattr(transformers.CLIPVisionModel, "_supports_sdpa", False)
    folder = saved("llava", LLAVA | {"text_config": {**ROUTED, "model_type": "mixtral"}}, tmp_path)
    model: Any = load_model(folder, dtype=torch.float32, attention=asked)
    kernels = {"": "rowwise_sdpa", "text_config": {"": "rowwise_sdpa"}, "vision_config": {"": "eager"}}
    assert kernels_of(model.config) == kernels
    text = model.model.language_model
    experts = text.get_experts_implementation()
    with fake_kernels.imagined_kernels(model):
        assert text.config._attn_implementation == fake_kernels.KERNEL
        assert text.config._experts_implementation == fake_kernels.EXPERTS
    assert kernels_of(model.config) == kernels
    assert text.get_experts_implementation() == experts


class Seeing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(3, 3)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, use_cache: bool) -> Tensor:
        return self.read(pixel_values)


class Hearing(Seeing):
    """Each token is a row of codes."""

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        return self.read((input_ids + torch.zeros(33)).float())


@pytest.mark.parametrize(
    ("made", "reason"), [(Seeing, "missing.*pixel_values"), (Hearing, r"size of tensor a \(8\) must match")]
)
def test_a_model_that_wants_more_than_text_is_refused_by_name(made: type[nn.Module], reason: str) -> None:
    with pytest.raises(LrftError, match=f"^{made.__name__} cannot answer text alone: .*{reason}"):
        uncalled(made())


def test_a_pattern_takes_the_layers_that_text_reaches_and_one_that_means_no_other_is_refused() -> None:
    model = model_of("llava", LLAVA)
    choice = chosen(model, target_modules=["q_proj"])
    assert [name.split(".")[1] for name in choice.found] == ["language_model"] * 2
    assert [name.split(".")[1] for name in choice.left_out] == ["vision_tower"]
    with pytest.raises(RecipeError, match=r"fc1 matches model\.vision_tower.*not called in a forward pass over text"):
        chosen(model, target_modules=["q_proj", "fc1"])
    # A loop of one's own may have pictures: nothing is known of what is called there.
    assert lrft.attach(model, {"rank": 2, "target_modules": ["fc1"]}).sites


@pytest.mark.parametrize(("kind", "words"), [("mamba", MAMBA), ("mllama", CROSS)])
def test_attach_leaves_out_what_training_leaves_out_and_says_it(kind: str, words: dict[str, Any]) -> None:
    expected = chosen(model_of(kind, words))
    assert UNCALLED in expected.left_out.values()
    attached = lrft.attach(model_of(kind, words), {"rank": 2})
    assert list(attached.modules) == list(expected.found)
    assert attached.left_out == expected.left_out


def test_attach_takes_what_is_no_language_model_as_it_is() -> None:
    class Blind(nn.Module):  # wants more than text
        main_input_name, config = "input_ids", transformers.LlamaConfig()

        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(4, 4)

        def can_generate(self) -> bool:
            return True

    for model in (nn.Sequential(nn.Linear(4, 4)), Blind()):
        attached = lrft.attach(model, {"rank": 2})
        assert len(attached.modules) == 1
        assert attached.left_out == {}


# --- layers that cannot carry an adapter


class Scores(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y, y.topk(1).indices


class Transposed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize(("made", "fits"), [(nn.Linear, True), (Transposed, True), (Scores, False)])
def test_a_linear_layer_with_more_to_return_is_known_without_content(made: type[nn.Linear], fits: bool) -> None:
    assert unfit.returns_product(made(3, 4)) is fits
    with torch.device("meta"):
        assert unfit.returns_product(made(3, 4)) is fits


def test_all_linear_leaves_out_aloud_what_cannot_carry_an_adapter() -> None:
    layers = [nn.Linear(4, 4), Scores(4, 4), nn.Linear(4, 1), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(1, 4)]
    model = nn.Sequential(*layers)
    model[4].weight = model[3].weight
    choice = targets.choose(model, recipe.parse_adapter({"rank": 2}), lambda key: key)
    assert list(choice.found) == ["0"]
    assert choice.left_out == {
        **{"1": unfit.UNLIKE, "2": targets.THIN, "3": unfit.SHARED, "4": unfit.SHARED, "5": targets.THIN},
    }
    assert choice.lines()[0] == "1 linear layer (1): its output is more than a matrix product with its weight"
    for word in ("1", "3"):
        with pytest.raises(RecipeError, match=r"cannot have an adapter|could not be merged"):
            lrft.attach(model, {"rank": 1, "target_modules": [word]})
    assert [site.name for site in lrft.attach(model, {"rank": 1, "target_modules": ["2"]}).sites] == ["2"]


def test_routers_that_are_linear_layers_do_not_stop_a_pass() -> None:
    model = model_of("phimoe", ROUTED)
    attached = lrft.attach(model, {"rank": 2})
    assert not any("router" in name for name in attached.modules)
    assert tiny.logits(model, tiny.tokens()).isfinite().all()


def test_pissa_starts_on_a_model_whose_gates_have_one_output() -> None:
    attached = lrft.attach(model_of("qwen2_moe", GATED), {"rank": 2, "method": "pissa"})
    assert not any("shared_expert_gate" in name for name in attached.modules)


def test_experts_of_two_dimensions_are_said() -> None:
    words = {"d_model": 24, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": 97, **IDS}
    ffn = {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 24}
    model = model_of("dbrx", {**words, "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}, "ffn_config": ffn})
    section = recipe.parse_adapter({"rank": 2})
    attached, composition = attach_adapter(model, section, seed=0)
    (said,) = composition_warnings(composition, attached.sites, model)
    assert said.endswith(": mlp.w1, mlp.v1, mlp.w2")
    assert "linear layers" in said


def test_rwkv_answers_without_writing_to_its_weights(tmp_path: Path) -> None:
    words = {"vocab_size": 97, "hidden_size": 24, "attention_hidden_size": 24, "num_hidden_layers": 7, **IDS}
    folder = saved("rwkv", {**words, "context_length": 64, "rescale_every": 2}, tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model = load_model(folder, dtype=torch.float32)
    before = [parameter._version for parameter in model.parameters()]
    assert torch.allclose(tiny.logits(model, tiny.tokens()), tiny.logits(stock, tiny.tokens()), atol=1e-3)
    assert [parameter._version for parameter in model.parameters()] == before


def test_a_model_that_cannot_compute_its_blocks_again_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match=r"training.gradient_checkpointing: LlamaForCausalLM does not support it"):
        place.train("training.gradient_checkpointing=full")


# --- plans


@pytest.mark.parametrize(
    ("kind", "words"),
    [("mixtral", ROUTED), ("deepseek_v3", LATENT), ("llava", LLAVA), ("qwen2_moe", GATED), ("phimoe", ROUTED)],
)
def test_what_a_pass_keeps_is_found_for_experts_and_other_attention(
    tmp_path: Path, kind: str, words: dict[str, Any]
) -> None:
    """Of a fake model what a real one keeps with the same kernels."""
    folder = saved(kind, words, tmp_path)
    model = load_model(folder, dtype=torch.float32)
    sites = lrft.attach(model, {"rank": 2}).sites
    real = activation_memory.kept_by(model.train(), activation_memory.Batch([40])).size
    with imagine_quantized(folder, dtype=torch.float32) as fake:
        attach_sites(fake, sites, compose.compose([("lora", {})]), seed=0, fresh=False)
        found = activation_memory.kept_by(fake.train(), activation_memory.Batch([40])).size
    assert found == pytest.approx(real, rel=0.02)


def test_a_model_that_computes_token_by_token_is_followed_through_few(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mamba", MAMBA)
    lrft.attach(model, {"rank": 2, "target_modules": ["in_proj"]})
    whole = activation_memory.kept_by(model.train(), activation_memory.Batch([100])).size
    asked: list[int] = []
    one_pass = activation_memory.kept_in_pass
    monkeypatch.setattr(
        activation_memory,
        "kept_in_pass",
        lambda model, batch: (asked.append(batch.tokens), one_pass(model, batch))[1],
    )
    found = activation_memory.kept_for(model, activation_memory.Batch([100]))
    assert asked == [16, 32, 48]
    assert found.row == 24 * 4
    assert found.size == pytest.approx(whole, rel=0.02)
    asked.clear()
    activation_memory.kept_for(tiny.make("llama"), activation_memory.Batch([100]))
    assert asked == [16, 32, 100], "one without a loop is asked for all tokens"


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_the_experts_of_a_plan_keep_what_those_of_a_run_keep(experts: str) -> None:
    """Against transformers' own kernels."""
    model = model_of("mixtral", {**ROUTED, "num_hidden_layers": 1})
    lrft.attach(model, {"rank": 2, "target_modules": ["q_proj"]})
    planned = activation_memory.kept_by(model.train(), activation_memory.Batch([400])).size
    model.set_experts_implementation(experts)
    with activation_memory.keeping(model) as kept:
        model.model(input_ids=torch.randint(3, 97, (1, 400)), use_cache=False)
    assert planned == pytest.approx(activation_memory.size_of(kept), rel=0.15)


@pytest.mark.parametrize(
    ("kind", "words", "form"),
    [
        ("gpt2", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4}, "rowwise"),
        ("llama", SMALL, "rowwise"),
        ("mistral", {**SMALL, "sliding_window": 24}, "rowwise"),
        ("deepseek_v3", LATENT, "rowwise"),
        ("gemma2", {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8}, "packed"),
        ("gemma2", {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8}, "padded"),
        ("bloom", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "padded"),
    ],
)
def test_what_a_plan_says_is_kept_is_what_a_run_keeps(
    tmp_path: Path, kind: str, words: dict[str, Any], form: Form
) -> None:
    """Rows laid end to end, or padded, as a run on a CPU lays them: with dropout attention keeps whole matrices, and
    without fused attention of unlike rows side by side as well."""
    lengths = [60, 100, 40]
    tokens = (np.arange(n, dtype=np.int32) % 90 + 3 for n in lengths)
    rows = Rows.of([Row(one, np.ones(len(one), dtype=bool), 1, "", "t.jsonl:", 1) for one in tokens])
    folder = saved(kind, words, tmp_path)
    model = load_model(folder, dtype=torch.float32)
    sites = lrft.attach(model, {"rank": 2}).sites
    batch = collate(rows, range(len(lengths)), pad_id=0, form=form)
    batch.pop("labels")
    with activation_memory.keeping(model.train()) as kept:
        decoder_of(model)(**batch, use_cache=False)
    planned = [max(lengths)] * len(lengths) if form == "padded" else lengths
    with imagine_quantized(folder, dtype=torch.float32) as fake:
        attach_sites(fake, sites, compose.compose([("lora", {})]), seed=0, fresh=False)
        asked = activation_memory.Batch(planned, packed=kind == "bloom" or form != "padded")
        found = activation_memory.kept_by(fake.train(), asked)
    assert found.size == pytest.approx(activation_memory.size_of(kept), rel=0.03)


def test_a_plan_counts_the_backward_pass_through_experts(tmp_path: Path) -> None:
    """Their products are wider than any linear layer, once more for each expert of a token."""
    with imagine_quantized(saved("mixtral", ROUTED, tmp_path), dtype=torch.float32) as fake:
        lrft.attach(fake, {"rank": 2, "target_modules": ["q_proj"]})
        found = activation_memory.activations(fake.train(), activation_memory.Batch([100, 100]), kind="none")
    assert found.moment == 2 * 200 * 2 * (2 * 40) * 4, "the gradient and its value, of gate and up for two experts each"


def test_a_plan_leaves_no_mask_without_content_to_a_run(tmp_path: Path) -> None:
    words = {**SMALL, "sliding_window": 24}
    with imagine_quantized(saved("mistral", words, tmp_path), dtype=torch.float32) as fake:
        lrft.attach(fake, {"rank": 2})
        activation_memory.kept_by(fake.train(), activation_memory.Batch([60]))
    assert type(window_mask(60, 24, torch.device("cpu"))) is Tensor


def test_a_plan_that_cannot_be_made_is_one_sentence() -> None:
    def asking(**_: Any) -> Tensor:
        raise RuntimeError("what is in it?\nmore")

    model = tiny.make("llama")
    model.get_decoder().forward = asking
    with pytest.raises(
        LrftError, match=r"cannot estimate the memory of LlamaForCausalLM.*\(RuntimeError: what is in it\?\)$"
    ):
        activation_memory.kept_by(model, activation_memory.Batch([4]))


def test_the_decoder_makes_no_logits() -> None:
    words = {"num_local_experts": 2, "moe_layers": [1], "no_rope_layers": [1, 0], "interleave_moe_layer_step": 2}
    model = model_of("llama4_text", {**SMALL, "head_dim": 8, "intermediate_size_mlp": 40, **words})
    assert decoder_of(model) is model.model
    llama = tiny.make("llama")
    assert decoder_of(llama) is llama.model
    named_so = model_of("modernbert-decoder", SMALL)
    assert decoder_of(named_so) is named_so.model
    assert len(chosen(named_so).found) > 2


def test_a_head_that_the_language_model_inside_names_is_no_target_of_all_linear() -> None:
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"text_config": {**SMALL, "encoder_hidden_size": 24}, "vision_config": {**tower, "image_size": 32}}
    model = model_of("blip", words)
    assert model.get_output_embeddings() is None
    head = model.text_decoder.cls.predictions.decoder
    assert head_of(model) is head
    assert decoder_of(model) is model.text_decoder.bert
    choice = targets.choose(model, recipe.parse_adapter({"rank": 2}), lambda key: key)
    assert choice.found
    assert all(module is not head for module in choice.found.values())
    assert "text_decoder.cls.predictions.decoder" not in choice.left_out


# --- rows


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"text": "a cat", "image": "cat.png"}, "image"),
        ({"messages": [], "images": [{"bytes": b"", "path": "cat.png"}]}, "images"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"content": [{"type": "text"}, {"type": "image_url"}]}]}, "messages[0].content[1]"),
        ({"conversations": [{"from": "human", "value": [{"type": "input_audio"}]}]}, "conversations[0].value[0]"),
    ],
)  # fmt: skip
def test_rows_with_pictures_are_refused_by_name(row: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRow, match="only text is trained") as caught:
        pictures.refuse(row)
    assert caught.value.field == field


def test_rows_without_pictures_are_not(place: Place) -> None:
    for row in ({"text": "a", "image": None, "images": []}, {"messages": [{"content": [{"type": "text"}]}]}):
        pictures.refuse(row)
    made = [{**row, "image": "cat.png"} for row in runs.rows(2)]
    runs.write_rows(place.root / "train.jsonl", made)
    assert run_command(["check", str(place.root / "recipe.yaml")]) != 0
