"""TempBalance's exponents on planted power laws, its rates by their formulas, and the rates that a run has."""

from __future__ import annotations

import math
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.methods.tempbalance import TempBalance, exponent
from lrft.model import linear


def planted(alpha: float, n: int = 2000) -> Tensor:
    """A diagonal whose squares are the quantiles of a density x^-alpha above 1."""
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.diag((1 - quantiles) ** (-0.5 / (alpha - 1)))


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
@pytest.mark.parametrize("tail", [1.5, 2.0, 1000.0])
def test_a_planted_exponent_is_found(alpha: float, tail: float) -> None:
    assert exponent(planted(alpha, 600), tail) == pytest.approx(alpha, rel=0.01)


def test_the_exponent_is_the_formula_over_the_upper_half() -> None:
    W = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = sorted(torch.linalg.eigvalsh(W @ W.T).tolist())
    upper = values[3:]  # of seven, from the fourth on
    expected = 1 + len(upper) / sum(math.log(value / upper[0]) for value in upper)
    assert exponent(W, 2.0) == pytest.approx(expected, rel=1e-10)
    assert exponent(7.0 * W.T, 2.0) == pytest.approx(expected, rel=1e-10)


def test_directions_that_the_weight_lacks_do_not_count() -> None:
    W = planted(2.5, 50)
    wider = torch.zeros(80, 90, dtype=torch.float64)
    wider[:50, :50] = W
    assert exponent(wider, 2.0) == pytest.approx(exponent(W, 2.0), rel=1e-10)
    for flat in (torch.zeros(4, 4), torch.ones(1, 9), torch.eye(4)):
        assert math.isnan(exponent(flat, 2.0))


def test_rates_by_their_formulas() -> None:
    alphas = torch.tensor([2.0, 3.0, 4.5, 2.5], dtype=torch.float64)
    assert TempBalance().factors(alphas).tolist() == pytest.approx([0.5, 0.9, 1.5, 0.7])
    expected = [10 ** (2.0 * (1 / (1 + math.exp(-(a - 3.0))) - 0.5)) for a in alphas.tolist()]
    assert TempBalance(form="sigmoid", strength=2.0).factors(alphas).tolist() == pytest.approx(expected)
    mean = sum(math.sqrt(a) for a in alphas.tolist()) / 4
    expected = [math.sqrt(a) / mean for a in alphas.tolist()]
    assert TempBalance(form="sqrt").factors(alphas).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("form", ["linear", "sigmoid", "sqrt"])
def test_equal_spectra_have_equal_rates_and_the_linear_ones_alone_are_within_the_bounds(form: Any) -> None:
    """The released code clamps neither of the others."""
    part = TempBalance(form=form, strength=9.0, lowest=0.8, highest=1.1)
    assert part.factors(torch.full((3,), 2.7, dtype=torch.float64)).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    factors = part.factors(torch.tensor([1.1, 2.0, 60.0], dtype=torch.float64))
    assert bool(factors.min() >= 0.8 and factors.max() <= 1.1) == (form == "linear")
    assert (factors.diff() >= 0).all()


def attached_with(options: dict[str, Any], *others: Any, model: Any = None) -> tuple[Any, Any]:
    attached = lrft.attach(model or tiny.make("llama"), {"method": [{"tempbalance": options}, *others], "rank": 2})
    return attached, compose.compose((entry["name"], entry["options"]) for entry in attached.methods)


def rates(attached: Any, composition: Any, step: int, total: int = 20) -> dict[str, float]:
    run = Run(step, total, attached.model, attached.modules, None, 0, lambda t: t)
    return {site: composition.rate(run, site) for site in attached.modules}


@pytest.mark.parametrize("others", [(), ("pissa",), ("dora",)])
def test_spectra_are_those_of_the_adapted_weight(others: tuple[str, ...]) -> None:
    for kind in ("llama", "gpt2"):
        attached, composition = attached_with({}, *others, model=tiny.make(kind))
        tiny.disturb(list(attached.trained().values()))
        alphas = torch.tensor(
            [exponent(layer.adapter.weight(linear.dense(layer.base)), 2.0) for layer in attached.layers().values()],
            dtype=torch.float64,
        )
        expected = TempBalance().factors(alphas).tolist()
        assert list(rates(attached, composition, 0).values()) == pytest.approx(expected, rel=1e-4)
        assert len(set(expected)) == len(expected)


def test_a_layer_without_a_tail_has_the_rate_of_the_mean() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(8))
    assert rates(*attached_with({}, model=model), 0)["1"] == pytest.approx(1.0)


def test_a_block_has_one_rate() -> None:
    attached, composition = attached_with({"by_block": True})
    found: dict[int | None, set[float]] = {}
    for site, rate in rates(attached, composition, 0).items():
        found.setdefault(attached.modules[site].site.depth, set()).add(rate)
    assert sorted(found) == [0, 1]
    assert sorted(rate for block in found.values() for rate in block) == [0.5, 1.5]


@pytest.mark.parametrize(("every", "looks"), [(0.0, [0]), (5.0, [0, 5, 10, 15]), (0.25, [0, 5, 10, 15]), (50.0, [0])])
def test_spectra_are_looked_at_when_they_are_due(every: float, looks: list[int]) -> None:
    attached, composition = attached_with({"every": every})
    last: dict[str, float] = {}
    at = []
    for step in range(20):
        tiny.disturb(list(attached.trained().values()))
        now = rates(attached, composition, step)
        if now != last:
            at.append(step)
        last = now
    assert at == looks


def test_the_mean_over_processes_is_taken() -> None:
    """Two processes whose exponents differ have the same rates: here the other one's are all 3 larger."""
    attached, composition = attached_with({"form": "sqrt", "lowest": 0.01, "highest": 100.0})
    asked: list[Tensor] = []

    def reduce(t: Tensor) -> Tensor:
        asked.append(t)
        return 2 * t + (3.0 if len(asked) == 1 else 0.0)

    run = Run(0, 20, attached.model, attached.modules, None, 0, reduce)
    found = [composition.rate(run, site) for site in attached.modules]
    means = (asked[0] + 1.5).sqrt()
    assert found == pytest.approx((means / means.mean()).tolist())


KEYS = ("adapter.method=[{tempbalance: {every: 2}}, lora+]", "checkpoint.every=1", "checkpoint.keep=9")


def test_in_a_run_the_rate_multiplies_the_schedule_and_the_ratio(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []

    def context(run: Any) -> None:
        groups = run.optimizer.param_groups
        seen.append({name: group["lr"] for group in groups for name in group["param_names"]})

    runs.add_parts(monkeypatch, runs.At("before_step", 0, context))
    whole = place.train(*KEYS)
    for record, found in zip(runs.records(whole), seen, strict=True):
        of_A = {name.removesuffix(".A"): lr / record["lr"] for name, lr in found.items() if name.endswith(".A")}
        assert min(of_A.values()) == pytest.approx(0.5)
        assert max(of_A.values()) == pytest.approx(1.5)
        for site, factor in of_A.items():
            assert found[f"{site}.B"] == pytest.approx(16 * factor * record["lr"])


def test_a_resumed_run_is_the_run_and_looks_no_more_often(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = place.train(*KEYS)
    looks: list[int] = []
    rates_of = TempBalance.rates
    monkeypatch.setattr(TempBalance, "rates", lambda self, run: looks.append(run.step) or rates_of(self, run))
    for step, expected in ((1, [2, 4]), (2, [2, 4]), (3, [4]), (5, [])):
        looks.clear()
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*KEYS, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
        assert looks == expected
