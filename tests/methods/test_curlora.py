"""CURLoRA and PMSS: which columns and rows are taken, and the matrix between them."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from lrft.errors import RecipeError
from lrft.methods.curlora import Curlora, pivots

RELEASED = {"curlora": {"damping": 0.001, "replace": True}}
WORDS = pytest.mark.parametrize("words", ["curlora", RELEASED, "pmss"], ids=str)


def places(found: Tensor, given: Tensor) -> list[int]:
    """The index in `given` (n, .) of each row of `found`, bit for bit."""
    return [next(i for i, row in enumerate(given) if torch.equal(row, one)) for one in found]


@WORDS
@pytest.mark.parametrize(("d", "k"), [(20, 14), (9, 30)])
def test_the_update_lies_between_columns_and_rows_of_the_weight(words: Any, d: int, k: int) -> None:
    model, attached = tiny.layer(words, d, k, alpha=3.0)
    adapter, W = attached.modules["0"], model[0].base.weight
    columns, rows = places(adapter.B.T, W.T), places(adapter.A, W)
    if words != RELEASED:
        assert (len(set(columns)), len(set(rows))) == (4, 4), "none twice"
    model(torch.randn(3, k, dtype=W.dtype)).square().sum().backward()
    assert adapter.R.grad.any(), "the first step moves it"
    tiny.disturb([adapter.R])
    dW = 3.0 * W[:, columns] @ adapter.R @ W[rows]
    assert tiny.same_function(model, attached, dW)
    assert torch.linalg.matrix_rank(dW) <= 4
    assert set(attached.trained()) == {"0.R"}


def test_small_columns_are_drawn_more_often_by_one_over_their_share() -> None:
    sizes = torch.tensor([4.0, 1.0, 0.5, 0.25], dtype=torch.float64).sqrt()  # shares 16 : 4 : 2 : 1 of 23 quarters
    W = torch.diag(sizes)
    for damping in (0.0, 0.1):
        torch.manual_seed(0)
        drawn = Curlora(damping=damping, replace=True).drawn(W, 20000)
        share = torch.bincount(drawn, minlength=4) / 20000
        expected = 1 / (sizes.square() / sizes.square().sum() + damping)
        assert torch.allclose(share.double(), expected / expected.sum(), atol=0.012)


def test_columns_of_zeros_come_last_and_a_weight_of_zeros_is_no_error() -> None:
    W = torch.zeros(5, 6)
    W[:, [1, 4]] = 1.0
    assert set(Curlora().drawn(W, 2).tolist()) == {1, 4}
    assert set(Curlora().drawn(W, 6).tolist()) == set(range(6))
    assert len(set(Curlora().drawn(torch.zeros(5, 6), 4).tolist())) == 4
    assert set(pivots(W, 1).tolist()) < {1, 4}
    assert len(set(pivots(torch.zeros(5, 6), 4).tolist())) == 4


def test_pivots_are_the_farthest_from_those_before_them() -> None:
    """Against the definition: distances by least squares, one column after another."""
    W = torch.randn(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen = pivots(W, 5).tolist()
    for n, pivot in enumerate(chosen):
        before = W[:, chosen[:n]]
        rest = W - before @ torch.linalg.lstsq(before, W).solution if n else W
        assert rest.norm(dim=0).argmax() == pivot
    assert len(set(chosen)) == 5


def test_the_factor_is_alpha_itself() -> None:
    for more, scale in (({}, 1.0), ({"alpha": 8.0}, 8.0)):
        assert tiny.layer("curlora", 9, 9, **more)[1].sites[0].scale == scale


def test_numbers_of_the_paper_and_a_rank_beyond_the_layer() -> None:
    """Mistral 7B, query, key and value of 32 layers at rank 16."""
    assert 96 * tiny.layer("curlora", 20, 18, rank=16)[1].trained()["0.R"].numel() == 24576
    with pytest.raises(RecipeError, match="a 20 x 14 layer has no 15 columns and rows: rank 14 at most"):
        tiny.layer("curlora", 20, 14, rank=15)
