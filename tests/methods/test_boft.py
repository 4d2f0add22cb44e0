"""BOFT's butterflies as dense matrices, with PEFT's permutations. (Stock PEFT has several factors on CUDA alone.)"""

from __future__ import annotations

import pytest
import tiny
import torch
from peft.tuners.boft.layer import BOFTLayer

from lrft.errors import RecipeError

D, K = 7, 24


@pytest.mark.parametrize(("side", "factors"), [(2, 2), (2, 3), (6, 2), (3, 1)])
def test_the_weight_is_turned_by_a_product_of_permuted_blocks(side: int, factors: int) -> None:
    options = {"boft_block_size": side, "boft_n_butterfly_factor": factors}
    model, attached = tiny.layer({"boft": options}, D, K)
    adapter, W = attached.modules["0"], model[0].base.weight
    tiny.disturb(list(attached.trained().values()), size=0.5)
    eye = torch.eye(side, dtype=W.dtype)
    M = torch.eye(K, dtype=W.dtype)
    for number in range(factors):
        skew = (adapter.R[number] - adapter.R[number].transpose(1, 2)) / 2
        blocks = torch.block_diag(*((eye - Q) @ torch.linalg.inv(eye + Q) for Q in skew))
        places = BOFTLayer.block_butterfly_perm(None, K, K // side // 2**number, side // 2, factors - 1)
        P = eye.new_zeros(K, K).index_put((torch.arange(K), places), torch.tensor(1.0, dtype=W.dtype))
        M = P @ blocks @ P.T @ M
    torch.testing.assert_close(M @ M.T, torch.eye(K, dtype=W.dtype))
    assert tiny.same_function(model, attached, adapter.s * (W @ M.T) - W)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"boft_block_size": 5}, "need inputs that 5 divides, and there are 24"),
        ({"boft_block_size": 4, "boft_n_butterfly_factor": 3}, "need inputs that 16 divides"),
        ({"boft_block_size": 3, "boft_n_butterfly_factor": 2}, "need even blocks"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny.layer({"boft": options}, D, K)
