"""The adapter folder: strict when read, PEFT's own when written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from stored import replace_tensors, save
from torch import nn

import lrft
from lrft.adapters.storage import read_adapter
from lrft.errors import CheckFailed, LrftError, UsageError

PEFT, OWN = "adapter_model.safetensors", "lrft.safetensors"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lora", {PEFT}),
        (["rslora", "dora", "lora+"], {PEFT}),
        ("pissa", {PEFT, OWN}),
        (["pissa", "dora"], {PEFT, OWN}),
        ("mora", {OWN}),
        (["mora", "dora"], {OWN}),
    ],
)
def test_files_and_round_trip(words: Any, expected: set[str], tmp_path: Path) -> None:
    """Trust 47."""
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = save(tmp_path, words, model)
    config = {"adapter_config.json"} if PEFT in expected else set()
    assert {path.name for path in tmp_path.iterdir()} == expected | {"lrft.json"} | config
    other = tiny.make("llama")
    loaded = lrft.load_adapter(other, tmp_path)
    assert torch.equal(tiny.logits(other, ids), tiny.logits(model, ids))
    assert loaded.sites == attached.sites
    assert loaded.methods == attached.methods


@pytest.mark.parametrize("words", ["lora", "pissa", "mora"])
def test_any_flipped_bit_any_cut_and_any_missing_file_is_found_and_named(words: str, tmp_path: Path) -> None:
    """Trust 32."""
    save(tmp_path, words, target_modules="q_proj")
    read = [PEFT if words == "lora" else OWN, "lrft.json"]
    for name in read:
        path, good = tmp_path / name, (tmp_path / name).read_bytes()
        damaged = [good[: len(good) * part // 16] for part in range(16)]
        for at in (0, 9, len(good) // 3, len(good) // 2, len(good) - 3):
            damaged.append(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        for bad in damaged:
            path.write_bytes(bad)
            with pytest.raises(CheckFailed, match=name):
                read_adapter(tmp_path)
        path.unlink()
        with pytest.raises((CheckFailed, UsageError), match=name):
            read_adapter(tmp_path)
        path.write_bytes(good)
    read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {k: v for k, v in t.items() if "1.self_attn.v_proj.lora_B" not in k}, "v_proj: tensors missing"),
        (
            lambda t: {**t, next(iter(t)).replace("lora_A", "lora_C"): torch.ones(1)},
            "lora_C.weight does not belong to any adapted layer",
        ),
        (lambda t: {**t, "stranger": torch.ones(1)}, "stranger does not belong to any adapted layer"),
        (lambda t: {k: v * float("nan") if "o_proj.lora_A" in k else v for k, v in t.items()}, "o_proj.A:.*not finite"),
        (lambda t: {k: v * float("inf") if "o_proj.lora_B" in k else v for k, v in t.items()}, "not finite"),
        (lambda t: {k: v[:, :-1].contiguous() for k, v in t.items()}, "shape"),
        (lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()}, "missing|belongs"),
        (lambda t: {}, "missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Any, sentence: str, tmp_path: Path) -> None:
    """Trust 25."""
    save(tmp_path)
    replace_tensors(tmp_path, lambda t: t)
    read_adapter(tmp_path)
    replace_tensors(tmp_path, change)
    with pytest.raises(CheckFailed, match=sentence) as caught:
        read_adapter(tmp_path)
    assert PEFT in caught.value.message


def test_a_factor_changed_by_hand_is_found(tmp_path: Path) -> None:
    save(tmp_path)
    text = (tmp_path / "lrft.json").read_text()
    assert text.count('"scale": 2.0') > 3
    (tmp_path / "lrft.json").write_text(text.replace('"scale": 2.0', '"scale": 1.0', 1))
    with pytest.raises(CheckFailed, match=r"lrft.json is not the file that was saved"):
        read_adapter(tmp_path)


def test_spacing_and_order_of_lrft_json_are_free(tmp_path: Path) -> None:
    save(tmp_path)
    info = json.loads((tmp_path / "lrft.json").read_text())
    before = read_adapter(tmp_path)
    (tmp_path / "lrft.json").write_text(json.dumps(dict(reversed(info.items()))))
    assert read_adapter(tmp_path).sites == before.sites


@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"', "{", "null", '{"format": "new"}'])
def test_lrft_json_that_is_none(text: str, tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "lrft.json").write_text(text)
    with pytest.raises(LrftError, match=r"lrft.json|newer"):
        read_adapter(tmp_path)


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    save(tmp_path)
    info = json.loads((tmp_path / "lrft.json").read_text())
    (tmp_path / "lrft.json").write_text(json.dumps(info | {"format": 2, "unheard": "of"}))
    with pytest.raises(LrftError, match=r"written by a newer lrft \(format 2, this one reads 1\)"):
        read_adapter(tmp_path)


def test_a_folder_that_is_no_adapter(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="is not an adapter folder of lrft"):
            read_adapter(folder)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / PEFT).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckFailed, match=rf"{PEFT} is missing"):
        read_adapter(tmp_path)


def test_another_model_is_refused_with_the_layer_and_left_alone(tmp_path: Path) -> None:
    save(tmp_path)
    for model, sentence in (
        (tiny.make("gpt2"), "no linear layer model.layers.0.self_attn.q_proj"),
        (tiny.llama(layers=1), "no linear layer model.layers.1.self_attn.q_proj"),
    ):
        with pytest.raises(CheckFailed, match=sentence):
            lrft.load_adapter(model, tmp_path)
    wider = tiny.make("llama")
    wider.model.layers[1].mlp.up_proj = nn.Linear(24, 45, bias=False)
    with pytest.raises(CheckFailed, match="up_proj is 45 x 24 in this model, 44 x 24 in the adapter"):
        lrft.load_adapter(wider, tmp_path)
    assert all(p.requires_grad for p in wider.parameters())


class Pair(nn.Module):
    """Two layers of one shape, registered in either order."""

    def __init__(self, order: tuple[str, str]) -> None:
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(4, 4))


def test_modules_in_another_order_get_their_own_tensors(tmp_path: Path) -> None:
    attached = save(tmp_path, model=Pair(("a", "b")))
    other = Pair(("b", "a"))
    lrft.load_adapter(other, tmp_path)
    for name, adapter in attached.modules.items():
        assert torch.equal(other.get_submodule(name).adapter.A, adapter.tensors()["A"])
    assert not torch.equal(other.a.adapter.A, other.b.adapter.A)


def test_a_name_that_begins_another_is_kept_apart(tmp_path: Path) -> None:
    model = nn.Module()
    model.a = nn.Linear(3, 3)
    model.a.b = nn.Linear(3, 3)
    attached = save(tmp_path, model=model)
    assert list(attached.modules) == ["a", "a.b"]
    saved = read_adapter(tmp_path)
    for name, adapter in attached.modules.items():
        assert torch.equal(saved.tensors[name]["A"], adapter.tensors()["A"])


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


def test_the_peft_config_names_words_where_they_mean_the_sites_and_whole_names_else(tmp_path: Path) -> None:
    save(tmp_path, target_modules=["q_proj", "v_proj"])
    assert config_of(tmp_path)["target_modules"] == ["q_proj", "v_proj"]
    save(tmp_path, target_modules=["q_proj", "v_proj"], layers=[1])
    attention = "model.layers.1.self_attn"
    assert config_of(tmp_path)["target_modules"] == [f"{attention}.q_proj", f"{attention}.v_proj"]


def test_the_peft_config_holds_ranks_factors_orientation_and_dropout(tmp_path: Path) -> None:
    overrides = {"k_proj": {"rank": 3}, "v_proj": {"scale": 0.25}, "o_proj": {"rank": 4, "alpha": 4.0}}
    save(tmp_path, overrides=overrides, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], dropout=0.125)
    config = config_of(tmp_path)
    ends = {f"model.layers.{depth}.self_attn.{word}": word for depth in (0, 1) for word in overrides}
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 4.0, 0.125)
    ranks, alphas = {"k_proj": 3, "o_proj": 4}, {"k_proj": 6.0, "v_proj": 0.5}
    assert config["rank_pattern"] == {name: ranks[word] for name, word in ends.items() if word in ranks}
    assert config["alpha_pattern"] == {name: alphas[word] for name, word in ends.items() if word in alphas}
    assert config["fan_in_fan_out"] is False
    assert config["use_dora"] is False
    assert config["peft_type"] == "LORA"
    save(tmp_path, "dora", tiny.make("gpt2"))
    assert config_of(tmp_path)["fan_in_fan_out"] is True
    assert config_of(tmp_path)["use_dora"] is True


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("words", ["lora", "pissa", "dora", ["rslora", "dora"], ["pissa", "dora"]], ids=str)
def test_stock_peft_loads_the_folder_without_a_warning(
    words: Any, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from peft import PeftModel

    ours = tiny.make(model)
    kept = {"overrides": {"*.1.mlp.*": {"rank": 3}}, "layers": [0, 1]}
    save(tmp_path, words, ours, **kept)
    with caplog.at_level(logging.WARNING):  # and Python's own warnings are errors in every test
        theirs = PeftModel.from_pretrained(tiny.make(model), tmp_path)
    # The first import of bitsandbytes says what it lacks on a CPU.
    assert [record for record in caplog.records if not record.name.startswith("bitsandbytes")] == []
    assert torch.allclose(tiny.logits(theirs, tiny.tokens()), tiny.logits(ours, tiny.tokens()), atol=1e-5)


def test_an_earlier_folder_leaves_nothing_behind_that_contradicts(tmp_path: Path) -> None:
    """What is read is what lrft.json lists, whatever else lies there."""
    save(tmp_path, "pissa")
    attached = save(tmp_path, "lora")
    saved = read_adapter(tmp_path)
    assert saved.info["tensors"] == PEFT
    assert saved.tensors.keys() == attached.modules.keys()
