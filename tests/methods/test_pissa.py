"""PiSSA: the decompositions, the start against them and against PEFT, what is saved, what the factor means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose, svd
from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.attach import composition_warnings
from lrft.adapters.storage import save_adapter
from lrft.errors import RecipeError
from lrft.export.merge import merge_adapter
from lrft.model import linear

EXACT = {"pissa": {"svd": "exact"}}


def weight(d: int, k: int, spectrum: str, seed: int = 0) -> Tensor:
    """A random (d, k) float64 matrix: flat is Gaussian, decaying has singular values 1, 0.9, 0.81, ..."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d, k, dtype=torch.float64, generator=generator)
    if spectrum == "flat":
        return W
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U @ torch.diag(0.9 ** torch.arange(len(S), dtype=torch.float64)) @ Vh


# The decompositions


TALL, WIDE = (300, 240), (240, 300)


def energy(W: Tensor, U: Tensor) -> float:
    """How much of W the columns of U (d, r) see, over the most that r directions can."""
    return ((U.T @ W).square().sum() / torch.linalg.svdvals(W)[: U.shape[1]].square().sum()).item()


def assert_triplets(W: Tensor, found: svd.Triplets, r: int) -> None:
    """Orthonormal, descending, of W's type, and singular: W V = U S."""
    U, S, V = found
    rounding = 50 * torch.finfo(W.dtype).eps
    assert [t.shape for t in found] == [(W.shape[0], r), (r,), (W.shape[1], r)]
    assert all(t.dtype == W.dtype for t in found)
    for side in (U, V):
        assert (side.T @ side - torch.eye(r)).abs().max() < rounding
    assert (S[:-1] >= S[1:]).all()
    assert (U.T @ W @ V - torch.diag(S)).abs().max() <= rounding * torch.linalg.svdvals(W)[0]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [1, 8, 40])  # the last one by the whole space
@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("spectrum_of", ["flat", "decaying"])
def test_leading_captures_the_energy_of_the_exact_subspace(
    spectrum_of: str, shape: tuple[int, int], r: int, dtype: torch.dtype, seed: int
) -> None:
    W = weight(*shape, spectrum_of, seed).to(dtype)
    torch.manual_seed(seed)
    found = svd.leading(W, r)
    assert_triplets(W, found, r)
    assert energy(W, found[0]) > 0.98
    assert energy(W.T, found[2]) > 0.98


def test_without_iterations_or_oversampling_a_flat_spectrum_is_missed() -> None:
    """What the test above would say of a poor decomposition."""
    W = weight(*WIDE, "flat")
    assert energy(W, svd.leading(W, 8, iterations=0)[0]) < 0.8
    assert energy(W, svd.leading(W, 1, iterations=2, oversample=0)[0]) < 0.98


@pytest.mark.parametrize("spectrum_of", ["flat", "decaying"])
def test_leading_is_exact_where_its_basis_would_be_half_the_space(spectrum_of: str) -> None:
    W = weight(60, 50, spectrum_of)
    for r in (6, 50):
        U, S, V = svd.leading(W, r)
        best = svd.exact(W, r)
        assert_triplets(W, (U, S, V), r)
        assert torch.allclose(S, best[1], atol=1e-10)
        assert torch.allclose(U @ torch.diag(S) @ V.T, best[0] @ torch.diag(best[1]) @ best[2].T, atol=1e-8)


@pytest.mark.parametrize("shape", [TALL, WIDE, (60, 50)])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_weight_of_lower_rank_gives_no_ghosts(rank: int, shape: tuple[int, int]) -> None:
    """Basis vectors are completed where there are no more: one that came twice would count its energy twice."""
    W = torch.zeros(shape)
    W[:rank, :rank] = torch.diag(torch.arange(rank, 0, -1.0))
    found = svd.leading(W, 5)
    assert_triplets(W, found, 5)
    assert torch.allclose(found[1], torch.tensor([*range(rank, 0, -1), *[0.0] * (5 - rank)]), atol=1e-5)


def test_leading_depends_on_the_global_seed_only() -> None:
    W = weight(*TALL, "flat")
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(svd.leading(W, 4, iterations=1))
    assert all(torch.equal(*pair) for pair in zip(*runs[:2], strict=True))
    assert not torch.allclose(runs[0][1], runs[2][1], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_exact_and_trailing_are_the_two_ends_of_the_decomposition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    W = weight(*shape, "flat").to(dtype)
    S = torch.linalg.svdvals(W)
    for found, wanted in ((svd.exact(W, 7), S[:7]), (svd.trailing(W, 7), S[-7:])):
        assert_triplets(W, found, 7)
        assert torch.allclose(found[1], wanted, rtol=1e-5)
    everything = svd.trailing(W, min(shape))
    assert torch.allclose(everything[0] @ torch.diag(everything[1]) @ everything[2].T, W, atol=1e-4)
    for function in (svd.leading, svd.exact, svd.trailing):
        assert [t.shape for t in function(W, 0)] == [(shape[0], 0), (0,), (shape[1], 0)]


def test_more_directions_than_the_smaller_side_are_refused() -> None:
    for function in (svd.leading, svd.exact, svd.trailing):
        with pytest.raises(ValueError, match="rank 8 is larger than the layer's smaller side, 7"):
            function(torch.zeros(9, 7), 8)


# The start


def one(
    W: Tensor, words: Any, rank: int, *, alpha: float | str = "auto", seed: int = 0, name: str = "0"
) -> tuple[Adapter, Site]:
    """The adapter that a layer of weight W gets."""
    model = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False)).to(W.dtype)
    with torch.no_grad():
        model[0].weight.copy_(W)
    attached = lrft.attach(model, {"method": words, "rank": rank, "alpha": alpha}, seed=seed)
    return attached.modules[name], attached.sites[0]


def start(adapter: Adapter) -> tuple[Tensor, Tensor]:
    tensors = adapter.tensors()
    assert torch.equal(tensors["A"], tensors["start.A"])
    assert torch.equal(tensors["B"], tensors["start.B"])
    assert not tensors["start.A"].requires_grad
    return tensors["A"].detach(), tensors["B"].detach()


@pytest.mark.parametrize("spectrum", ["flat", "decaying"])
@pytest.mark.parametrize(
    ("words", "alpha", "scale"),
    [
        (EXACT, "auto", 1.0),
        (EXACT, 8.0, 2.0),
        ([EXACT, "rslora"], "auto", 1.0),
        ([EXACT, "rslora"], 8.0, 4.0),
        ([EXACT, "dora"], 8.0, 2.0),
    ],
)
def test_exact_start_is_the_leading_part_of_the_weight(
    spectrum: str, words: Any, alpha: float | str, scale: float
) -> None:
    W, r = weight(20, 14, spectrum), 4
    adapter, site = one(W, words, r, alpha=alpha)
    assert site.scale == pytest.approx(scale, abs=0)
    A, B = start(adapter)
    U, S, Vh = torch.linalg.svd(W)
    leading = U[:, :r] @ torch.diag(S[:r]) @ Vh[:r]
    assert torch.allclose(site.scale * B @ A, leading, atol=1e-12)
    assert torch.linalg.matrix_norm(W - site.scale * B @ A, ord=2).item() == pytest.approx(S[r].item(), rel=1e-10)
    balance = torch.diag(S[:r] / site.scale)
    assert torch.allclose(A @ A.T, balance, atol=1e-12)
    assert torch.allclose(B.T @ B, balance, atol=1e-12)


def test_the_default_decomposition_is_balanced_and_nearly_exact() -> None:
    W, r = weight(60, 50, "flat"), 6
    adapter, site = one(W, "pissa", r)
    A, B = start(adapter)
    assert torch.allclose(A @ A.T, B.T @ B, atol=1e-8)
    off = (A @ A.T) - torch.diag(torch.diag(A @ A.T))
    assert off.abs().max() < 1e-8
    U, S, Vh = torch.linalg.svd(W)
    error = site.scale * B @ A - U[:, :r] @ torch.diag(S[:r]) @ Vh[:r]
    assert error.norm() / S[:r].norm() < 0.02


@pytest.mark.parametrize(("words", "enough"), [("pissa", True), ({"pissa": {"iterations": 0}}, False)])
def test_the_start_captures_the_energy_of_the_exact_subspace_by_iterating(words: Any, enough: bool) -> None:
    W = weight(*TALL, "flat")
    A, B = start(one(W, words, 8)[0])
    assert (energy(W, torch.linalg.qr(B).Q) > 0.98) == enough
    assert (energy(W.T, torch.linalg.qr(A.T).Q) > 0.98) == enough


def test_residual_and_start_make_the_weight_and_fresh_equals_base() -> None:
    """The residual is what stock PEFT leaves in the base; here the base stays whole and the update starts at zero."""
    for dtype in (torch.float32, torch.float64):
        W = weight(30, 22, "flat").to(dtype)
        adapter, site = one(W, ["pissa", "rslora"], 5, alpha=3.0)
        A, B = start(adapter)
        residual = W - site.scale * B @ A
        assert torch.allclose(residual + site.scale * B @ A, W, atol=1e-6)
        assert torch.equal(adapter.weight(W), W)


@pytest.mark.parametrize(("words", "rslora"), [(EXACT, False), ([EXACT, "rslora"], True)])
def test_first_values_are_those_of_peft(words: Any, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj"]
    ours = lrft.attach(tiny.make("llama"), {"method": words, "rank": 4, "alpha": 8.0, "target_modules": targets})
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights="pissa", use_rslora=rslora)
    theirs = get_peft_model(tiny.make("llama"), config).base_model.model
    for name, adapter in ours.modules.items():
        A, B = start(adapter)
        layer = theirs.get_submodule(name)
        assert adapter.site.scale == pytest.approx(layer.scaling["default"])
        for mine, other, axis in (
            (A, layer.lora_A["default"].weight, 1),
            (B, layer.lora_B["default"].weight, 0),
        ):
            sign = (mine * other).sum(axis, keepdim=True).sign()
            assert torch.allclose(mine, sign * other, atol=1e-5), name


def test_saved_and_loaded_is_bit_equal_under_another_global_seed(tmp_path: Path) -> None:
    """Trust 23. Nothing is decomposed again when loading: the default is randomised and would come out differently."""
    torch.manual_seed(1)
    model, ids = tiny.make("llama"), tiny.tokens()
    attached = lrft.attach(model, {"method": "pissa", "rank": 3}, seed=4)
    tiny.disturb(list(attached.trained().values()), size=0.05)
    save_adapter(attached, tmp_path, base={"name": "tiny"}, seed=4)
    expected = tiny.logits(model, ids)
    other = tiny.make("llama")
    torch.manual_seed(777)
    loaded = lrft.load_adapter(other, tmp_path)
    assert torch.equal(tiny.logits(other, ids), expected)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in attached.state_dict().items())
    with loaded.disabled():
        assert torch.equal(tiny.logits(other, ids), tiny.logits(tiny.make("llama"), ids))


def test_exported_as_a_plain_lora_of_twice_the_rank_which_equals_the_merge(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = tiny.save(tiny.make("llama"), tmp_path / "base")
    attached = lrft.attach(tiny.make("llama"), {"method": ["pissa", "rslora"], "rank": 3, "alpha": 2.0})
    tiny.disturb(list(attached.trained().values()), size=0.05)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_adapter(attached, adapter, base={"name": str(base)})
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["r"] == 6
    assert config["init_lora_weights"] is True, "PEFT would subtract the leading part from the base again"
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    merge_adapter(adapter, tmp_path / "merged")
    merged, stored = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "base"))
    for name in attached.modules:
        A, B = (tensors[f"base_model.model.{name}.{word}.weight"] for word in ("lora_A", "lora_B"))
        assert A.shape[0] == B.shape[1] == 6
        assert (scale * B @ A - attached.delta(name)).abs().max() < 1e-6
        W = stored[f"{name}.weight"]
        assert (merged[f"{name}.weight"] - (W + scale * B @ A)).abs().max() < 1e-6


def test_magnitudes_over_pissa_are_the_row_norms_of_the_whole_weight() -> None:
    model = tiny.make("llama")
    attached = lrft.attach(model, {"method": ["pissa", "dora"], "rank": 3})
    for name, layer in attached.layers().items():
        W = linear.dense(layer.base)
        assert torch.allclose(attached.modules[name].tensors()["magnitude"], W.norm(dim=1), rtol=1e-6), name


def test_the_factor_only_changes_the_learning_rate() -> None:
    """Factor s at rate lr is factor 1 at rate sqrt(s) lr under Adam (eps -> 0): the pair is balanced."""
    W, target, s = weight(9, 7, "flat"), weight(9, 7, "flat", 5), 4.0
    results = []
    for scale, lr in ((s, 1e-3), (1.0, 2e-3)):
        model = nn.Sequential(nn.Linear(7, 9, bias=False)).double()
        with torch.no_grad():
            model[0].weight.copy_(W)
        attached = lrft.attach(model, {"method": EXACT, "rank": 2, "scale": scale})
        optimizer = torch.optim.Adam(attached.trained().values(), lr=lr, eps=0.0)
        for _ in range(10):
            optimizer.zero_grad()
            (attached.modules["0"].weight(W) - target).square().sum().backward()
            optimizer.step()
        results.append(attached.delta("0"))
    assert results[0].abs().max() > 1e-3
    assert torch.allclose(*results, rtol=1e-9, atol=1e-12)


def test_starts_depend_on_the_seed_and_the_name_only() -> None:
    W = weight(60, 50, "flat")
    first, again, other = (start(one(W, {"pissa": {"iterations": 0}}, 3, seed=s)[0])[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first.abs(), other.abs())


def test_refused_with_dropout_with_mora_and_beyond_the_layer() -> None:
    for words, sentence in (
        ({"method": "pissa", "dropout": 0.1}, "pissa requires adapter.dropout: 0, got 0.1"),
        ({"method": ["mora", "pissa"]}, "pissa requires a pair of factors A and B; mora has no such pair"),
        ({"method": "pissa", "rank": 13}, r"k_proj: rank 13 is larger than the layer's smaller side, 12"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words)


def test_advice_when_alpha_is_not_the_rank() -> None:
    composition = compose.compose([("pissa", {})])
    sites = [Site("a", 4, 4, 2, scale=2.0)]
    assert any(
        "only multiplies the learning rate" in text
        for text in composition_warnings(composition, sites, nn.Linear(4, 4))
    )
    assert composition_warnings(composition, [Site("a", 4, 4, 2, scale=1.0)], nn.Linear(4, 4)) == []
