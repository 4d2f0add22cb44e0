"""RandLoRA against stock PEFT with its bases, and against the sum over bases, one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import runs
import tiny
import torch
from peft import RandLoraConfig, get_peft_model
from runs import Place
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_shared, build_site
from lrft.errors import RecipeError

F64 = torch.float64
SHAPES = [(24, 36), (36, 24), (24, 26), (24, 24), (5, 40), (40, 5)]
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def adapter_of(d: int, k: int, r: int, s: float = 1.5, **options: Any) -> Any:
    composition = compose.compose([("randlora", options)])
    sites = [Site("x", d, k, r, scale=s, dtype=F64), Site("other", 50, 45, 5, dtype=F64)]
    shared = build_shared(sites, composition)
    adapter = build_site(sites[0], composition, None, fresh=True, shared=shared)
    tiny.disturb(list(adapter.parameters()), size=1.0)
    return adapter


def term_by_term(adapter: Any, s: float) -> Tensor:
    """s sum_j B_j diag(Lambda_j) A diag(Gamma_j), with B_j gathered as PEFT's two flattenings meet."""
    d, k, r = adapter.site.d, adapter.site.k, adapter.site.rank
    m, M, n = min(d, k), max(d, k), math.ceil(min(d, k) / r)
    A, B = adapter.shared.A, adapter.shared.B
    core = torch.zeros(M, m, dtype=F64)
    for j in range(n):
        for row in range(r):
            right = adapter.Lambda[row, j].detach() * A[row, :m] * adapter.Gamma[j].detach()
            core += torch.outer(B[:M, row * n + j], right)
    return s * core if k == m else s * core.T


@pytest.mark.parametrize(("d", "k"), SHAPES)
@pytest.mark.parametrize("r", [1, 5, 4])
def test_the_update_is_the_sum_over_the_bases(d: int, k: int, r: int) -> None:
    n = math.ceil(min(d, k) / r)
    x = torch.randn(2, 3, k, dtype=F64, generator=torch.Generator().manual_seed(1))
    for options, s in (({}, 1.5), ({"by_count": True}, 1.5 / math.sqrt(n)), ({"bases": "sparse"}, 1.5)):
        adapter = adapter_of(d, k, r, **options)
        assert adapter.Lambda.shape == (r, n)
        assert adapter.Gamma.shape == (n, min(d, k))
        expected = term_by_term(adapter, s)
        assert torch.allclose(adapter.delta_weight(), expected, atol=1e-11)
        assert torch.allclose(adapter.delta(x), x @ expected.T, atol=1e-10)


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_the_update_has_full_rank_but_for_columns_of_a_sparse_A_that_hold_nothing(d: int, k: int) -> None:
    m = min(d, k)
    assert torch.linalg.matrix_rank(adapter_of(d, k, 5).delta_weight()) == m
    for bases in ("sparse", "very-sparse"):
        adapter = adapter_of(d, k, 5, bases=bases)
        reached = adapter.shared.A[:5, :m].any(dim=0)
        rows = adapter.delta_weight().any(dim=0 if k == m else 1)
        assert torch.equal(rows, reached) or (rows <= reached).all()
        assert torch.linalg.matrix_rank(adapter.delta_weight()) <= reached.sum()


@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
@pytest.mark.parametrize("r", [4, 5])
def test_forward_and_merge_are_those_of_peft_with_its_bases(model_name: str, r: int) -> None:
    ids = tiny.tokens()
    attached = lrft.attach(tiny.make(model_name), {"method": "randlora", "rank": r})
    config = RandLoraConfig(r=r, randlora_alpha=20 * r, target_modules=TARGETS[model_name], projection_prng_key=3)
    config.fan_in_fan_out = model_name == "gpt2"
    theirs = get_peft_model(tiny.make(model_name), config).eval()
    own: Any = theirs.base_model
    for word in "AB":
        buffers = getattr(own, f"randlora_{word}")
        buffers["default"] = buffers["default"].float()
    A, B = own.randlora_A["default"], own.randlora_B["default"]
    most = math.ceil(24 / r) * r  # PEFT draws more, for a layer as large as all layers together
    assert attached.shared.A.shape == (r, 24)
    assert attached.shared.B.shape == (B.shape[0], most)
    attached.shared.A.copy_(A[:, 0, :24])
    attached.shared.B.copy_(B.flatten(1)[:, :most])
    layers = {name: m for name, m in own.model.named_modules() if hasattr(m, "randlora_lambda")}
    assert layers.keys() == attached.modules.keys()
    for name, layer in layers.items():
        assert torch.equal(attached.modules[name].Lambda, layer.randlora_lambda["default"])
        assert torch.equal(attached.modules[name].Gamma, layer.randlora_gamma["default"])
    tiny.disturb(list(attached.trained().values()), size=0.02)
    for name, layer in layers.items():
        layer.randlora_lambda["default"].data.copy_(attached.modules[name].Lambda)
        layer.randlora_gamma["default"].data.copy_(attached.modules[name].Gamma)
        dense, mine = layer.get_delta_weight("default"), attached.delta(name)
        dense = dense.T if config.fan_in_fan_out else dense
        assert torch.allclose(mine, dense, atol=1e-5 * dense.abs().max().item()), name
    expected, found = tiny.logits(theirs, ids), tiny.logits(attached.model, ids)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (found - tiny.logits(tiny.make(model_name), ids)).abs().max() > 1e-2 * expected.abs().max()
    merged = tiny.logits(theirs.merge_and_unload(), ids)
    assert (found - merged).abs().max() <= 1e-4 * merged.abs().max()


def test_bases_are_drawn_for_the_largest_layer_and_have_variance_one() -> None:
    method = compose.compose([("randlora", {})]).method
    sites = [Site("a", 40, 64, 4), Site("b", 60, 30, 4)]
    shared = method.shared(sites)
    assert shared.A.shape == (4, 40)
    assert shared.B.shape == (64, 40)  # 10 bases for the 40 x 64 layer, 8 for the other
    for kind, most in (("dense", 1.0), ("sparse", 1 / 3), ("very-sparse", 40**-0.5)):
        shared = compose.compose([("randlora", {"bases": kind})]).method.shared(sites)
        for drawn in (shared.A, shared.B):
            assert drawn.std().item() == pytest.approx(1.0, abs=1e-5)
            assert drawn.mean().abs() < 0.2
            assert (drawn != 0).float().mean().item() == pytest.approx(most, abs=0.08)
        if kind != "dense":
            assert len(shared.B.unique()) == 3
        else:
            assert shared.B.abs().max().item() == pytest.approx(3**0.5, rel=0.02), "uniform"


def test_layers_of_one_shape_read_the_same_storage() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": ["randlora", "relora"], "rank": 4})
    found = {}
    for adapter in attached.modules.values():
        for module in adapter.modules():
            if hasattr(module, "scaled"):
                found.setdefault((module.site.d, module.site.k), set()).add(module.scaled()[0].data_ptr())
    assert {len(places) for places in found.values()} == {1}
    assert len(set.union(*found.values())) == 1


def test_ranks_that_differ_and_a_small_one_with_more_columns_than_the_largest() -> None:
    """Rank 5 on 24 inputs needs 25 columns, rank 6 needs 24."""
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)).double()
    attached = lrft.attach(model, {"method": "randlora", "rank": 6, "overrides": {"1": {"rank": 5}}})
    assert attached.shared.B.shape == (24, 25)
    tiny.disturb(list(attached.trained().values()), size=1.0)
    for name, adapter in attached.modules.items():
        assert torch.allclose(attached.delta(name), term_by_term(adapter, 20.0), rtol=1e-9)
        assert torch.linalg.matrix_rank(attached.delta(name)) == 24


def test_numbers_trained_in_a_large_layer() -> None:
    """4096 x 4096 at rank 32: 528 384; fewer at a higher rank."""
    method = compose.compose([("randlora", {})]).method
    for rank, total in ((32, 528_384), (64, 266_240)):
        with torch.device("meta"):
            adapter = method.build(Site("x", 4096, 4096, rank))
        assert sum(p.numel() for p in adapter.parameters()) == total


def test_the_first_step_moves_lambda_and_not_yet_gamma() -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "randlora", "rank": 4})
    model(input_ids=ids, labels=ids).loss.backward()
    for name, p in attached.trained().items():
        assert bool(p.grad.any()) == name.endswith("Lambda"), name


def test_a_rank_above_the_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="0: randlora's bases for a 50 x 3 layer have rank 3: lower rank 4"):
        lrft.attach(nn.Sequential(nn.Linear(3, 50)), {"method": "randlora", "rank": 4})


def test_nothing_as_large_as_the_weight_is_kept_for_the_backward_pass() -> None:
    model = nn.Sequential(nn.Linear(40, 40))
    lrft.attach(model, {"method": "randlora", "rank": 4})
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        model(torch.ones(2, 40))
    base = model[0].base.weight.data_ptr()
    assert max(t.numel() for t in saved if t.data_ptr() != base) <= 10 * 40, "Gamma (10, 40)"


def test_a_run_trains_and_a_resume_is_exact(place: Place) -> None:
    keys = ("adapter.method=randlora", "checkpoint.every=3", "checkpoint.keep=9", "training.learning_rate=0.001")
    whole = place.train(*keys)
    part = runs.cut(whole, 3, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    losses = [record["loss"] for record in runs.records(whole)]
    assert losses[-1] < losses[0]
