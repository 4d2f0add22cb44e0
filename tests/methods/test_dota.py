"""DoTA: the start against the weight, the chain against its entries, and both ways through it."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor

from lrft.methods import dota

SHAPES = pytest.mark.parametrize(("d", "k", "cores"), [(24, 36, 3), (36, 24, 3), (20, 14, 2), (7, 24, 3)])


def entry(cores: list[Tensor], o: int, i: int) -> Tensor:
    """One entry of the matrix, by the definition of a matrix product operator."""
    row = torch.ones(1, 1, dtype=torch.float64)
    rows = math.prod(core.shape[1] for core in cores)
    columns = math.prod(core.shape[2] for core in cores)
    for core in cores:
        rows, columns = rows // core.shape[1], columns // core.shape[2]
        row = row @ core[:, o // rows, i // columns]
        o, i = o % rows, i % columns
    return row.squeeze()


@SHAPES
def test_dense_and_contracted_are_the_definition(d: int, k: int, cores: int) -> None:
    own = tiny.layer({"dota": {"cores": cores}}, d, k, rank=3)[1].modules["0"]
    tiny.disturb(list(own.parameters()), size=0.5)
    found = dota.dense(own.cores("T"))
    assert found.shape == (d, k)
    for o in range(0, d, 5):
        for i in range(0, k, 3):
            assert torch.allclose(found[o, i], entry(own.cores("T"), o, i), atol=1e-12)
    x = torch.randn(2, 3, k, dtype=torch.float64)
    assert torch.allclose(dota.contracted(own.cores("T"), x), x @ found.T, atol=1e-11)


@SHAPES
@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_the_start_is_of_the_weight_and_without_a_cut_the_weight(d: int, k: int, cores: int, rank: int) -> None:
    model, attached = tiny.layer({"dota": {"cores": cores}}, d, k, rank=rank)
    own, W = attached.modules["0"], model[0].base.weight
    start = dota.dense(own.cores("S"))
    if rank == 1000:
        assert torch.allclose(start, W, atol=1e-10)
    first = own.S1.shape
    left = W.reshape(first[1], d // first[1], first[2], k // first[2]).transpose(1, 2).flatten(0, 1).flatten(1)
    kept = torch.linalg.svdvals(left)[: first[3]].square().sum().sqrt()
    assert start.norm() <= kept + 1e-9
    assert (W - start).norm() <= W.norm() + 1e-9
    if cores == 2:
        assert start.norm().item() == pytest.approx(kept.item()), "one cut: the best there is"
    tiny.disturb(list(attached.trained().values()))
    residual = W - start
    assert tiny.same_function(model, attached, residual + dota.dense(own.cores("T")) - W)


def test_both_ways_are_taken_and_neither_loses_a_small_change_to_rounding() -> None:
    """float32, a change of 1e-6 beside numbers of 0.1: the difference of two products would lose it."""
    for d, k, rank in ((64, 64, 1), (24, 24, 6)):
        own = tiny.layer("dota", d, k, rank=rank)[1].modules["0"].float()
        assert (dota.cost(own.change(), k) < d * k) == (rank == 1)
        tiny.disturb(list(own.parameters())[:3], size=1e-6)
        wide = [core.double() for core in own.cores("T")], [core.double() for core in own.cores("S")]
        expected = dota.dense(wide[0]) - dota.dense(wide[1])
        x = torch.randn(5, k)
        assert torch.allclose(own.delta_weight().double(), expected, rtol=1e-3, atol=1e-9)
        assert torch.allclose(own.delta(x).double(), x.double() @ expected.T, rtol=1e-2, atol=1e-9)


def test_the_rank_is_not_bounded_by_the_bond() -> None:
    _, attached = tiny.layer({"dota": {"cores": 3}}, 36, 24, rank=5)
    assert torch.linalg.matrix_rank(dota.dense(attached.modules["0"].cores("T"))) > 5


@pytest.mark.parametrize(
    ("size", "n", "factors"), [(4096, 3, [16, 16, 16]), (24, 3, [2, 3, 4]), (7, 3, [1, 1, 7]), (11008, 2, [86, 128])]
)
def test_sides_are_cut_evenly(size: int, n: int, factors: list[int]) -> None:
    assert dota.evenly(size, n) == factors


def test_numbers_trained() -> None:
    _, attached = tiny.layer("dota", 64, 64, rank=3)
    assert sum(p.numel() for p in attached.trained().values()) == 16 * (3 + 9 + 3)
    assert {p.requires_grad for name, p in attached.tensors().items() if ".S" in name} == {False}
