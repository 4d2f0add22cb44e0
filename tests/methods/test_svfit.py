"""SVFit: the trained singular values against a decomposition of the weight."""

from __future__ import annotations

import pytest
import tiny
import torch

from lrft.errors import RecipeError

SHAPES = pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20), (4, 9)])


@SHAPES
def test_it_is_the_residual_with_other_singular_values(d: int, k: int) -> None:
    """The paper's form, in which W is replaced, and ours, in which it is not."""
    model, attached = tiny.layer({"svfit": {"svd": "exact"}}, d, k)
    W = model[0].base.weight
    U, S, Vh = torch.linalg.svd(W)
    U, V, S = U[:, :4], Vh[:4].T, S[:4]
    gate = attached.modules["0"].gate
    assert not gate.any()
    with torch.no_grad():
        gate.copy_(torch.tensor([0.3, -0.2, 0.1, -S[3].item() - 0.5]))  # the last singular value becomes negative
    residual = W - U @ S.diag() @ V.T
    assert tiny.same_function(model, attached, residual + U @ (S + gate).diag() @ V.T - W)
    inside = U.T @ attached.delta("0") @ V
    assert torch.allclose(inside, gate.diag(), atol=1e-10), "diagonal between the singular vectors"
    assert torch.linalg.matrix_rank(attached.delta("0")) == 4
    values = torch.linalg.svdvals(W + attached.delta("0"))
    changed = (
        torch.cat([(S + gate).abs(), torch.linalg.svdvals(residual)[: min(d, k) - 4]]).sort(descending=True).values
    )
    assert torch.allclose(values, changed[: len(values)], atol=1e-9)


def test_only_the_values_are_trained_and_no_factor_is_taken() -> None:
    _, attached = tiny.layer("svfit", 20, 14)
    assert set(attached.trained()) == {"0.gate"}
    assert attached.trained()["0.gate"].shape == (4,)
    with pytest.raises(RecipeError, match="svfit has no scaling factor"):
        tiny.layer("svfit", 20, 14, alpha=8.0)
    with pytest.raises(RecipeError, match="a 20 x 14 layer has 14 singular values: lower rank 15"):
        tiny.layer("svfit", 20, 14, rank=15)
