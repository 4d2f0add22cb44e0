"""PLoP: scores against random inputs that are drawn, what they do not depend on, and layers that stay chosen."""

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
from lrft import recipe
from lrft.adapters.adapter import Site
from lrft.errors import RecipeError
from lrft.methods.plop import Plop, kind_of

DOUBLE = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class CalibrationContext(calibrated.Given):
    """Two sites with the same inputs: each must be scored with its own weight."""

    def inputs(self, rows: int, collect: Any) -> dict[str, str]:
        for x in self.given:
            collect(self.sites[0].name, x)
        return {site.name: self.sites[0].name for site in self.sites}


def score(W: Tensor, X: Tensor) -> float:
    site = Site("a", *W.shape, 2, dtype=DOUBLE)
    other = Site("b", *W.shape, 2, dtype=DOUBLE)
    found = Plop().calibrate(CalibrationContext.make([site, other], X.split(7), [W, 2 * W + 1]))
    assert found["a"]["score"] != found["b"]["score"]
    return found["a"]["score"].item()


def drawn(W: Tensor, X: Tensor) -> float:
    """The released code's: both sides by the same formula."""

    def mean(z: Tensor) -> float:
        return (z / z.norm(dim=1, keepdim=True) @ (W / W.square().mean().sqrt()).T).norm(dim=1).mean().item()

    return mean(X) / mean(random(20000, W.shape[1], seed=9))


def test_scores_are_those_of_the_formula_with_drawn_inputs() -> None:
    W, X = random(60, 80), random(50, 80, seed=1) * torch.arange(1, 81)
    assert score(W, X) == pytest.approx(drawn(W, X), rel=0.02)
    aligned = W.T @ random(60, 50, seed=2)
    assert score(W, aligned.T) == pytest.approx(drawn(W, aligned.T), rel=0.02)
    assert score(W, aligned.T) > 1.2


def test_an_orthogonal_weight_scores_one() -> None:
    assert score(torch.linalg.qr(random(30, 30)).Q, random(50, 30, seed=1) + 1) == pytest.approx(1, rel=1e-12)


def test_sizes_do_not_matter() -> None:
    W, X = random(30, 20), random(50, 20, seed=1)
    expected = score(W, X)
    assert score(7 * W, X) == pytest.approx(expected, rel=1e-12)
    assert score(W, X * torch.rand(50, 1) * 9) == pytest.approx(expected, rel=1e-12)


def test_one_direction_of_the_weight_is_seen_or_not() -> None:
    u, v = random(30), random(20, seed=1)
    W = torch.outer(u, v)
    X = torch.outer(random(50, seed=2), v)
    assert score(W, X) == pytest.approx(20**0.5, rel=1e-9)
    across = random(50, 20, seed=3)
    across -= torch.outer(across @ v, v) / v.square().sum()
    assert score(W, across) < 1e-9


def test_kinds_are_layers_without_the_number_of_their_block() -> None:
    assert kind_of("model.layers.3.mlp.up_proj") == kind_of("model.layers.11.mlp.up_proj")
    assert kind_of("h.0.attn.c_proj") != kind_of("h.0.mlp.c_proj")
    assert kind_of("layers.0.experts.1.fc1") != kind_of("layers.0.experts.1.fc2")


def expected_kinds(given: list[dict[str, Tensor]], n: int) -> set[str]:
    """By drawn inputs, and inputs of our own hooks."""
    model = tiny.make("llama").double()
    scores: dict[str, list[float]] = {}
    for name, X in calibrated.inputs_of(model, given).items():
        scores.setdefault(name.rsplit(".", 1)[-1], []).append(drawn(model.get_submodule(name).weight.detach(), X))
    return set(sorted(scores, key=lambda kind: sum(scores[kind]))[:n])


@pytest.mark.parametrize("n", [1, 3])
def test_the_kinds_with_the_lowest_scores_are_adapted(n: int) -> None:
    given = calibrated.batches()
    adapter = {"method": {"plop": {"kinds": n}}, "rank": 4}
    attached = lrft.attach(tiny.make("llama").double(), adapter, batches=given)
    found = [site.name.rsplit(".", 1)[-1] for site in attached.sites]
    assert set(found) == expected_kinds(given, n)
    assert len(found) == 2 * n  # both blocks
    assert set(attached.layers()) == {site.name for site in attached.sites}


def test_padding_does_not_matter() -> None:
    given = calibrated.batches(rows=3)
    more = []
    for batch in given:
        n = int(batch["attention_mask"].sum())
        longer = {"attention_mask": 0, "labels": -100, "input_ids": 5}
        more.append({k: torch.nn.functional.pad(v[:, :n], (0, 60 - n), value=longer[k]) for k, v in batch.items()})
    scores = []
    plop = Plop()
    calibrate = Plop.calibrate
    for some in (given, more):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Plop, "calibrate", lambda self, context: scores.append(calibrate(plop, context)) or scores[-1]
            )
            lrft.attach(tiny.make("llama").double(), {"target_modules": "plop"}, batches=some)
    for name, found in scores[0].items():
        assert found["score"].item() == pytest.approx(scores[1][name]["score"].item(), rel=1e-9)


def test_layers_that_no_row_reaches_are_left_out() -> None:
    sites = [Site(f"l.{i}.{word}", 9, 9, 2) for i in (0, 1) for word in "ab"]
    seen = {"l.0.a": {"score": torch.tensor(1.0)}, "l.1.a": {"score": torch.tensor(1.5)}}
    assert [site.name for site in Plop().assign_ranks_from(sites, seen)] == ["l.0.a", "l.1.a"]


@pytest.mark.parametrize("targets", ["plop", "all-linear"])
@pytest.mark.parametrize("method", [["mora", {"plop": {}}], ["lora", {"plop": {"kinds": 3}}], ["rslora", "plop"]])
def test_it_is_named_as_a_part_once(targets: Any, method: Any) -> None:
    section = recipe.parse_adapter({"method": method, "target_modules": targets})
    assert list(section.target_modules) == ["all-linear"]
    assert [entry.name for entry in section.method].count("plop") == 1
    adapter = {"method": method, "target_modules": targets, "rank": 4}
    attached = lrft.attach(tiny.make("llama"), adapter, batches=calibrated.batches())
    assert len({kind_of(site.name) for site in attached.sites}) == 3


def test_it_is_named_as_the_target() -> None:
    for method in ("lora", "mora", ["pissa", "rslora"]):
        adapter = {"method": method, "target_modules": "plop", "rank": 4}
        assert recipe.parse_adapter(adapter).method[-1].name == "plop"
        attached = lrft.attach(tiny.make("llama"), adapter, batches=calibrated.batches())
        assert len({kind_of(site.name) for site in attached.sites}) == 3


def test_it_chooses_among_the_layers_that_are_targeted() -> None:
    words = ["q_proj", "o_proj"]
    adapter = {"method": {"plop": {"kinds": 1}}, "target_modules": words}
    attached = lrft.attach(tiny.make("llama"), adapter, batches=calibrated.batches())
    assert len({kind_of(site.name) for site in attached.sites} & {"model.layers.*.self_attn." + w for w in words}) == 1


def test_who_else_chooses_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="eva conflicts with plop: both would choose the target modules"):
        lrft.attach(tiny.make("llama"), {"method": "eva", "target_modules": "plop"}, batches=calibrated.batches())


@pytest.mark.parametrize("method", ["lora", "mora", "pissa"])
def test_a_run_resumes_with_the_same_layers_without_looking(
    place: Place, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    keys = (f"adapter.method={method}", "adapter.target_modules=plop")
    whole = calibrated.resumes_exactly_without_looking(place, monkeypatch, *keys)
    words = {word for name in calibrated.shapes(whole) for word in name.split(".") if word.endswith("_proj")}
    assert len(words) == 3
    assert runs.steps(place.root / "cut")[-1] == runs.STEPS


@pytest.mark.slow
def test_two_processes_choose_and_train_what_one_does(place: Place) -> None:
    """The second one has no row to look at when there is one only."""
    for rows in (9, 1):
        keys = ("adapter.target_modules=plop", f"adapter.method=[lora, {{plop: {{rows: {rows}}}}}]")
        one = place.train(*KEYS, *keys, out=f"one{rows}")
        two = launch(place, f"two{rows}", *keys)
        assert calibrated.shapes(one) == calibrated.shapes(two)
        assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-4
    cut = runs.cut(two, 2, place.root / "cut")
    launch(place, "cut", *keys, resume="last")
    assert runs.differing(runs.tensors(cut), runs.tensors(two)) == []
