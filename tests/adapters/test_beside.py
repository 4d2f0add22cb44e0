"""What is trained beside the adapters: alike in lrft's folder, in PEFT's and in the merged model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import cases
import pytest
import tiny
import tiny_tokenizers
import torch
from on_disk import save_base
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import lrft
from lrft import recipe
from lrft.adapters.attach import attach_adapter
from lrft.adapters.beside import count_trained, names_for
from lrft.adapters.start_from import start_from
from lrft.adapters.storage import load_adapter, read_adapter, save_adapter
from lrft.errors import CheckFailed, RecipeError
from lrft.export.merge import merge_adapter
from lrft.inspection.inspect import inspect_adapter
from lrft.model.load import load_model
from lrft.model.weights import fingerprint
from lrft.optim.named_state import grouped

IDS = tiny.tokens()
ROWS = (3, 4, 60)
EMBEDDING = {"llama": "embed_tokens", "llama-tied": "embed_tokens", "gpt2": "wte"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


def attach(model: Any, tokens: tuple[int, ...] = (), **section: Any) -> Any:
    return attach_adapter(model, recipe.parse_adapter({"method": "lora", "rank": 3, **section}), seed=0, tokens=tokens)[
        0
    ]


def save(attached: Any, base: Path, folder: Path, **info: Any) -> Path:
    folder.mkdir()
    save_adapter(
        attached, folder, base={"name": str(base), "revision": None, "fingerprint": fingerprint(base), **info}, seed=0
    )
    return folder


def close(model: Any, expected: torch.Tensor, ids: torch.Tensor = IDS) -> bool:
    return torch.allclose(tiny.logits(model.eval(), ids), expected, atol=2e-5)


def stock(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


SECTIONS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("llama", {"norms": True}, ()),
    ("llama", {"modules_to_save": ["lm_head", "re:.*embed_tokens"]}, ROWS[:0]),
    ("llama", {"modules_to_save": ["o_proj"]}, ROWS),
    ("llama", {"train_tokens_in": "both"}, ROWS),
    ("llama", {"train_tokens_in": "head", "norms": True}, ROWS),
    ("llama-tied", {}, ROWS),
    ("llama-tied", {"modules_to_save": ["lm_head"], "untie": True}, ROWS),
    ("llama-tied", {"modules_to_save": ["embed_tokens"], "untie": True, "norms": True}, ()),
    ("gpt2", {"biases": "adapted", "target_modules": ["c_attn"]}, ()),
    ("gpt2", {"biases": "all", "norms": True}, ROWS),
    ("gpt2", {"biases": "all", "modules_to_save": ["wte", "lm_head"], "untie": True}, ()),
]


@pytest.mark.parametrize(("name", "section", "tokens"), SECTIONS)
def test_adapter_merged_model_and_stock_peft_answer_alike(
    name: str, section: dict[str, Any], tokens: tuple[int, ...], tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base", name)
    model = load_model(base, dtype=torch.float32)
    plain = tiny.logits(model, IDS)
    attached = attach(model, tokens, **section)
    assert torch.allclose(tiny.logits(model, IDS), plain, atol=1e-6)
    tiny.disturb(list(attached.trained().values()))
    expected = tiny.logits(model, IDS)
    assert not torch.allclose(expected, plain, atol=1e-2)
    with attached.disabled():
        assert torch.equal(tiny.logits(model, IDS), plain)
    folder = save(attached, base, tmp_path / "adapter")
    again = load_model(base, dtype=torch.float32)
    load_adapter(again, folder)
    assert torch.equal(tiny.logits(again, IDS), expected)
    merged = merge_adapter(folder, tmp_path / "merged")
    found, loading = AutoModelForCausalLM.from_pretrained(merged.out, output_loading_info=True)
    assert not any(loading.values())
    assert close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of tied weights that part
        assert close(PeftModel.from_pretrained(stock(base), folder), expected)
    names = read_adapter(folder).beside
    assert {one.place for one in inspect_adapter(folder).beside} == set(names.places)
    assert all(one.norm for one in inspect_adapter(folder).beside)
    assert torch.equal(tiny.logits(attached.detach(), IDS), plain)


FOLDERS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"bias": "all", "modules_to_save": ["ln_f"]}),
    ("gpt2", {"bias": "lora_only"}),
    ("llama", {"modules_to_save": ["norm", "mlp"], "trainable_token_indices": [3, 9]}),
    ("llama", {"trainable_token_indices": {"embed_tokens": [3, 9], "lm_head": [5]}}),
    ("llama-tied", {"trainable_token_indices": [3, 9]}),
    ("llama-tied", {"trainable_token_indices": {"lm_head": [5, 9]}}),
    ("llama-tied", {"modules_to_save": ["embed_tokens"]}),
    ("llama-tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
]


def peft_folder(folder: Path, base: Path, **config: Any) -> Any:
    targets = ["c_attn"] if json.loads((base / "config.json").read_text())["model_type"] == "gpt2" else ["q_proj"]
    made = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=targets, **config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a layer that stores its weight transposed, of tied weights
        model: Any = get_peft_model(stock(base), made)
        tiny.disturb([p for p in model.parameters() if p.requires_grad], size=0.1)
        model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(("name", "config"), FOLDERS)
def test_a_folder_that_peft_made_is_loaded_merged_and_started_from(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    base, folder = save_base(tmp_path / "base", name), tmp_path / "adapter"
    expected = tiny.logits(peft_folder(folder, base, **config), IDS)
    loaded = stock(base).eval()
    lrft.load_adapter(loaded, folder)
    assert close(loaded, expected)
    assert close(stock(merge_adapter(folder, tmp_path / "merged").out), expected)


def test_rows_start_from_a_folder_of_peft(tmp_path: Path) -> None:
    base, folder = save_base(tmp_path / "base", "llama"), tmp_path / "adapter"
    expected = tiny.logits(peft_folder(folder, base, trainable_token_indices=[3, 9]), IDS)
    from lrft.adapters.peft_import import placed, read_any

    model = stock(base).eval()
    attached = attach(model, (9, 5, 3), target_modules=["q_proj"], rank=2)
    start_from(attached, placed(read_any(folder), model))
    assert close(model, expected)
    fewer = attach(stock(base), (9,), target_modules=["q_proj"], rank=2)
    with pytest.raises(ValueError, match=r"it holds row 3 of model.embed_tokens, which this run does not train"):
        start_from(fewer, read_any(folder))


def check_beside_a_method(case: str) -> None:
    """All of it at once changes neither what the method trains nor what it starts as, and reaches the loss."""
    plain = cases.attach(tiny.make("gpt2"), case)
    model, alone = tiny.make("gpt2"), set(plain.trained())
    tokenizer = tiny_tokenizers.chatml()
    words = [token for token, number in tokenizer.get_vocab().items() if number in ROWS]
    batches = [{"input_ids": ids, "labels": ids} for ids in (tiny.tokens(seed=8), tiny.tokens(seed=9))]
    section = {"norms": True, "biases": "all", "train_tokens": words}
    overrides = {cases.tiny_target(model): {"rank": cases.RANK + 2}}
    described = {"method": cases.CASES[case][0], "rank": cases.RANK, "overrides": overrides, **section}
    attached = lrft.attach(model, described, seed=0, batches=batches, tokenizer=tokenizer)
    beside = {name for name in attached.trained() if name not in alone}
    assert set(attached.trained()) - beside == alone
    numbers = sum(p.numel() for name, p in attached.trained().items() if name in beside)
    names = names_for(tiny.make("gpt2"), recipe.parse_adapter(described), list(attached.modules), tokens=ROWS)
    assert numbers == count_trained(tiny.make("gpt2"), names) > 0
    ids = torch.tensor([[*ROWS, 7, 8]])
    fresh = tiny.logits(plain.model.eval(), ids)
    assert torch.allclose(tiny.logits(model.eval(), ids), fresh, atol=1e-5)
    tiny.disturb([attached.trained()[name] for name in sorted(beside)])
    assert not torch.allclose(tiny.logits(model, ids), fresh, atol=1e-2)
    model(input_ids=ids).logits.square().sum().backward()
    assert all(attached.trained()[name].grad.abs().sum() > 0 for name in beside if "c_attn.bias" not in name)
    with attached.disabled():
        assert torch.equal(tiny.logits(model, ids), tiny.logits(tiny.make("gpt2"), ids))
    state = attached.state_dict()
    again = lrft.attach(tiny.make("gpt2"), described, seed=0, batches=batches, tokenizer=tokenizer)
    again.load_state_dict(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


FEW = [*("lora", "dora", "pissa", "vera", "hra", "galore", "adalora", "full")]


@pytest.mark.parametrize("case", FEW)
def test_it_stands_beside_a_method(case: str) -> None:
    check_beside_a_method(case)


@pytest.mark.all
@pytest.mark.parametrize("case", [case for case in cases.ON_GPT2 if case not in FEW])
def test_it_stands_beside_every_method(case: str) -> None:
    check_beside_a_method(case)


def test_over_half_precision_and_quantised_bases(tmp_path: Path) -> None:
    """Trained tensors are float32, outputs keep the base's dtype, and what is quantised is not trained in full."""
    base = save_base(tmp_path / "base", "gpt2")
    model = load_model(base, dtype=torch.bfloat16)
    plain = tiny.logits(model, IDS)
    attached = attach(model, ROWS, norms=True, biases="all")
    assert {p.dtype for p in attached.trained().values()} == {torch.float32}
    found = tiny.logits(model, IDS)
    assert found.dtype == plain.dtype
    assert torch.allclose(found.float(), plain.float(), atol=0.05)
    llama = save_base(tmp_path / "llama", "llama")
    quantised = load_model(llama, dtype=torch.float32, quantization="nf4")
    with pytest.raises(RecipeError, match=r"model.layers.0.self_attn.q_proj is quantised, so it cannot be trained in"):
        attach(quantised, target_modules=["v_proj"], modules_to_save=["q_proj"])
    quantised = load_model(llama, dtype=torch.float32, quantization="nf4")
    plain = tiny.logits(quantised, IDS)
    both = attach(quantised, (), norms=True, modules_to_save=["lm_head", "embed_tokens"])
    assert torch.equal(tiny.logits(quantised, IDS), plain)
    tiny.disturb(list(both.trained().values()))
    folder = save(both, llama, tmp_path / "adapter", quantization="nf4")
    again = load_model(llama, dtype=torch.float32, quantization="nf4")
    load_adapter(again, folder)
    assert torch.equal(tiny.logits(again, IDS), tiny.logits(quantised, IDS))


MISTAKES: list[tuple[str, dict[str, Any], tuple[int, ...], str]] = [
    (
        "llama-tied",
        {"modules_to_save": ["lm_head"]},
        (),
        r"lm_head shares its weight with model.embed_tokens .*untie: true",
    ),
    ("llama", {"modules_to_save": ["lm_haed"]}, (), r"lm_haed matches no module .* Close: lm_head"),
    (
        "llama",
        {"modules_to_save": ["lm_head"], "untie": True},
        (),
        r"untie: it has no effect: embedding and head are two",
    ),
    ("llama-tied", {"modules_to_save": ["norm"], "untie": True}, (), r"names neither embedding nor head"),
    ("llama", {"modules_to_save": ["embed_tokens"]}, ROWS, r"the embedding is trained in full"),
    ("llama-tied", {"train_tokens_in": "both"}, ROWS, r"train_tokens_in: embedding and head are one matrix"),
    (
        "llama",
        {"train_tokens_in": "head", "modules_to_save": ["lm_head"]},
        ROWS,
        r"train_tokens_in: lm_head is trained in full",
    ),
    (
        "llama",
        {"train_tokens_in": "both", "target_modules": ["lm_head"], "exclude_modules": []},
        ROWS,
        r"train_tokens_in: lm_head has an adapter, which trains all its rows",
    ),
    ("llama", {"biases": "all"}, (), r"adapter.biases: no layer of this model has a bias"),
    (
        "gpt2",
        {"biases": "adapted", "target_modules": ["lm_head"], "modules_to_save": ["wte"]},
        (),
        r"shares its weight",
    ),
    (
        "llama",
        {"modules_to_save": ["mlp"], "target_modules": ["up_proj"]},
        (),
        r"trained in full, as adapter.modules_to",
    ),
]


@pytest.mark.parametrize(("name", "section", "tokens", "said"), MISTAKES)
def test_mistakes_are_told_with_the_remedy(name: str, section: dict[str, Any], tokens: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        attach(tiny.make(name), tokens, **section)


def test_rows_of_a_head_are_what_peft_trains(tmp_path: Path) -> None:
    """The same first values, the same loss: stock PEFT's gradient of each row, and none of another row."""
    base, ids = save_base(tmp_path / "base", "llama"), torch.tensor([[*ROWS, 7, 8, *ROWS]])
    own = attach(stock(base), ROWS, train_tokens_in="both", target_modules=["q_proj"], rank=2)
    tiny.disturb(list(own.trained().values()), size=0.1)
    folder = save(own, base, tmp_path / "adapter")
    theirs: Any = PeftModel.from_pretrained(stock(base), folder, is_trainable=True)
    for model in (own.model, theirs):
        model.eval()(input_ids=ids, labels=ids).loss.backward()
    found = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad and "token_adapter" in name}
    assert len(found) == 2
    for name, slope in found.items():
        word = "lm_head" if "lm_head" in name else "model.embed_tokens"
        assert torch.allclose(own.trained()[f"{word}.rows"].grad, slope, atol=1e-6)
        assert slope.any()


def test_tokens_are_named_by_their_text() -> None:
    tokenizer = tiny_tokenizers.chatml()
    with pytest.raises(RecipeError, match=r"<\|im_ned\|> is no token of this model. Close: <\|im_end\|>"):
        lrft.attach(
            tiny.llama(vocabulary=len(tokenizer)),
            {"method": "lora", "train_tokens": ["<|im_ned|>"]},
            tokenizer=tokenizer,
        )
    with pytest.raises(RecipeError, match="there is no tokenizer"):
        lrft.attach(tiny.make("llama"), {"method": "lora", "train_tokens": ["a"]})


def test_matrices_are_decayed_and_rows_norms_and_biases_are_not() -> None:
    attached = attach(tiny.make("gpt2"), ROWS, norms=True, biases="all", modules_to_save=["c_proj"])
    groups = grouped(attached.trained(), {}, 1e-3, 0.1, undecayed=attached.undecayed())
    decayed = {name for group in groups for name, _ in group["params"] if group["weight_decay"]}
    assert {name for name in decayed if name.endswith(".rows")} == set()
    assert all(p.ndim == (2 if name in decayed else p.ndim) for name, p in attached.trained().items())
    assert "transformer.h.0.attn.c_proj.weight" in decayed
    assert "transformer.ln_f.weight" not in decayed
    assert "transformer.h.0.attn.c_attn.bias.value" not in decayed


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama")
    attached = attach(load_model(base, dtype=torch.float32), (96,), norms=True, target_modules=["q_proj"])
    folder = save(attached, base, tmp_path / "adapter")
    with pytest.raises(CheckFailed, match=r"trains row 96 of model.embed_tokens, and this model has 50 rows"):
        load_adapter(tiny.llama(vocabulary=50), folder)
    narrow = tiny.llama()
    narrow.model.norm.weight = torch.nn.Parameter(torch.ones(12))
    with pytest.raises(CheckFailed, match=r"model.norm.weight is \(12,\) in this model, \(24,\) in the adapter"):
        load_adapter(narrow, folder)
