"""EVA: components and ranks against decompositions of the collected inputs and against PEFT; one look per run."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import runs
import tiny
import torch
from calibrated import Given, batches, inputs_of, resumes_exactly_without_looking, shapes
from runs import Place
from torch import Tensor
from two_processes import KEYS, launch

import lrft
from lrft import registry
from lrft.adapters.adapter import Site
from lrft.errors import RecipeError
from lrft.methods.eva import Eva

DOWN = "model.layers.0.mlp.down_proj"


def components(x: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (k, k) as rows and their shares of the variance, by the full decomposition of the centred inputs."""
    _, S, Vh = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    return Vh, S.square() / S.square().sum()


def overlap(A: Tensor, V: Tensor) -> float:
    """Mean squared cosine between the spans of the rows: 1 when they are the same."""
    return ((A @ V.T).square().sum() / len(V)).item()


def attach(given: Sequence[dict[str, Tensor]], **options: Any) -> Any:
    return lrft.attach(tiny.make("llama").double(), {"method": {"eva": options}, "rank": 4}, batches=given)


def test_the_start_is_the_principal_components_of_the_centred_inputs() -> None:
    given = batches()
    inputs = inputs_of(tiny.make("llama").double(), given)
    attached = attach(given, rho=1.0, passes=60)
    assert attached.modules.keys() == inputs.keys()
    worst_uncentred = 1.0
    for name, adapter in attached.modules.items():
        V, _ = components(inputs[name])
        assert torch.allclose(adapter.A @ adapter.A.T, torch.eye(4, dtype=torch.float64), atol=1e-12), name
        assert torch.allclose((adapter.A @ V[:4].T).abs(), torch.eye(4, dtype=torch.float64), atol=1e-4), name
        assert not adapter.B.any()
        assert torch.equal(adapter.A.max(dim=1).values, adapter.A.abs().max(dim=1).values)  # no free signs
        plain = torch.linalg.svd(inputs[name])[2]
        worst_uncentred = min(worst_uncentred, overlap(adapter.A, plain[:4]))
    assert worst_uncentred < 0.95


def test_the_default_number_of_passes_is_enough() -> None:
    given = batches()
    inputs = inputs_of(tiny.make("llama").double(), given)
    for name, adapter in attach(given, rho=1.0).modules.items():
        assert overlap(adapter.A, components(inputs[name])[0][:4]) > 0.99, name


@pytest.mark.parametrize(("decay", "enough"), [(0.5, 0.9), (1.0, 0.98)])
def test_wide_layers_with_slowly_falling_variances(decay: float, enough: float) -> None:
    """k is far more than the vectors that are kept: nothing is complete here."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 400, generator=generator, dtype=torch.float64)
    x = x * torch.arange(1, 401, dtype=torch.float64) ** (-decay / 2) + 5
    x = x @ torch.linalg.qr(torch.randn(400, 400, generator=generator, dtype=torch.float64)).Q
    site = Site("a", 30, 400, 8, dtype=torch.float64)
    V, shares = components(x)
    found = Eva().calibrate(Given.make([site], x.split(700)))["a"]
    assert overlap(found["directions"][:8], V[:8]) > enough
    assert torch.allclose(found["shares"][:8], shares[:8], rtol=0.05)
    poor = Eva(passes=1).calibrate(Given.make([site], x.split(700)))["a"]
    assert overlap(poor["directions"][:8], V[:8]) < enough - 0.05


@pytest.mark.parametrize("rho", [1.0, 1.5, 2.0, 6.0])
def test_ranks_are_the_largest_shares_of_all_layers_and_the_factor_stays(rho: float) -> None:
    given = batches()
    inputs = inputs_of(tiny.make("llama").double(), given)
    attached = attach(given, rho=rho, passes=60)
    most = min(24, round(4 * rho))
    shares = [(-s.item(), n) for n, x in inputs.items() for s in components(x)[1][: min(most, x.shape[1])]]
    shares.sort(key=lambda entry: round(entry[0], 9))
    expected = Counter(n for _, n in shares[: 4 * len(inputs)])
    assert {site.name: site.rank for site in attached.sites} == dict(expected)
    assert sum(site.rank for site in attached.sites) == 4 * len(inputs)
    assert {site.scale for site in attached.sites} == {2.0}
    assert all(adapter.A.shape[0] == adapter.site.rank for adapter in attached.modules.values())
    if rho == 1:
        assert {site.rank for site in attached.sites} == {4}


def test_a_layer_without_a_component_among_the_largest_goes() -> None:
    sites = [Site(name, 9, 9, 2) for name in "abcd"]
    shares = {"a": [0.5, 0.4, 0.1], "b": [0.01], "c": [0.5, 0.3, 0.2]}  # no row reaches d
    found = Eva().assign_ranks_from(sites, {name: {"shares": torch.tensor(values)} for name, values in shares.items()})
    assert {site.name: site.rank for site in found} == {"a": 3, "b": 1, "c": 3}
    found = Eva().assign_ranks_from(
        sites[:3], {name: {"shares": torch.tensor(values)} for name, values in shares.items()}
    )
    assert {site.name: site.rank for site in found} == {"a": 3, "c": 3}
    assert Eva(1.0).assign_ranks_from(sites, {}) == sites


def test_the_factor_stays_with_rslora() -> None:
    model = tiny.make("llama")
    attached = lrft.attach(model, {"method": ["eva", "rslora"], "rank": 4, "alpha": 8.0}, batches=batches())
    assert len({site.rank for site in attached.sites}) > 1
    assert {site.scale for site in attached.sites} == {4.0}


def test_the_order_of_rows_does_not_matter() -> None:
    one, other = attach(batches()), attach(batches()[::-1])
    assert [s.rank for s in one.sites] == [s.rank for s in other.sites]
    for name, adapter in one.modules.items():
        assert overlap(adapter.A, other.modules[name].A) == pytest.approx(1, abs=1e-9), name


@pytest.mark.parametrize("tokens", ["trained", "all"])
def test_directions_and_ranks_are_those_of_peft(tokens: str) -> None:
    """PEFT leaves out tokens that are not trained, unless told otherwise; so does the default here."""
    from peft import EvaConfig, LoraConfig
    from peft.tuners.lora.eva import get_eva_state_dict

    # In one batch, which PEFT sees twice: its incremental decomposition forgets a part of each.
    ids = tiny.tokens(rows=12, length=40)
    mask = torch.arange(40) < torch.arange(29, 41)[:, None]
    prompt = torch.arange(40) < torch.arange(12, 24)[:, None]
    given = [{"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(prompt | ~mask, -100)}]
    assert registry.methods()["eva"].validate({})["tokens"] == "trained"
    for rho in (1.0, 2.0):
        config = LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=rho, use_label_mask=tokens == "trained"),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = get_eva_state_dict(tiny.make("llama"), given, config, show_progress_bar=False)
        adapter = {
            "method": {"eva": {"rho": rho, "tokens": tokens}},
            "rank": 4,
            "target_modules": sorted(config.target_modules),
        }
        ours = lrft.attach(tiny.make("llama"), adapter, batches=given)
        theirs = {name: A.float() for name, A in theirs.items() if len(A)}
        ranks = {site.name: site.rank for site in ours.sites}
        assert sum(ranks.values()) == sum(map(len, theirs.values())) == 40
        assert sum(abs(ranks.get(name, 0) - len(A)) for name, A in theirs.items()) <= 2
        for name, A in theirs.items():
            r = min(len(A), ranks[name])
            assert overlap(ours.modules[name].A[:r], A[:r]) > 0.95, name


def test_layers_with_the_same_inputs_are_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    first = Eva.first
    monkeypatch.setattr(Eva, "first", lambda self, sites, seed: starts.append(len(sites)) or first(self, sites, seed))
    attach(batches(), rho=1.0)
    assert starts == [3, 1, 2, 1] * 2  # q k v, o, gate up, down


def test_a_rank_beyond_the_inputs_is_refused() -> None:
    with pytest.raises(RecipeError, match="eva: rank 25 of a layer with 24 inputs"):
        lrft.attach(tiny.make("llama"), {"method": {"eva": {"rho": 1.0}}, "rank": 25}, batches=batches())


@pytest.mark.parametrize("word", ["pissa", "adalora", "prilora", "plop"])
def test_another_owner_of_start_ranks_or_placement_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match=r"keep one|requires|conflicts with"):
        lrft.attach(tiny.make("llama"), {"method": ["eva", word]}, batches=batches())


def test_a_run_trains_its_ranks_and_resumes_exactly_without_looking(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = resumes_exactly_without_looking(place, monkeypatch, "adapter.method=eva")
    found = {shape[0] for name, shape in shapes(whole).items() if "lora_A" in name}
    assert len(found) > 1


@pytest.mark.slow
def test_two_processes_train_what_one_trains(place: Place) -> None:
    # rows: 9 is odd, so that the processes see different numbers of rows, and 1 leaves one of them without any.
    for rows in (9, 1):
        key = f"adapter.method={{eva: {{rows: {rows}, passes: 20}}}}"
        one = place.train(*KEYS, key, out=f"one{rows}")
        two = launch(place, f"two{rows}", key)
        assert shapes(one) == shapes(two)
        assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-3
