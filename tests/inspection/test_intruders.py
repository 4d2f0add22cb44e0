"""Spectra and intruders of large weights without decomposing them, against dense decompositions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.storage import SavedAdapter
from lrft.inspection import inspect, intruders, krylov
from lrft.inspection.inspect import measured

COUNT, TOP = 16, 6
SHAPES = [(300, 300), (300, 400), (400, 300)]


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done for a side of thousands, at a few hundred: more of it is spanned, as its spectrum is as wide."""
    monkeypatch.setattr(krylov, "LARGE", 100)
    monkeypatch.setattr(krylov, "SHARE", 1)


def weight(kind: str, d: int, k: int, seed: int = 0) -> Tensor:
    """flat: random. spiked: some large directions over it, as in trained weights. decaying: by a power law, to 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d, k, generator=generator, dtype=torch.float64)
    n = min(d, k)
    if kind == "flat":
        return W
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    falling = torch.arange(1, n + 1, dtype=torch.float64)
    if kind == "spiked":
        return W + 3 * n**0.5 * (U[:, -20:] * falling[:20] ** -0.5) @ Vh[-20:]
    return (U * falling**-1.2) @ Vh


def update(d: int, k: int, size: float, seed: int = 1) -> Tensor:
    """Of rank 4 and this largest singular value."""
    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(d, 4, generator=generator).double() @ torch.randn(4, k, generator=generator).double()
    return D * (size / torch.linalg.matrix_norm(D, 2))


def dense(W: Tensor, changed: Tensor, top: int) -> Tensor:
    before, after = (torch.linalg.svd(matrix, full_matrices=False)[0] for matrix in (W, changed))
    return (before.T @ after[:, :top]).abs().amax(dim=0)


@pytest.mark.parametrize("kind", ["flat", "spiked", "decaying"])
@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_leading_values_and_vectors_are_those_of_a_dense_decomposition(d: int, k: int, kind: str) -> None:
    W = weight(kind, d, k)
    found = krylov.leading(W, COUNT, TOP)
    assert found is not None
    assert not found.complete
    U, S, _ = torch.linalg.svd(W, full_matrices=False)
    assert torch.allclose(found.values, S[:COUNT], rtol=1e-9)
    assert found.vectors.shape[1] >= TOP
    same = (U[:, :COUNT].T @ found.vectors).abs()
    assert torch.allclose(same.amax(dim=0), torch.ones(found.vectors.shape[1]).double(), atol=1e-9)
    assert torch.allclose(same[:TOP, :TOP], torch.eye(TOP).double(), atol=1e-6)


@pytest.mark.parametrize("size", [0.01, 0.8, 3.0])
@pytest.mark.parametrize("kind", ["flat", "spiked", "decaying"])
@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_intruders_are_those_of_a_dense_decomposition(d: int, k: int, kind: str, size: float) -> None:
    W = weight(kind, d, k)
    changed = W + update(d, k, size * torch.linalg.matrix_norm(W, 2).item())
    before, after = krylov.leading(W, COUNT, 0), krylov.leading(changed, COUNT, TOP)
    assert before is not None
    assert after is not None
    cosines = dense(W, changed, TOP)
    for epsilon in (0.0, 0.5, 0.9):
        low, high = intruders.nearest(W, before, after.vectors[:, :TOP], epsilon)
        assert (low <= cosines + 1e-6).all()
        assert (cosines <= high + 1e-6).all()
        assert torch.equal(high < epsilon, cosines < epsilon)
        assert torch.equal(low < epsilon, cosines < epsilon)


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_an_update_in_new_directions_is_decided_without_the_base_s_other_vectors(
    d: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    W = weight("flat", d, k)
    changed = W + update(d, k, 3 * torch.linalg.matrix_norm(W, 2).item())
    before, after = krylov.leading(W, COUNT, 0), krylov.leading(changed, COUNT, 4)
    assert before is not None
    assert after is not None
    monkeypatch.setattr(intruders, "decomposed", None)  # an error where it is asked for
    low, high = intruders.nearest(W, before, after.vectors[:, :4], 0.5)
    assert (high < 0.5).all()
    assert (low < high).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_no_cosine_is_above_its_bound(d: int, k: int, share: float) -> None:
    """Directions near one singular vector from the middle of the base, whose cosine is known."""
    W = weight("flat", d, k)
    U, S, _ = torch.linalg.svd(W, full_matrices=False)
    generator = torch.Generator().manual_seed(2)
    noise = torch.nn.functional.normalize(torch.randn(5, d, generator=generator, dtype=torch.float64), dim=1)
    middle = U[:, [60, 100, 150, 200, 299]].T
    z = torch.nn.functional.normalize(share * middle + (1 - share) * noise, dim=1)
    cosines = (z @ U).abs().amax(dim=1)
    for epsilon in (0.05, 0.3):
        found = intruders.bounds(W, S[0].item(), z, torch.zeros(5).double(), epsilon)
        assert (found >= cosines).all()


def test_what_cannot_be_told_is_decomposed() -> None:
    """A direction a little nearer to one inner vector of the base than to many others: moments do not find it."""
    W = weight("flat", 300, 300)
    U = torch.linalg.svd(W)[0]
    before = krylov.leading(W, COUNT, 0)
    assert before is not None
    near = torch.nn.functional.normalize(3 * U[:, 128] + U[:, 30:].sum(dim=1), dim=0)
    cosine = (U.T @ near).abs().max().item()
    assert 0.2 < cosine < 0.4
    low, high = intruders.nearest(W, before, near[:, None], cosine + 1e-3)
    assert low.item() == high.item() == pytest.approx(cosine, abs=1e-9)


def test_equal_values_that_a_block_may_miss_are_left_to_a_full_decomposition() -> None:
    generator = torch.Generator().manual_seed(3)
    turned = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64)).Q
    assert krylov.leading(turned, COUNT, TOP) is None
    falling = torch.arange(300, 0, -1).double()
    falling[:40] = 500.0
    assert krylov.leading(turned * falling, COUNT, 0) is None
    assert krylov.leading(turned[:, :30] @ turned[:30], COUNT, TOP) is None, "of rank 30"
    assert krylov.leading(torch.zeros(300, 300).double(), COUNT, TOP) is None


def test_a_small_weight_is_left_to_a_full_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(krylov, "LARGE", 300)
    assert krylov.leading(weight("flat", 300, 400), COUNT, TOP) is None
    monkeypatch.undo()
    assert krylov.leading(weight("flat", 300, 400), COUNT, TOP) is None


def test_a_report_is_the_same_with_and_without_full_decompositions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "KEPT", COUNT)
    site = Site("layer.0.q_proj", 300, 400, 4, 1.0, 0)
    generator = torch.Generator().manual_seed(4)
    factors = {"A": torch.randn(4, 400, generator=generator), "B": torch.randn(300, 4, generator=generator)}
    info = {"base": {}, "methods": [{"name": "lora", "options": {}}], "seed": 0}
    saved = SavedAdapter(Path(), info, [site], compose.compose([("lora", {})]), {site.name: factors})
    W = weight("flat", 300, 400).float()
    quick = asdict(measured(site, saved.build(site), W, 4, 0.5))
    monkeypatch.setattr(krylov, "LARGE", 400)
    full = asdict(measured(site, saved.build(site), W, 4, 0.5))
    assert full["cosines"] == full["cosines_at_most"] != quick["cosines"]
    for low, cosine, high in zip(quick.pop("cosines"), full.pop("cosines"), quick.pop("cosines_at_most"), strict=True):
        assert low - 1e-5 <= cosine <= high + 1e-5
    del full["cosines_at_most"]
    assert quick["intruders"] == 4
    for part in ("update", "base", "merged"):
        one, other = quick.pop(part), full.pop(part)
        assert one.pop("values") == pytest.approx(other.pop("values"), rel=2e-6)
        assert one == pytest.approx(other, rel=1e-6)
    assert quick == full
