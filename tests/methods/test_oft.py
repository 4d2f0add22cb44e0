"""OFT's rotation; that layers, gradients and files are PEFT's is in tests/adapters/test_peft_types.py."""

from __future__ import annotations

import pytest
import tiny
import torch

from lrft.errors import RecipeError


def test_exact_rotations_keep_the_singular_values_and_the_series_does_where_they_are_small() -> None:
    for options, size, wanted in (({"use_cayley_neumann": False}, 1.0, 1e-10), ({}, 0.01, 1e-6)):
        model, attached = tiny.layer({"oft": {"oft_block_size": 4, **options}}, 7, 12)
        W, adapter = model[0].base.weight.detach(), attached.modules["0"]
        tiny.disturb(list(attached.trained().values()), size=size)
        turned = adapter.weight(W).detach()
        assert (torch.linalg.svdvals(turned) - torch.linalg.svdvals(W)).abs().max() < wanted
        assert (turned - W).abs().max() > size / 10


def test_blocks_that_do_not_fit_are_refused_with_the_nearest_size() -> None:
    with pytest.raises(RecipeError, match="do not divide 12 inputs: set oft_block_size to 4"):
        tiny.layer({"oft": {"oft_block_size": 5}}, 7, 12)
