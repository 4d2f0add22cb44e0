"""Which layers a recipe means, and what is said when it means none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import lrft
from lrft import recipe
from lrft.adapters import targets
from lrft.adapters.attach import attach_adapter, composition_warnings
from lrft.adapters.storage import save_adapter
from lrft.errors import RecipeError
from lrft.export.merge import merge_adapter

BLOCK = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def names(model: str | nn.Module = "llama", **words: Any) -> list[str]:
    built = tiny.make(model) if isinstance(model, str) else model
    return [site.name.removeprefix("model.layers.") for site in lrft.attach(built, {"rank": 1, **words}).sites]


def complaint(model: str | nn.Module = "llama", **words: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        names(model, **words)
    return "\n".join(caught.value.lines())


def both(ends: list[str]) -> list[str]:
    return [f"{depth}.{end}" for depth in (0, 1) for end in ends]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, both(BLOCK + MLP)),
        ({"target_modules": "all-linear"}, both(BLOCK + MLP)),
        ({"target_modules": ["q_proj"]}, both(BLOCK[:1])),
        ({"target_modules": "self_attn.q_proj"}, both(BLOCK[:1])),
        ({"target_modules": ["v_proj", "q_proj"]}, both(["self_attn.q_proj", "self_attn.v_proj"])),  # the model's order
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, ["1.mlp.up_proj"]),
        ({"target_modules": ["1.mlp.up_proj"]}, ["1.mlp.up_proj"]),
        ({"target_modules": ["mlp.*"]}, both(MLP)),
        ({"target_modules": ["layers.1.*"]}, [f"1.{end}" for end in BLOCK + MLP]),
        ({"target_modules": ["[qv]_proj"]}, both(["self_attn.q_proj", "self_attn.v_proj"])),
        ({"target_modules": ["?_proj"]}, both(BLOCK)),
        ({"target_modules": [r"re:.*\.1\..*(up|down)_proj"]}, ["1.mlp.up_proj", "1.mlp.down_proj"]),
        ({"target_modules": ["all-linear"], "exclude_modules": ["mlp.*", "o_proj"]}, both(BLOCK[:3])),
        ({"layers": [1]}, [f"1.{end}" for end in BLOCK + MLP]),
        ({"layers": "0-0", "target_modules": "q_proj"}, ["0.self_attn.q_proj"]),
        ({"target_modules": ["all-linear", "lm_head"]}, [*both(BLOCK + MLP), "lm_head"]),
        ({"target_modules": ["lm_head"]}, ["lm_head"]),
    ],
)
def test_words_globs_and_expressions(words: dict[str, Any], expected: list[str]) -> None:
    assert names(**words) == expected


@pytest.mark.parametrize(
    ("pattern", "name", "meant"),
    [
        ("proj", "a.q_proj", False),  # an end after a dot, not any end
        ("q_proj", "a.q_proj", True),
        ("a.q_proj", "a.q_proj", True),
        ("q.proj", "a.q_proj", False),  # a dot is a dot
        ("q_proj", "a.q_proj.base", False),
        ("*proj", "a.q_proj", True),
        ("b.*", "a.b.c", True),
        ("b.*", "a.bb.c", False),
        ("re:q_proj", "a.q_proj", False),  # the whole name
        ("re:.*q_proj", "a.q_proj", True),
        ("Q_PROJ", "a.q_proj", False),
    ],
)
def test_matches(pattern: str, name: str, meant: bool) -> None:
    assert targets.matches(pattern, name) is meant


def test_all_linear_leaves_the_output_head_out_whatever_its_name() -> None:
    model = tiny.make("llama")
    model.output = model.lm_head
    del model.lm_head
    model.set_output_embeddings = lambda head: None
    model.get_output_embeddings = lambda: model.output
    found = lrft.attach(model, {"rank": 1}).modules
    assert len(found) == 14
    assert "output" not in found


def test_gpt2_layers_are_found_with_their_orientation() -> None:
    attached = lrft.attach(tiny.make("gpt2"), {"rank": 1})
    first = attached.sites[:4]
    shapes = {site.name.removeprefix("transformer.h.0."): (site.d, site.k, site.transposed) for site in first}
    assert shapes == {
        "attn.c_attn": (72, 24, True),
        "attn.c_proj": (24, 24, True),
        "mlp.c_fc": (96, 24, True),
        "mlp.c_proj": (24, 96, True),
    }
    assert [site.depth for site in attached.sites] == [0] * 4 + [1] * 4


def test_one_wrong_name_among_good_ones_is_an_error_with_the_closest_name() -> None:
    """Trust 19."""
    said = complaint(target_modules=["q_proj", "v_porj"])
    assert "adapter.target_modules: v_porj matches no module of this model. Close: v_proj" in said
    assert "Linear layers: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in said


def test_all_mistakes_are_said_at_once() -> None:
    """Trust 22."""
    said = complaint(target_modules=["q_prj", "re:x.*"], exclude_modules=["c_attn"], layers=[1, 2, 5])
    assert "q_prj matches no module" in said
    assert "re:x.* matches no module" in said
    assert "adapter.exclude_modules: c_attn matches no module" in said
    assert "adapter.layers: 2, 5 not in this model, whose layers are 0 to 1" in said
    assert "4 problems" in said


@pytest.mark.parametrize(
    ("word", "kind"), [("embed_tokens", "an Embedding"), ("mlp", "a LlamaMLP"), ("input_layernorm", "a LlamaRMSNorm")]
)
def test_what_is_no_linear_layer_is_called_what_it_is(word: str, kind: str) -> None:
    assert f"{word} matches {kind}, which is not a linear layer" in complaint(target_modules=[word])


def test_nothing_left_is_an_error() -> None:
    assert "select no linear layer" in complaint(target_modules="q_proj", exclude_modules="*_proj")
    assert "select no linear layer" in complaint(target_modules="lm_head", layers=[0])
    assert "select no linear layer" in complaint(nn.Sequential(nn.ReLU()))


def test_a_layer_that_is_the_whole_model_is_not_adapted_in_vain() -> None:
    """There is no parent to put another layer into: the adapter would be trained by nothing."""
    assert "select no linear layer" in complaint(nn.Linear(3, 4))


def test_an_override_that_matches_nothing_is_an_error() -> None:
    said = complaint(target_modules="q_proj", overrides={"q_proj": {"rank": 2}, "v_proj": {"rank": 2}})
    assert "adapter.overrides: v_proj matches no adapted layer" in said
    assert "1 problem" in said


def test_excluding_the_head_is_no_error_where_there_is_none() -> None:
    assert names(nn.Sequential(nn.Linear(2, 2))) == ["0"]


@pytest.mark.parametrize("model", ["llama-tied", "gpt2"])
def test_a_tied_head_is_refused(model: str) -> None:
    """Trust 29."""
    said = complaint(model, target_modules=["lm_head"])
    assert "lm_head shares its weight with" in said
    assert "could not be merged" in said


def test_a_layer_that_is_used_in_two_places_is_refused_and_a_block_used_twice_is_not() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = self.one

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    assert "one shares its weight with two" in complaint(Twice())
    assert "shares its weight with" in complaint(Tied())
    block = nn.Sequential(nn.Linear(3, 3))
    model = nn.Sequential(block, block)
    attached = lrft.attach(model, {"rank": 1})
    tiny.disturb(list(attached.trained().values()))
    assert list(attached.modules) == ["0.0"]
    assert len(attached.layers()) == 1
    assert model[1][0] is model[0][0]


def test_an_untied_head_trains_and_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    base = tiny.save(tiny.make("llama"), tmp_path / "base")
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"rank": 2, "target_modules": ["lm_head"]})
    tiny.disturb(list(attached.trained().values()))
    (tmp_path / "adapter").mkdir()
    save_adapter(attached, tmp_path / "adapter", base={"name": str(base)})
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(tiny.logits(merged, ids), tiny.logits(model, ids), atol=1e-5)
    assert torch.equal(merged.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_experts_that_no_adapter_reaches_are_said() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=97,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )
    assert targets.stacked_share(model) > 0.2
    assert targets.stacked_share(tiny.make("llama")) == targets.stacked_share(tiny.make("gpt2")) == 0.0
    section = recipe.parse_adapter({"rank": 2})
    attached, composition = attach_adapter(model, section, seed=0)
    assert any("experts" in text for text in composition_warnings(composition, attached.sites, model))
