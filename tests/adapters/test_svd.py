"""Singular triplets at chosen places, and squared singular values, against the full decomposition."""

from __future__ import annotations

import pytest
import torch

from lrft.adapters import svd

PLACES = torch.tensor([0, 3, 4, 9, 11])


def of_spectrum(values: torch.Tensor, d: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """A matrix (d, k) with these singular values."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=generator)).Q for n in (d, k)
    )
    return ((left * values) @ right.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "k"), [(12, 30), (30, 12), (12, 12)])
def test_triplets_at_places_are_those_of_the_full_decomposition(d: int, k: int, dtype: torch.dtype) -> None:
    values = torch.linspace(1, 3e-2, 12, dtype=torch.float64)
    W = of_spectrum(values, d, k, dtype)
    U, S, V = svd.at(W, PLACES)
    wanted = svd.exact(W.double(), 12)
    assert (U.dtype, U.shape, V.shape) == (dtype, (d, 5), (k, 5))
    for found, full in ((U, wanted[0][:, PLACES]), (S, wanted[1][PLACES]), (V, wanted[2][:, PLACES])):
        assert torch.allclose(found.double(), full, atol=1e-6 if dtype == torch.float32 else 1e-12)


def test_values_that_rounding_hides_are_decomposed_in_full() -> None:
    values = torch.cat([torch.linspace(1, 0.1, 9, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)])
    U, S, V = svd.at(of_spectrum(values, 12, 30, torch.float32), PLACES)
    for basis in (U, V):
        assert torch.allclose(basis.T @ basis, torch.eye(5), atol=1e-5)
    assert S[-1] < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "k"), [(12, 30), (30, 12)])
def test_squares_are_those_of_singular_values(d: int, k: int, dtype: torch.dtype) -> None:
    values = torch.logspace(0, -3, 12, dtype=torch.float64)
    found = svd.squares(of_spectrum(values, d, k, dtype))
    assert found.dtype == torch.float64
    assert torch.allclose(found.sqrt().flip(0), values, rtol=1e-4 if dtype == torch.float32 else 1e-10)
