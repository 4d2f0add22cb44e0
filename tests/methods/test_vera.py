"""VeRA against stock PEFT, whose random matrices are ours, and what having them in common means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from peft import VeraConfig, get_peft_model
from runs import Place
from safetensors.torch import load_file
from torch import nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import composition_warnings
from lrft.adapters.storage import save_adapter
from lrft.export.merge import merge_adapter

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
TARGETS = {"llama": LLAMA, "gpt2": GPT2}


def attach(model: nn.Module, rank: int = 6, **options: Any) -> Any:
    return lrft.attach(model, {"method": {"vera": options}, "rank": rank})


@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
@pytest.mark.parametrize("seed", [0, 1234])
def test_random_matrices_forward_and_merge_are_those_of_peft(model_name: str, seed: int) -> None:
    ids = tiny.tokens()
    attached = attach(tiny.make(model_name), seed=seed)
    config = VeraConfig(r=6, projection_prng_key=seed, target_modules=TARGETS[model_name], d_initial=0.1)
    config.fan_in_fan_out = model_name == "gpt2"
    theirs = get_peft_model(tiny.make(model_name), config).eval()
    for word in "AB":
        assert torch.equal(attached.shared.get_buffer(word), getattr(theirs.base_model, f"vera_{word}")["default"])
    layers = {name: m for name, m in theirs.base_model.model.named_modules() if hasattr(m, "vera_lambda_b")}
    assert layers.keys() == attached.modules.keys()
    for name, layer in layers.items():
        assert torch.equal(attached.modules[name].d, layer.vera_lambda_d["default"])
        assert torch.equal(attached.modules[name].b, layer.vera_lambda_b["default"])
    tiny.disturb(list(attached.trained().values()))
    for name, layer in layers.items():
        layer.vera_lambda_d["default"].data.copy_(attached.modules[name].d)
        layer.vera_lambda_b["default"].data.copy_(attached.modules[name].b)
        dense = layer.get_delta_weight("default")
        dense = dense.T if config.fan_in_fan_out else dense
        assert torch.allclose(attached.delta(name), dense, atol=1e-6), name
    expected = tiny.logits(theirs, ids)
    found = tiny.logits(attached.model, ids)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - tiny.logits(tiny.make(model_name), ids)).abs().max() > 1e-2 * expected.abs().max()
    merged = tiny.logits(theirs.merge_and_unload(), ids)
    assert (found - merged).abs().max() <= 1e-5 * merged.abs().max()


def test_the_update_is_the_formula_entry_by_entry() -> None:
    attached = attach(tiny.make("llama").double(), rank=3)
    tiny.disturb(list(attached.trained().values()))
    A, B = attached.shared.A, attached.shared.B
    assert A.shape == (3, 44)
    assert B.shape == (44, 3)
    for name, adapter in attached.modules.items():
        d, k = adapter.site.d, adapter.site.k
        expected = torch.zeros(d, k, dtype=torch.float64)
        for j in range(3):
            expected += adapter.d[j].detach() * torch.outer(adapter.b.detach() * B[:d, j], A[j, :k])
        assert torch.allclose(attached.delta(name), expected, atol=1e-12)
        assert torch.linalg.matrix_rank(expected) <= 3


def test_all_layers_read_the_same_storage_and_a_copy_does_too() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": ["vera", "relora"], "rank": 4})
    places = set()
    for adapter in attached.modules.values():
        for module in adapter.modules():  # the frozen links of relora too
            if hasattr(module, "projections"):
                places.add(tuple(view.data_ptr() for view in module.projections()))
    assert len(places) == 1


def test_ranks_that_differ_take_the_leading_part_of_one_pair() -> None:
    words = {"method": "vera", "rank": 4, "overrides": {"q_proj": {"rank": 7}}}
    attached = lrft.attach(tiny.make("llama"), words)
    seven = attach(tiny.make("llama"), rank=7)
    assert torch.equal(attached.shared.A, seven.shared.A)
    assert torch.equal(attached.shared.B, seven.shared.B)
    tiny.disturb(list(attached.trained().values()))
    for name, adapter in attached.modules.items():
        rank = 7 if "q_proj" in name else 4
        assert adapter.d.shape == (rank,)
        assert torch.linalg.matrix_rank(attached.delta(name)) == rank
        B, A = adapter.projections()
        assert torch.equal(B, seven.shared.B[: adapter.site.d, :rank])
        assert torch.equal(A, seven.shared.A[:rank, : adapter.site.k])


def test_the_seed_of_the_option_decides_and_that_of_the_run_does_not() -> None:
    def drawn(seed: int, run: int) -> torch.Tensor:
        return lrft.attach(tiny.make("llama"), {"method": {"vera": {"seed": seed}}, "rank": 4}, seed=run).shared.A

    assert torch.equal(drawn(0, 1), drawn(0, 2))
    assert not torch.equal(drawn(0, 1), drawn(1, 1))
    double = attach(tiny.make("llama").double(), rank=4).shared.A
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), drawn(0, 0)), "the same matrices for every dtype"


def test_known_random_values() -> None:
    """Pinned: an adapter that was saved must mean the same matrices for ever."""
    shared = compose.compose([("vera", {})]).method.shared([Site("x", 2, 3, 2)])
    expected = (torch.rand(10, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 6**0.5
    assert torch.allclose(shared.A.flatten(), expected[:6] / 3**0.5, atol=1e-6)
    assert torch.allclose(shared.B.flatten(), expected[6:] / 2**0.5, atol=1e-6)
    assert shared.A[0].tolist() == pytest.approx([-0.010588, 0.758646, -1.163962], abs=1e-6)


def test_the_update_is_linear_in_each_vector() -> None:
    attached = attach(tiny.make("llama").double())
    name, adapter = next(iter(attached.modules.items()))
    tiny.disturb(list(attached.trained().values()))
    for vector in (adapter.b, adapter.d):
        start, step = vector.detach().clone(), torch.randn_like(vector)
        values = []
        for value in (start, step, 2 * start - 3 * step):
            vector.data.copy_(value)
            values.append(attached.delta(name))
        assert torch.allclose(values[2], 2 * values[0] - 3 * values[1], atol=1e-12)
        vector.data.copy_(start)


@pytest.mark.parametrize("saved", [False, True])
def test_what_is_saved_with_and_without_the_projections(saved: bool, tmp_path: Path) -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = attach(model, seed=9, save_projection=saved)
    tiny.disturb(list(attached.trained().values()))
    assert sum(p.numel() for p in attached.trained().values()) == sum(6 + site.d for site in attached.sites)
    if saved:
        with torch.no_grad():
            attached.shared.A.mul_(0.5)  # as if the generator had been another one
    save_adapter(attached, tmp_path, base={"name": "tiny"}, seed=3)
    own = load_file(tmp_path / "lrft.safetensors")
    common = {name for name in own if name.startswith("adapters_shared.")}
    assert common == ({"adapters_shared.A", "adapters_shared.B"} if saved else set())
    other = tiny.make("llama")
    torch.manual_seed(77)
    lrft.load_adapter(other, tmp_path)
    assert torch.equal(tiny.logits(other, ids), tiny.logits(model, ids))


def test_merging_whole_models_of_both_layouts(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for model_name in ("llama", "gpt2"):
        model, ids = tiny.make(model_name), tiny.tokens()
        base = tiny.save(model, tmp_path / f"{model_name}-base")
        attached = attach(model)
        tiny.disturb(list(attached.trained().values()))
        folder = tmp_path / model_name
        folder.mkdir()
        save_adapter(attached, folder, base={"name": str(base)})
        merge_adapter(folder, tmp_path / f"{model_name}-merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"{model_name}-merged", dtype=torch.float32)
        assert (tiny.logits(merged, ids) - tiny.logits(model, ids)).abs().max() <= 1e-4


def test_training_keeps_the_thin_product_and_not_the_input() -> None:
    attached = attach(tiny.make("llama"), rank=2)
    layer = attached.layers()["model.layers.0.mlp.down_proj"]
    frozen = {layer.base.weight.data_ptr(), attached.shared.A.data_ptr(), attached.shared.B.data_ptr()}
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        layer(torch.ones(50, 44))
    largest = max(t.numel() for t in saved if t.data_ptr() not in frozen)
    assert largest <= 50 * 2, "50 inputs of 44, 2 thin ones each; B (24, 2)"


def test_few_ranks_are_remarked_upon() -> None:
    composition = compose.compose([("vera", {})])
    said = [composition_warnings(composition, [Site("x", 300, 300, rank)], nn.Linear(2, 2)) for rank in (16, 256)]
    assert "16 is small" in said[0][0]
    assert said[1] == []


def test_a_run_trains_and_a_resume_is_exact(place: Place) -> None:
    keys = (
        "adapter.method=vera",
        "adapter.rank=16",
        "training.learning_rate=0.1",
        "checkpoint.every=3",
        "checkpoint.keep=9",
    )
    whole = place.train(*keys)
    part = runs.cut(whole, 3, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    losses = [record["loss"] for record in runs.records(whole)]
    assert losses[-1] < losses[0]
