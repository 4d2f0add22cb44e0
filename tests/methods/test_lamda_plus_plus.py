"""The ranks of LaMDA++: their mean, their order by the spectra, and that a resumed run keeps them."""

from __future__ import annotations

from typing import Any

import calibrated
import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor
from two_processes import KEYS, launch

import lrft
from lrft.adapters.adapter import Site
from lrft.errors import RecipeError
from lrft.methods.lamda_plus_plus import LamdaPlusPlus
from lrft.model import linear


def with_spectrum(S: Tensor, d: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(d, len(S), dtype=torch.float64, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(k, len(S), dtype=torch.float64, generator=generator)).Q
    return U @ torch.diag(S.double()) @ V.T


def ranks(weights: dict[str, Tensor], rank: int = 8, **options: Any) -> dict[str, int]:
    sites = [Site(name, *W.shape, rank, 2.0, dtype=W.dtype) for name, W in weights.items()]
    part = LamdaPlusPlus(**options)
    found = part.assign_ranks_from(sites, part.calibrate(calibrated.Given.make(sites, [], list(weights.values()))))
    assert {site.scale for site in found} == {2.0}
    return {site.name: site.rank for site in found}


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_the_gain_is_the_share_between_lowest_and_highest_rank(power: float, shape: tuple[int, int]) -> None:
    W = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    S = torch.linalg.svdvals(W) ** power
    expected = S[:12].sum() / S.sum() - S[:4].sum() / S.sum()
    assert torch.allclose(LamdaPlusPlus(power=power).gain(W, 8), expected, rtol=1e-9)
    assert LamdaPlusPlus().gain(torch.zeros(5, 6), 2) == 0
    assert LamdaPlusPlus().gain(W, 100) >= 0  # a rank beyond the layer's sides


def test_the_candidates() -> None:
    part = LamdaPlusPlus()
    assert [part.rank(8, level) for level in range(5)] == [4, 6, 8, 10, 12]
    assert [part.rank(1, level) for level in range(5)] == [1] * 5
    assert [LamdaPlusPlus(spread=0.75, steps=3).rank(16, level) for level in range(7)] == [4, 8, 12, 16, 20, 24, 28]


def test_the_larger_the_gain_the_higher_the_rank() -> None:
    # All energy before the lowest rank, some between lowest and highest, the more the flatter.
    spectra = {f"w{i}": torch.arange(1, 31) ** -decay for i, decay in enumerate([4.0, 2.0, 1.0, 0.5, 0.1])}
    weights = {name: with_spectrum(S, 40, 30) for name, S in spectra.items()}
    gains = {name: LamdaPlusPlus().gain(W, 8).item() for name, W in weights.items()}
    found = ranks(weights)
    assert sorted(found.values()) == [4, 6, 8, 10, 12]
    assert sorted(gains, key=gains.__getitem__) == sorted(found, key=found.__getitem__)
    assert found["w0"] == 4
    steep, flat = ranks({"a": weights["w0"], "b": weights["w4"]}).values()
    assert (steep, flat) == (6, 10)


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 7, 14, 33])
@pytest.mark.parametrize("rank", [1, 2, 3, 6, 7, 16])
@pytest.mark.parametrize(("spread", "steps"), [(0.5, 2), (0.9, 1), (0.3, 3), (0.0, 2)])
def test_the_mean_is_kept_exactly(layers: int, rank: int, spread: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = [Site(f"w{i}", 40, 30, rank) for i in range(layers)]
    seen = {site.name: {"gain": torch.rand((), generator=generator)} for site in sites}
    found = [site.rank for site in LamdaPlusPlus(spread, steps).assign_ranks_from(sites, seen)]
    assert sum(found) == rank * layers
    assert min(found) >= 1
    if layers >= 2 * steps + 1 and rank * spread >= steps:
        counts = [found.count(value) for value in set(found)]
        assert len(counts) == 2 * steps + 1
        assert max(counts) - min(counts) <= 1


def test_ties_go_by_name_and_ranks_of_overrides_are_shared_out_among_themselves() -> None:
    W = with_spectrum(torch.arange(30, 0, -1), 40, 30)
    assert ranks({"b": W, "a": W, "c": W}, spread=0.5, steps=1) == {"a": 4, "b": 8, "c": 12}
    overrides = {"down_proj": {"rank": 8}}
    adapter = {"method": "lamda++", "rank": 4, "overrides": overrides}
    attached = lrft.attach(tiny.make("llama"), adapter, batches=calibrated.batches())
    ups = {site.name: site.rank for site in attached.sites if "down_proj" in site.name}
    assert sum(ups.values()) == 16
    assert sum(site.rank for site in attached.sites) == 16 + 12 * 4


def test_in_a_model_the_ranks_follow_the_decomposition() -> None:
    model = tiny.make("gpt2").double()
    gains = {}
    for name, module in linear.named_linears(model):
        if "lm_head" not in name:
            S = torch.linalg.svdvals(linear.dense(module)).square()
            gains[name] = (S[2:6].sum() / S.sum()).item()
    attached = lrft.attach(model, {"method": "lamda++", "rank": 4}, batches=calibrated.batches())
    found = {site.name: site.rank for site in attached.sites}
    ordered = [found[name] for name in sorted(gains, key=gains.__getitem__)]
    assert ordered == sorted(ordered) == [2, 2, 3, 4, 4, 5, 6, 6]
    assert all(adapter.A.shape[0] == found[name] for name, adapter in attached.modules.items())


@pytest.mark.parametrize("word", ["prilora", "adalora", "eva"])
def test_who_else_decides_on_ranks_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="both set the ranks"):
        lrft.attach(tiny.make("llama"), {"method": ["lamda++", word]}, batches=calibrated.batches())


def test_a_start_is_made_for_the_rank_that_is_given() -> None:
    attached = lrft.attach(
        tiny.make("llama"), {"method": ["pissa", "lamda++"], "rank": 4}, batches=calibrated.batches()
    )
    assert {site.rank for site in attached.sites} == {2, 3, 4, 5, 6}
    assert all(adapter.inner.B.any() and not adapter.delta_weight().any() for adapter in attached.modules.values())


def test_a_run_trains_its_ranks_and_resumes_exactly_without_looking(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrated.resumes_exactly_without_looking(place, monkeypatch, "adapter.method=lamda++")
    found = {shape[0] for name, shape in calibrated.shapes(whole).items() if "lora_A" in name}
    assert found == {2, 3, 4, 5, 6}


@pytest.mark.slow
def test_two_processes_train_what_one_trains(place: Place) -> None:
    one, two = place.train(*KEYS, "adapter.method=lamda++", out="one"), launch(place, "two", "adapter.method=lamda++")
    assert calibrated.shapes(one) == calibrated.shapes(two)
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-4
