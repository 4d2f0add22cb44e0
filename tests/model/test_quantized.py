"""A base whose linear layers are kept in 4 or 8 bits: loading, training, merging, and what each method makes of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import forked
import pytest
import runs
import tiny
import torch
import two_processes
from cases import CASES, NOT_ON_GPT2, ONE_FOR_EACH_FORM, attach, compare_checkpointed, composed, late
from runs import Place
from torch import Tensor, nn

import lrft
from lrft import recipe, registry
from lrft.adapters import gradient_checkpointing
from lrft.adapters.part import Run
from lrft.adapters.storage import _checksum, load_adapter, read_adapter, save_adapter
from lrft.cli import main
from lrft.errors import CheckFailed, LrftError, MissingError, RecipeError, UsageError
from lrft.export.merge import merge_adapter
from lrft.model import hub, linear, quantized
from lrft.model.load import imagine_quantized, load_model, load_tokenizer, quantizer
from lrft.model.quantized import QuantizedLinear
from lrft.utils import files
from lrft.verification import run
from lrft.verification.merge import verify_merge

KINDS = quantized.KINDS
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_MODEL = pytest.mark.parametrize("model_name", tiny.MODELS)

# The 16 levels of NF4, from appendix E of the QLoRA paper (arXiv 2305.14314).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny.save(tiny.make(name), root / name) for name in tiny.MODELS}


def load(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(folder, dtype=dtype, quantization=kind)


def layers_of(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def by_hand(W: Tensor) -> Tensor:
    """NF4 without bitsandbytes: the nearest level in blocks of 64, their scales as they are."""
    flat = torch.nn.functional.pad(W.flatten(), (0, -W.numel() % 64)).view(-1, 64)
    scales = flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    levels = torch.tensor(NF4)
    nearest = (flat / scales - levels[:, None, None]).abs().argmin(dim=0)
    return (levels[nearest] * scales).flatten()[: W.numel()].view_as(W)


def by_hand_in_fp8(W: Tensor) -> Tensor:
    """Rows whose largest value is 448, in numbers of 4 significant bits; below 2^-6 in multiples of 2^-9."""
    scales = W.abs().amax(dim=1, keepdim=True).double() / 448
    values = W.double() / scales
    quantum = torch.exp2((torch.frexp(values)[1] - 4).clamp_min(-9).double())
    return (values / quantum).round() * quantum * scales


# Loading


@EVERY_KIND
@EVERY_MODEL
def test_linear_layers_are_quantised_and_the_head_and_embeddings_are_not(
    kind: str, model_name: str, folders: dict[str, Path]
) -> None:
    plain, model = tiny.make(model_name), load(folders[model_name], kind)
    wanted = {name for name, module in linear.named_linears(plain) if module is not plain.get_output_embeddings()}
    assert set(layers_of(model)) == wanted
    assert {name for name, _ in linear.named_linears(model)} == wanted | {"lm_head"}
    assert torch.equal(model.get_output_embeddings().weight, plain.get_output_embeddings().weight)
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    assert quantized.count(model) == sum(p.numel() for p in plain.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    for name, layer in layers_of(model).items():
        one = plain.get_submodule(name)
        assert linear.shape(layer) == linear.shape(one)
        assert linear.stored_transposed(layer) == linear.is_transposed(one)
        W, made = linear.dense(one), linear.dense(layer)
        if kind == "int8":  # half a level of each row's 127; bitsandbytes looks at W in float16
            assert ((W - made).abs() <= W.abs().amax(dim=1, keepdim=True) * (0.5 / 127 + 2e-3)).all()
        assert (W - made).norm() < {"int8": 0.02, "fp8": 0.04}.get(kind, 0.15) * W.norm()


@EVERY_MODEL
def test_nf4_is_the_papers_rounding(model_name: str, folders: dict[str, Path]) -> None:
    """The scales are rounded to 8 bits on top, which moves them by a percent or two."""
    plain, model = tiny.make(model_name), load(folders[model_name], "nf4")
    for name, layer in layers_of(model).items():
        expected = by_hand(linear.dense(plain.get_submodule(name)))
        assert (linear.dense(layer) - expected).norm() < 0.03 * expected.norm()


def test_fp8_is_the_nearest_number_of_four_significant_bits(folders: dict[str, Path]) -> None:
    plain, model = tiny.make("gpt2"), load(folders["gpt2"], "fp8")
    for name, layer in layers_of(model).items():
        expected = by_hand_in_fp8(linear.dense(plain.get_submodule(name)))
        assert torch.allclose(linear.dense(layer).double(), expected, rtol=1e-6, atol=0), name
    rows = torch.tensor([[0.0, 0.0], [1e-40, -2e-41], [3e38, 1.0], [-448.0, 7e-3]])
    found = quantized.quantized(rows, "fp8").made(torch.float32)
    assert torch.equal(found[[0, 3]], torch.tensor([[0.0, 0.0], [-448.0, 2**-7]]))
    assert torch.isfinite(found).all()


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_are_those_of_the_dequantised_weight(
    kind: str, dtype: torch.dtype, folders: dict[str, Path]
) -> None:
    for layer in layers_of(load(folders["gpt2"], kind, dtype)).values():  # with biases
        d, k = layer.shape
        W = linear.dense(layer).to(dtype)
        assert torch.equal(layer.weight, W)
        bias = layer.bias.detach()
        x = torch.randn(2, 3, k).to(dtype).requires_grad_()
        slope = torch.randn(2, 3, d).to(dtype)
        for training in (True, False):
            layer.train(training)
            y = layer(x)
            assert y.dtype == dtype
            assert torch.equal(y, nn.functional.linear(x, W, bias))
            assert torch.equal(linear.product(layer, x), nn.functional.linear(x, W))
            x.grad = None
            y.backward(slope)
            assert torch.equal(x.grad, slope @ W)


@EVERY_KIND
def test_answering_does_not_change_the_base(kind: str, folders: dict[str, Path]) -> None:
    model = load(folders["llama"], kind)
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = tiny.logits(model, tiny.tokens())
    assert torch.equal(tiny.logits(model.train(), tiny.tokens()), first)
    assert torch.equal(tiny.logits(model.eval(), tiny.tokens()), first)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@EVERY_KIND
def test_a_cast_of_the_model_leaves_codes_and_scales(kind: str, folders: dict[str, Path]) -> None:
    model = load(folders["llama"], kind)
    before = {name: linear.dense(layer) for name, layer in layers_of(model).items()}
    model.bfloat16().float()
    for name, layer in layers_of(model).items():
        assert torch.equal(linear.dense(layer), before[name])
    assert linear.dense(next(iter(layers_of(model.double()).values()))).dtype == torch.float64


@EVERY_KIND
@EVERY_MODEL
def test_an_imagined_base_has_the_tensors_of_the_real_one(kind: str, model_name: str, folders: dict[str, Path]) -> None:
    def sizes(model: Any) -> dict[str, Any]:
        return {name: (tuple(p.shape), p.dtype) for name, p in model.named_parameters()}

    real = sizes(load(folders[model_name], kind, torch.bfloat16))
    with imagine_quantized(folders[model_name], dtype=torch.bfloat16, quantization=kind) as model:
        assert sizes(model) == real
        y = model(input_ids=torch.zeros(1, 5, dtype=torch.long)).logits
        assert tuple(y.shape) == (1, 5, tiny.VOCABULARY)


def test_a_missing_package_is_said_before_anything_is_loaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(MissingError) as caught:
        load_model(place.root / "base", dtype=torch.float32, quantization="nf4")
    assert caught.value.hint == "pip install 'lrft[quant]'"
    load_model(place.root / "base", dtype=torch.float32)
    load_model(place.root / "base", dtype=torch.float32, quantization="fp8")
    monkeypatch.setattr(hub, "weight_files", lambda folder: pytest.fail("the base was looked at"))
    for command in ("train", "check", "plan"):
        code = main.run_command([command, str(place.root / "recipe.yaml"), "model.quantization=nf4"])
        assert code == MissingError.exit_code, command


def test_a_base_that_is_stored_quantised_is_read_as_it_is_and_not_quantised_again(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    config = quantizer("nf4", torch.float32)
    AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=config).save_pretrained(tmp_path / "q")
    model, ours = load_model(tmp_path / "q", dtype=torch.float32), load(folders["llama"], "nf4")
    assert layers_of(model).keys() == layers_of(ours).keys()
    assert torch.equal(tiny.logits(model, tiny.tokens()), tiny.logits(ours, tiny.tokens()))
    with pytest.raises(LrftError, match="already stored quantised"):
        load(tmp_path / "q", "nf4")
    with pytest.raises(RecipeError, match="full keeps float32 copies"):  # the recipe could not know
        lrft.attach(model, {"method": "full"})


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_attach_takes_over_the_layers_of_bitsandbytes(kind: str, folders: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    config = quantizer(kind, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], quantization_config=config)
    if kind == "int8":  # bitsandbytes moves the scales in the first pass
        tiny.logits(model.train(), tiny.tokens())
    attached = lrft.attach(model.eval(), {"method": "lora", "rank": 4})
    expected = tiny.logits(load(folders["llama"], kind), tiny.tokens())
    assert torch.equal(tiny.logits(model, tiny.tokens()), expected)
    assert torch.equal(tiny.logits(attached.detach(), tiny.tokens()), expected)


# Methods


def refused(case: str) -> bool:
    """Whether some entry of a case says that it makes no sense here."""
    entries = recipe.parse_adapter({"method": CASES[case][0]}).method
    names = registry.compose([entry.name for entry in entries])
    return any(registry.methods()[name].quantization_conflict for name in names)


def test_few_methods_refuse() -> None:
    """Those that train the weights themselves, on which the gradient projections build, rewrite them or cut them."""
    refusing = {name for name, card in registry.methods().items() if card.quantization_conflict}
    assert refusing == {"full", "loram", "lors", "sara", "sst"}


@ONE_FOR_EACH_FORM
def test_every_method_keeps_its_formula_over_a_quantised_base_or_says_why_not(
    case: str, folders: dict[str, Path]
) -> None:
    """Start, forward, and gradients against the dequantised weight, over both kinds of codes and of layers."""
    second = "llama" if case.startswith(NOT_ON_GPT2) else "gpt2"
    for model_name, kind in (("llama", "nf4"), (second, "fp8")):
        model, ids = load(folders[model_name], kind), tiny.tokens()
        if refused(case):
            with pytest.raises(RecipeError, match=r"model\.quantization: none"):
                attach(model, case)
            continue
        before = tiny.logits(model, ids)
        codes = {name: p.clone() for name, p in model.named_parameters()}
        attached = attach(model, case)
        if not composed(attached).init_changes_output:
            assert (tiny.logits(model, ids) - before).abs().max() <= 1e-5 * before.abs().max()
        late(attached)
        for name, layer in attached.layers().items():
            if not layer.adapter.mergeable:
                continue
            x = torch.randn(2, 3, layer.adapter.site.k, generator=torch.Generator().manual_seed(3))
            W = layer.adapter.weight(linear.dense(layer.base))
            expected = nn.functional.linear(x, W, layer.base.bias)
            assert (layer(x) - expected).abs().max() <= 2e-5 * expected.abs().max(), name
        with attached.disabled():
            assert torch.equal(tiny.logits(model, ids), before)
        kept = dict(attached.detach().named_parameters())
        assert all(torch.equal(kept[name], value) for name, value in codes.items())


@ONE_FOR_EACH_FORM
def test_gradients_over_a_quantised_base_are_those_over_its_dequantised_weights(
    case: str, folders: dict[str, Path]
) -> None:
    """The same adapter values over quantised layers and over plain ones that hold the weights they make, in float64."""
    if refused(case):
        return
    gradients: list[dict[str, Tensor | None]] = []
    state: dict[str, Tensor] = {}
    for plain in (False, True):
        model, ids = load(folders["llama"], "nf4"), tiny.tokens()
        if plain:
            model = dequantised(model, tiny.make("llama"))
        attached = attach(model.double().train(), case)
        torch.manual_seed(5)
        late(attached)
        if state:  # some start from what was rounded away
            attached.load_state_dict(state)
        state = attached.state_dict()
        torch.manual_seed(6)
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in attached.trained().items()})
    for name, expected in gradients[1].items():
        got = gradients[0][name]
        assert (got is None) == (expected is None), name
        if expected is not None:
            assert (got - expected).norm() <= 1e-9 * expected.norm() + 1e-12, name


def dequantised(quantised: nn.Module, plain: Any) -> Any:
    with torch.no_grad():
        for name, layer in layers_of(quantised).items():
            one = plain.get_submodule(name)
            one.weight.copy_(linear.as_rows(linear.dense(layer), linear.is_transposed(one)))
    return plain


@ONE_FOR_EACH_FORM
def test_gradients_reach_every_trained_tensor_by_the_second_step(case: str, folders: dict[str, Path]) -> None:
    if refused(case):
        return
    model, ids = load(folders["llama"], "nf4").train(), tiny.tokens()
    attached = attach(model, case)
    start = attached.state_dict()
    composition = composed(attached)
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        run = Run(step, 100, model, attached.modules, optimizer, 0, lambda t: t, held_out=lambda: 1.0)
        for hook in ("before_step", "backward", "after_backward", "step", "after_step"):
            if hook == "backward":
                model(input_ids=ids, labels=ids).loss.backward()
            elif hook == "step":
                optimizer.step()
            else:
                for part in composition.parts:
                    getattr(part, hook)(run)
    for name, p in attached.trained().items():
        assert p.grad is not None, name
        if name.rsplit(".", 1)[-1] not in composition.may_not_move:
            assert not torch.equal(p.detach(), start[name]), name


@pytest.mark.parametrize("case", ["lora", "pissa", "dora", "bone", "hra", "lorma-pi-inputs", "lora-ensemble", "goat"])
@pytest.mark.parametrize("kind", ["fp4", "int8"])
def test_gradient_checkpointing_changes_no_gradient(case: str, kind: str, folders: dict[str, Path]) -> None:
    compare_checkpointed(lambda: load(folders["llama"], kind), case)


def test_light_checkpointing_plays_back_the_products_of_quantised_layers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {}
    made = QuantizedLinear.made
    for kind in ("none", "light", "full"):
        model, ids = load(folders["llama"], "nf4").train(), tiny.tokens()
        attach(model, "lora")
        if kind != "none":
            gradient_checkpointing.checkpoint(model, kind)
        calls: list[int] = []
        monkeypatch.setattr(QuantizedLinear, "made", lambda *a, calls=calls: calls.append(1) or made(*a))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        counts[kind] = len(calls)
    layers = len(layers_of(model))
    assert counts["none"] <= counts["light"] == 2 * layers  # once forward, once backward
    assert counts["full"] == 3 * layers


def test_nothing_as_large_as_a_weight_is_kept_for_the_backward_pass(folders: dict[str, Path]) -> None:
    model = load(folders["llama"], "nf4").train()
    attach(model, "lora")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(input_ids=tiny.tokens(1, 2))
    shapes = {layer.shape for layer in layers_of(model).values()}
    assert not shapes & {tuple(t.shape) for t in kept} | {s[::-1] for s in shapes} & {tuple(t.shape) for t in kept}


# Runs


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("nf4", ("adapter.method=[pissa, rslora, lora+]", "training.gradient_checkpointing=light")),
        ("fp4", ("adapter.method=[lora, dora]", "training.precision=bf16", "training.gradient_checkpointing=medium")),
        ("int8", ("adapter.method=lora-ga", "training.micro_batch_size=auto", "training.gradient_checkpointing=full")),
        ("fp8", ("adapter.method=[lora, dora]", "training.precision=bf16", "training.gradient_checkpointing=light")),
    ],
)
def test_a_run_learns_and_a_resumed_run_ends_in_the_same_bits(
    kind: str, keys: tuple[str, ...], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = (f"model.quantization={kind}", "training.epochs=4", "checkpoint.every=3", "checkpoint.keep=9", *keys)
    straight = place.train(*keys)
    losses = [record["loss"] for record in runs.records(straight)]
    assert losses[-1] < 0.95 * losses[0]
    cut = runs.cut(straight, 6, place.root / "cut")
    place.train(*keys, out="cut", resume="last")
    assert runs.differing(runs.tensors(cut), runs.tensors(straight)) == []
    assert files.read_json(straight / "best" / "lrft.json")["base"]["quantization"] == kind
    assert "MatMul8bitLt" not in capsys.readouterr().err  # bitsandbytes' own layers would complain here
    with pytest.raises(UsageError, match="quantization"):
        place.train("model.quantization=none", *keys[1:], out="cut", resume="last")


def test_another_kind_is_another_base(place: Place) -> None:
    """So that the tests above cannot pass over a base that is not quantised at all."""
    starts = {}
    for kind in ("none", *KINDS):
        run = place.train(f"model.quantization={kind}", "training.max_steps=1", out=kind)
        starts[kind] = runs.records(run)[0]["loss"]
    assert len(set(starts.values())) == len(KINDS) + 1


@pytest.fixture
def trained(place: Place) -> Path:
    """A run over nf4 in bfloat16 weights, whose adapter says something."""
    return place.train("model.quantization=nf4", "model.precision=bfloat16", "training.epochs=6", "adapter.method=dora")


def test_eval_measures_on_the_base_that_was_trained_on(
    trained: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = str(place.root / "validation.jsonl")
    assert main.run_command(["eval", str(trained), "--data", rows, "--no-generate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["loss"]
    info = files.read_json(trained / "best" / "lrft.json")["base"]
    losses = {}
    for kind in ("nf4", "none"):
        model = load(place.root / "base", kind, torch.bfloat16)
        load_adapter(model, trained / "best")
        losses[kind] = loss_on(model, rows, place)
    assert info["quantization"] == "nf4"
    assert found == pytest.approx(losses["nf4"], rel=1e-4)
    assert found != pytest.approx(losses["none"], rel=1e-3)


def loss_on(model: Any, rows: str, place: Place) -> float:
    """Mean token loss, row by row."""
    from lrft import data
    from lrft.data.collate import collate
    from lrft.model.modes import evaluation_mode
    from lrft.objectives.cross_entropy import trained_tokens
    from lrft.objectives.sft import TokenLoss

    section = place.recipe().data
    tokenizer = load_tokenizer(place.root / "base")
    found, _ = data.prepare_file(
        Path(rows), section, tokenizer, seed=0, limit=None, where=lambda key: key, cache=place.root / "c"
    )
    total, tokens = 0.0, 0
    losses = TokenLoss(model)
    with evaluation_mode(losses):
        for i in range(len(found)):
            batch = collate(found, [i], pad_id=0, form="padded")
            total, tokens = total + losses(batch).item(), tokens + trained_tokens(batch)
    return total / tokens


@pytest.mark.parametrize("into", ["original", "dequantized"])
def test_merge_goes_into_either_base_and_is_checked_against_the_one_that_was_trained_on(
    into: str, trained: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place.root / into
    assert (
        main.run_command(["merge", str(trained), "-o", str(out), "--into", into, "--dtype", "float32", "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)["verified"]
    merged = load_model(out, dtype=torch.float32)
    # Without a line of the merge: the adapter's formula on the weights of one base or the other.
    saved = read_adapter(trained / "best")
    trained_on = load(place.root / "base", "nf4", torch.bfloat16)
    original = load_model(place.root / "base", dtype=torch.float32)
    for site in saved.sites:
        one = (original if into == "original" else trained_on).get_submodule(site.name)
        expected = saved.build(site).weight(linear.dense(one)).detach()
        assert torch.allclose(linear.dense(merged.get_submodule(site.name)), expected, rtol=1e-5, atol=1e-6)
    if into == "dequantized":
        assert said["quantized"] is None
        assert said["relative"] < 1e-4  # embeddings and norms, too, are as they were in training: bfloat16
    else:
        assert said["relative"] > 1e-2
        assert 0 < said["quantized"]["update"] < said["mean_changed"]
        assert 0 < said["quantized"]["mean"] < 3 * said["quantized"]["base"]


def test_layers_without_an_adapter_are_dequantised_too(place: Place) -> None:
    run = place.train("model.quantization=fp4", "adapter.target_modules=[q_proj]")
    result = merge_adapter(run / "best", place.root / "out", into="dequantized")
    quantised, merged = load(place.root / "base", "fp4"), load_model(result.out, dtype=torch.float32)
    for name, layer in layers_of(quantised).items():
        same = torch.equal(linear.dense(layer), linear.dense(merged.get_submodule(name)))
        assert same == (not name.endswith("q_proj")), name
    assert verify_merge(result.out, run / "best", base_folder=result.base, into="dequantized").relative < 1e-4


@EVERY_KIND
def test_square_layers_that_are_stored_transposed_are_merged_the_right_way_round(
    kind: str, tmp_path: Path, folders: dict[str, Path]
) -> None:
    model = load(folders["gpt2"], kind)
    attached = attach(model, "lora")
    late(attached)
    (tmp_path / "adapter").mkdir()
    info = {"name": str(folders["gpt2"]), "dtype": "float32", "quantization": kind}
    save_adapter(attached, tmp_path / "adapter", base=info)
    expected = tiny.logits(model, tiny.tokens())
    merge_adapter(tmp_path / "adapter", tmp_path / "one", into="dequantized")
    merged = load_model(tmp_path / "one", dtype=torch.float32)
    assert (tiny.logits(merged, tiny.tokens()) - expected).abs().max() < 1e-5
    merge_adapter(tmp_path / "adapter", tmp_path / "two")
    merged = load_model(tmp_path / "two", dtype=torch.float32)
    plain = tiny.make("gpt2")
    for name in attached.modules:
        W = linear.dense(plain.get_submodule(name)) + attached.delta(name)
        assert torch.allclose(linear.dense(merged.get_submodule(name)), W, atol=1e-6), name


def test_a_merge_that_loses_what_was_trained_fails(trained: Path, place: Place) -> None:
    out, adapter, folder = place.root / "out", trained / "best", place.root / "base"
    merge_adapter(adapter, out, dtype="float32")
    assert verify_merge(out, adapter, base_folder=folder).quantized is not None
    with pytest.raises(CheckFailed, match="does not have the same effect"):  # the base itself: nothing was merged
        verify_merge(folder, adapter, base_folder=folder)
    with pytest.raises(CheckFailed, match="of the largest logit"):
        verify_merge(out, adapter, base_folder=folder, tolerance=1e-3)
    with pytest.raises(CheckFailed):  # it is not the other kind of merge
        verify_merge(out, adapter, base_folder=folder, into="dequantized")
    far = load(out, "none")
    with torch.no_grad():
        far.lm_head.weight.add_(0.4 * torch.randn(far.lm_head.weight.shape))
    far.save_pretrained(out)
    with pytest.raises(CheckFailed):
        verify_merge(out, adapter, base_folder=folder)


def test_dequantized_needs_a_quantised_base(place: Place) -> None:
    run = place.train("training.max_steps=2")
    assert main.run_command(["merge", str(run), "--into", "dequantized"]) == UsageError.exit_code
    assert main.run_command(["merge", str(run), "--into", "elsewhere"]) == UsageError.exit_code


def test_an_adapter_with_an_unknown_kind_is_refused(trained: Path) -> None:
    path = trained / "best" / "lrft.json"
    info = files.read_json(path)
    info.pop("checksum")
    info["base"]["quantization"] = "one-bit"
    files.write_json(path, info | {"checksum": _checksum(info)})
    with pytest.raises(CheckFailed):
        read_adapter(trained / "best")


@pytest.mark.slow
def test_verify_holds_for_a_run_over_a_quantised_base(trained: Path) -> None:
    found = {finding.name: finding for finding in run.verify_run(trained, trained / "best")}
    assert all(finding.holds for finding in found.values())
    assert not found["merged"].skipped
    assert not found["resumed"].skipped


def test_a_plan_counts_codes_and_scales(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    weights, parameters = {}, set()
    for kind in ("none", *KINDS):
        assert main.run_command(["plan", str(place.root / "recipe.yaml"), f"model.quantization={kind}", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        weights[kind] = plan["memory"]["one device"]["weights"]
        parameters.add(plan["parameters"])
        model = load(place.root / "base", kind)
        assert weights[kind] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert len(parameters) == 1
    assert weights["nf4"] == weights["fp4"]  # more than int8 here: each layer has a table of 256 numbers
    assert max(weights[kind] for kind in KINDS) < weights["none"]


WORKER_OF_PEFT = """
import sys, torch, tiny
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
folder, adapter, kind, out = sys.argv[1:]
# In training mode, in which bitsandbytes neither rearranges nor rounds what it is given.
config = None
if kind == "int8":
    config = BitsAndBytesConfig(load_in_8bit=True)
elif kind != "fp8":
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
if kind == "fp8":  # what its codes mean
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            scales = layer.weight.data.abs().amax(dim=1, keepdim=True) / 448
            layer.weight.data = (layer.weight.data / scales).to(torch.float8_e4m3fn).float() * scales
model = PeftModel.from_pretrained(model, adapter)
torch.save(tiny.logits(model.train(), tiny.tokens()), out)
"""


@EVERY_KIND
@pytest.mark.parametrize("method", ["lora", ["pissa", "rslora"], "dora"])
def test_stock_peft_answers_the_same_on_the_same_quantised_base(
    kind: str, method: Any, tmp_path: Path, folders: dict[str, Path]
) -> None:
    model = load(folders["llama"], kind)
    attached = lrft.attach(model, {"method": method, "rank": 4})
    tiny.disturb(list(attached.trained().values()), size=0.1)
    (tmp_path / "adapter").mkdir()
    save_adapter(attached, tmp_path / "adapter", base={"name": str(folders["llama"])})
    arguments = [str(folders["llama"]), str(tmp_path / "adapter"), kind, str(tmp_path / "logits.pt")]
    done = forked.run(WORKER_OF_PEFT, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    expected = tiny.logits(model, tiny.tokens())
    assert (theirs - expected).abs().max() <= 1e-4 * expected.abs().max()
    with attached.disabled():
        assert (tiny.logits(model, tiny.tokens()) - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.slow
def test_two_processes_train_what_one_trains(place: Place) -> None:
    runs.write_rows(place.root / "train.jsonl", runs.rows(9))
    for kind in ("nf4", "int8"):
        key = f"model.quantization={kind}"
        one = place.train(*two_processes.KEYS, key, out=f"one-{kind}")
        two = two_processes.launch(place, f"two-{kind}", key)
        assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-5


# Recipes


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("load_in_4bit: true", "In lrft: model.quantization: nf4"),
        ("load_in_8bit: true", "In lrft: model.quantization: int8"),
        ("quantization_bit: 4", "In lrft: model.quantization: nf4 for 4 bits, int8 for 8"),
        ("bnb_4bit_quant_type: nf4", "In lrft: model.quantization: nf4 or fp4"),
        ("bnb_4bit_use_double_quant: true", "always quantise the scales too"),
        ("quantization: nf4", "quantization belongs under model: model.quantization"),
    ],
)
def test_other_tools_words_are_translated(line: str, sentence: str, place: Place) -> None:
    path = place.root / "recipe.yaml"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("word", "meant"), [("4bit", "nf4"), ("8bit", "int8"), ("nf5", "nf4")])
def test_other_words_for_the_kind_are_translated(word: str, meant: str, place: Place) -> None:
    with pytest.raises(RecipeError) as caught:
        place.recipe(f"model.quantization={word}")
    assert meant in str(caught.value)


@pytest.mark.parametrize("method", ["full", "galore", "[full, dora]"])
def test_what_makes_no_sense_is_refused_before_torch_is_loaded(method: str, place: Place) -> None:
    place.recipe(f"adapter.method={method}")
    with pytest.raises(RecipeError) as caught:
        place.recipe(f"adapter.method={method}", "model.quantization=nf4")
    (problem,) = caught.value.problems
    assert "full" in problem.text
    assert "keeps float32 copies" in problem.text
    assert "set model.quantization: none, or use a low-rank method such as lora" in problem.text


def test_compile_is_refused(place: Place) -> None:
    with pytest.raises(RecipeError, match="does not support a quantised base"):
        place.recipe("training.compile=true", "model.quantization=nf4")
    place.recipe("training.compile=true", "model.quantization=none")


def test_the_generated_page_names_what_is_refused() -> None:
    from docgen import combinations

    page = combinations.page().split("## Quantised bases")[1]
    words = {line.split("`")[1] for line in page.splitlines() if line.startswith("- ")}
    assert words == {
        name for name, card in registry.methods().items() if card.quantization_conflict or card.on == "full"
    }
