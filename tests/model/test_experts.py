"""Adapters on stacked experts: the dense formula, merging, stock PEFT, runs; for every layout that transformers has."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from on_disk import save_base
from peft import LoraConfig, PeftModel, get_peft_model
from runs import Place
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import lrft
from lrft.adapters import compose
from lrft.adapters.attach import composition_warnings
from lrft.adapters.gradient_checkpointing import checkpoint
from lrft.adapters.storage import load_adapter, save_adapter
from lrft.cli.main import run_command
from lrft.errors import RecipeError, UsageError
from lrft.export.merge import merge_adapter
from lrft.inspection.inspect import inspect_adapter
from lrft.model import grouped
from lrft.model.experts import stacks
from lrft.model.load import load_model
from lrft.model.weights import fingerprint

IDS = tiny.tokens()
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
SHARED = {
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
SLIDING = {
    "head_dim": 8,
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"intermediate_size": 32, "num_local_experts": 4}),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {"moe_intermediate_size": 16, "num_experts": 4, "head_dim": 8}),
    "gpt-oss": (
        GptOssForCausalLM,
        GptOssConfig,
        {"intermediate_size": 32, "num_local_experts": 4, "head_dim": 8, **SLIDING},
    ),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, {"intermediate_size": 16, "num_experts": 4}),
    "glm4-moe": (
        Glm4MoeForCausalLM,
        Glm4MoeConfig,
        {"intermediate_size": 32, "moe_intermediate_size": 16, "head_dim": 8, **SHARED},
    ),
    "deepseek-v3": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config,
        {**SHARED, **LATENT, "num_key_value_heads": 4},
    ),
}
EVERY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


def make(family: str, vocabulary: int = tiny.VOCABULARY) -> Any:
    cls, config, own = FAMILIES[family]
    torch.manual_seed(0)
    model = cls(config(**{"vocab_size": vocabulary, "num_experts_per_tok": 2, **SIZES, **own}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
            elif "embed" not in name:
                p.normal_(0, 0.2)
    return model.eval()


def save(attached: Any, base: Path, folder: Path) -> Path:
    folder.mkdir()
    info = {"name": str(base), "revision": None, "fingerprint": fingerprint(base)}
    save_adapter(attached, folder, base=info, seed=0)
    return folder


def dense(family: str, attached: Any) -> Any:
    """The stock model with the updates added to its stacks."""
    model = make(family)
    with torch.no_grad():
        for name, adapter in attached.modules.items():
            stack, _, expert = name.rpartition(".")
            update = attached.delta(name)
            model.get_parameter(stack)[int(expert)] += update.T if adapter.site.transposed else update
    return model


@EVERY
def test_it_is_the_dense_formula_and_only_routed_tokens_pay(family: str) -> None:
    model = make(family)
    plain = tiny.logits(model, IDS)
    attached = lrft.attach(model, {"method": "lora", "rank": 3, "target_modules": "expert-linear"})
    assert len(attached.modules) == 4 * sum(map(len, stacks(make(family)).values()))
    assert torch.allclose(tiny.logits(model, IDS), plain, atol=1e-6)
    tiny.disturb(list(attached.trained().values()))
    seen: dict[str, int] = {}
    for name, layer in attached.layers().items():
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: len(given[0])}))
    expected = tiny.logits(model, IDS)
    assert torch.allclose(tiny.logits(dense(family, attached), IDS), expected, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-2)
    for stack in {name.rpartition(".")[0] for name in seen}:
        assert sum(rows for name, rows in seen.items() if name.startswith(f"{stack}.")) == 2 * IDS.numel()
    with attached.disabled():
        assert torch.allclose(tiny.logits(model, IDS), plain, atol=1e-6)
    assert torch.equal(tiny.logits(attached.detach(), IDS), plain)


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss", "deepseek-v3"])
def test_gradients_are_those_of_the_dense_formula(family: str) -> None:
    model = make(family)
    attached = lrft.attach(model, {"method": "lora", "rank": 3, "target_modules": "expert-linear"})
    tiny.disturb(list(attached.trained().values()))
    model(input_ids=IDS).logits.square().sum().backward()
    twin = dense(family, attached).requires_grad_()
    twin(input_ids=IDS).logits.square().sum().backward()
    for name, adapter in attached.modules.items():
        stack, _, expert = name.rpartition(".")
        slope = twin.get_parameter(stack).grad[int(expert)]
        slope = slope.T if adapter.site.transposed else slope
        _, A, scale = adapter.factors()
        if adapter.B.grad is None:  # no token came here
            assert not slope.any()
        else:
            assert torch.allclose(adapter.B.grad, scale * slope @ A.T, rtol=1e-3, atol=1e-3 * slope.abs().max())


METHODS = [("mixtral", "lora"), ("mixtral", "dora"), ("qwen3-moe", "pissa"), ("gpt-oss", "lora"), ("gpt-oss", "hra")]


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *METHODS,
        *(pytest.param(f, m, marks=pytest.mark.all) for f in FAMILIES for m in ("lora", "mora", "vera", "delora")),
    ],
)
def test_saved_merged_and_read_by_peft(family: str, method: str, tmp_path: Path) -> None:
    base = tiny.save(make(family), tmp_path / "base")
    model = load_model(base, dtype=torch.float32)
    targets = ["expert-linear", "o_proj"]
    attached = lrft.attach(model, {"method": method, "rank": 4, "target_modules": targets})
    tiny.disturb(list(attached.trained().values()), size=0.1)
    expected = tiny.logits(model, IDS)
    folder = save(attached, base, tmp_path / "adapter")
    again = load_model(base, dtype=torch.float32)
    load_adapter(again, folder)
    assert torch.equal(tiny.logits(again, IDS), expected)
    merged, loading = AutoModelForCausalLM.from_pretrained(
        merge_adapter(folder, tmp_path / "merged").out, output_loading_info=True
    )
    assert not any(loading.values())
    assert torch.allclose(tiny.logits(merged.eval(), IDS), expected, atol=1e-5)
    assert {one.name for one in inspect_adapter(folder).modules} == set(attached.modules)
    says = (folder / "adapter_config.json").is_file()
    assert says == (method in ("lora", "pissa"))
    if says:
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        assert torch.allclose(tiny.logits(theirs.eval(), IDS), expected, atol=1e-5)


@pytest.mark.parametrize(("family", "words"), [("mixtral", 2), ("gpt-oss", 2), ("qwen3-moe", 1)])
def test_a_folder_that_peft_made_is_loaded_and_merged(family: str, words: int, tmp_path: Path) -> None:
    base, folder = tiny.save(make(family), tmp_path / "base"), tmp_path / "adapter"
    parameters = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"][:words]
    config = LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]},
        target_parameters=parameters,
        rank_pattern={"mlp.experts.down_proj": 2},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that nothing matches the pattern, and heeds it
        theirs: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    tiny.disturb([p for p in theirs.parameters() if p.requires_grad], size=0.1)
    theirs.save_pretrained(folder)
    expected = tiny.logits(theirs.eval(), IDS)
    loaded = AutoModelForCausalLM.from_pretrained(base).eval()
    lrft.load_adapter(loaded, folder)
    assert torch.allclose(tiny.logits(loaded, IDS), expected, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(merge_adapter(folder, tmp_path / "merged").out).eval()
    assert torch.allclose(tiny.logits(merged, IDS), expected, atol=1e-5)


def test_names_mean_what_they_say() -> None:
    one = lrft.attach(make("mixtral"), {"method": "lora", "target_modules": ["experts.down_proj"]})
    assert {name.split(".experts.")[1].split(".")[0] for name in one.modules} == {"down_proj"}
    plain = lrft.attach(make("glm4-moe"), {"method": "lora", "target_modules": ["down_proj"]})
    assert not any(".experts." in name for name in plain.modules)  # a dense layer and the shared expert
    everything = lrft.attach(make("mixtral"), {"method": "lora"})
    assert not any(".experts." in name for name in everything.modules)
    ranks = {"experts.down_proj.*": {"rank": 2}}
    mixed = lrft.attach(make("mixtral"), {"method": "lora", "target_modules": "expert-linear", "overrides": ranks})
    assert {site.rank for site in mixed.sites if "down_proj" in site.name} == {2}
    with pytest.raises(RecipeError, match="expert-linear means experts that are stacked in one tensor, and this model"):
        lrft.attach(tiny.make("llama"), {"method": "lora", "target_modules": "expert-linear"})


def test_what_peft_cannot_say_stays_in_lrfts_own_format(tmp_path: Path) -> None:
    base = tiny.save(make("mixtral"), tmp_path / "base")
    model = load_model(base, dtype=torch.float32)
    ranks = {"*.down_proj.1": {"rank": 2}}
    section = {"method": "lora", "rank": 4, "target_modules": "expert-linear", "overrides": ranks}
    attached = lrft.attach(model, section)
    folder = save(attached, base, tmp_path / "adapter")
    assert not (folder / "adapter_config.json").exists()
    other, config = tmp_path / "other", {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}
    llama = save_base(tmp_path / "llama", "llama")
    stock: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    )
    stock.save_pretrained(other)
    said = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(said | config))
    with pytest.raises(
        UsageError, match=r"target_parameters names experts.down_proj, of which the file has no tensors"
    ):
        lrft.load_adapter(AutoModelForCausalLM.from_pretrained(llama), other)


def test_what_all_linear_does_not_reach_is_said_with_the_remedy() -> None:
    model = make("mixtral")
    attached = lrft.attach(model, {"method": "lora"})
    (said,) = composition_warnings(compose.compose([("lora", {})]), attached.sites, model)
    stacked = sum(p.numel() for name, p in make("mixtral").named_parameters() if ".experts." in name)
    assert said.startswith(f"{stacked / sum(p.numel() for p in make('mixtral').parameters()):.0%} of the model's")
    assert "experts.gate_up_proj, experts.down_proj" in said
    assert said.endswith("expert-linear in adapter.target_modules means all experts")


WORDS = ("adapter.method=lora", "adapter.target_modules=expert-linear", "training.max_steps=2", "checkpoint.every=1")


def moe_place(root: Path, family: str) -> Place:
    place = Place.make(root)
    vocabulary = json.loads((place.root / "base" / "config.json").read_text())["vocab_size"]
    tiny.save(make(family, vocabulary), place.root / "base")
    return place


def test_a_run_resumes_and_merges(tmp_path: Path) -> None:
    place = moe_place(tmp_path, "qwen3-moe")
    run = place.train(*WORDS, out="run")
    cut = runs.cut(run, 1, place.root / "again")
    place.train(*WORDS, out="again", resume="last")
    assert runs.differing(runs.tensors(run), runs.tensors(cut)) == []
    facts = json.loads((run / "run.json").read_text())
    assert facts["adapter"]["target_modules"] == ["experts.down_proj", "experts.gate_up_proj"]
    assert run_command(["merge", str(run)]) == 0


@pytest.mark.all
def test_plan_and_check_count_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = moe_place(tmp_path, "qwen3-moe")
    run = place.train(*WORDS, out="run")
    trained = json.loads((run / "run.json").read_text())["adapter"]["trainable parameters"]
    capsys.readouterr()
    assert run_command(["plan", str(place.write_recipe()), *WORDS, "--json"]) == 0
    planned = capsys.readouterr().out
    assert json.loads(planned[planned.index("{") :])["trained"] == trained
    assert run_command(["check", str(place.write_recipe()), *WORDS]) == 0
    assert "experts.down_proj" in capsys.readouterr().out


@pytest.mark.all
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    place = moe_place(tmp_path, "mixtral")
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "import pathlib, runs\n"
        "runs.Place(pathlib.Path(sys.argv[2])).train(*sys.argv[4:], out=sys.argv[3])\n"
    )
    one = place.train(*WORDS, out="one")
    runs.side_by_side(code, str(place.root), "two", *WORDS)
    assert runs.distance(runs.tensors(one), runs.tensors(place.root / "two"), "adapter") < 1e-4


def one_by_one(attached: Any) -> None:
    """Let experts compute each for itself: somebody wants to see what a layer gets."""
    for layer in attached.layers().values():
        layer.register_forward_pre_hook(lambda *_: None)


def gradients_of(family: str, section: dict[str, Any], *, alone: bool, dtype: torch.dtype, amp: bool = False) -> Any:
    """(logits, the gradient of each trained tensor) for two tokens, which few experts get."""
    model = make(family).to(dtype)
    attached = lrft.attach(model, {"rank": 3, "target_modules": "expert-linear", **section})
    tiny.disturb(list(attached.trained().values()))
    if alone:
        one_by_one(attached)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        found = model(input_ids=IDS[:1, :2]).logits.float()
    found.square().sum().backward()
    return found.detach(), {name: p.grad for name, p in attached.trained().items()}


@pytest.mark.parametrize("method", ["lora", "pissa", "lora-fa"])
@pytest.mark.parametrize("family", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("kind", ["float32", "autocast", "float64"])
def test_together_they_are_what_each_is_alone(family: str, method: str, kind: str, grouped_calls: list[int]) -> None:
    dtype = torch.float64 if kind == "float64" else torch.float32
    near = {"float32": 1e-5, "autocast": 3e-2, "float64": 1e-12}[kind]
    made = {
        alone: gradients_of(family, {"method": method}, alone=alone, dtype=dtype, amp=kind == "autocast")
        for alone in (True, False)
    }
    # torch 2.13 has no grouped product in float64: there expert by expert is all there is.
    assert bool(grouped_calls) == (kind != "float64")
    (logits, slopes), (together, found) = made[True], made[False]
    assert torch.allclose(together, logits, rtol=near, atol=near * float(logits.abs().max()))
    idle = {name for name, slope in slopes.items() if slope is None}
    assert idle == {name for name, slope in found.items() if slope is None}
    assert any(".experts." in name for name in idle)
    largest = max(float(slope.abs().max()) for slope in slopes.values() if slope is not None)
    for name, slope in slopes.items():
        assert slope is None or torch.allclose(found[name], slope, rtol=near, atol=near * largest), name


@pytest.mark.parametrize("kind", ["light", "medium", "full"])
def test_checkpointing_changes_no_gradient(kind: str, grouped_calls: list[int]) -> None:
    """Outputs of grouped products are kept and played back as those of layers are."""
    slopes = []
    for checkpointed in (False, True):
        model = make("mixtral").train()
        section = {"method": "lora", "rank": 3, "target_modules": ["expert-linear", "all-linear"]}
        attached = lrft.attach(model, section)
        tiny.disturb(list(attached.trained().values()))
        if checkpointed:
            checkpoint(model, kind)
        calls = len(grouped_calls)
        model(input_ids=IDS).logits.square().sum().backward()
        assert len(grouped_calls) - calls == (8 if checkpointed else 4)
        slopes.append({name: p.grad for name, p in attached.trained().items()})
    for name, slope in slopes[0].items():
        assert torch.allclose(slopes[1][name], slope, rtol=1e-5, atol=1e-6 * float(slope.abs().max())), name


@pytest.fixture
def grouped_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each grouped product that is asked for."""
    calls: list[int] = []
    real = grouped.linear_plus_pairs

    def noted(x: torch.Tensor, *given: Any) -> torch.Tensor:
        calls.append(len(x))
        return real(x, *given)

    monkeypatch.setattr(grouped, "linear_plus_pairs", noted)
    return calls


@pytest.mark.parametrize("everyone", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_the_grouped_step_is_its_formula(p: float, everyone: bool) -> None:
    counts, rank = [3, 0, 4, 0], 3
    x = torch.randn(7, 16, requires_grad=True)
    W, biases = torch.randn(4, 8, 16), torch.randn(4, 8)
    factors = [torch.randn(shape, requires_grad=True) for _ in counts for shape in ((8, rank), (rank, 16))]
    pairs = [grouped.Pair(B, A, 0.5, p) for B, A in zip(factors[::2], factors[1::2], strict=True)]
    slope = torch.randn(8, 7).T  # as no kernel takes it
    torch.manual_seed(5)
    y = grouped.linear_plus_pairs(x, W, biases, counts, pairs, everyone)
    own = torch.autograd.grad(y, [x, *factors], slope, allow_unused=True)
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(x, p)
    expert = torch.repeat_interleave(torch.tensor(counts))
    B, A = torch.stack(factors[::2])[expert], torch.stack(factors[1::2])[expert]
    update = (0.5 * B @ A @ dropped[..., None])[..., 0]
    expected = (W[expert] @ x[..., None])[..., 0] + biases[expert] + update
    theirs = torch.autograd.grad(expected, [x, *factors], slope)
    assert torch.allclose(y, expected, atol=1e-4)
    for n, (mine, wanted) in enumerate(zip(own, theirs, strict=True)):
        idle = n > 0 and not counts[(n - 1) // 2]
        assert (mine is None) == (idle and not everyone)
        assert mine is None or torch.allclose(mine, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("section", "calls"),
    [
        ({"method": "mora"}, 0),  # no pair
        ({"method": "dora"}, 0),  # more than a pair
        ({"method": "lora", "overrides": {"*.down_proj.1": {"rank": 2}, "*.gate_up_proj.2": {"rank": 2}}}, 0),
        # One word alone, in both blocks: of the other one expert has no adapter.
        ({"method": "lora", "exclude_modules": ["*.down_proj.1"]}, 2),
    ],
)
def test_layers_that_are_not_alike_compute_alone(section: dict[str, Any], calls: int, grouped_calls: list[int]) -> None:
    made = [gradients_of("mixtral", section, alone=alone, dtype=torch.float32) for alone in (False, True)]
    assert len(grouped_calls) == calls
    (one, slopes), (other, theirs) = made
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    for name, slope in slopes.items():
        assert (slope is None) == (theirs[name] is None)
        assert slope is None or torch.allclose(slope, theirs[name], rtol=1e-4, atol=1e-5 * float(slope.abs().max()))
