"""MoRA against a dense construction written straight from its formulas, entry by entry."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Delta, Site
from lrft.adapters.attach import build_site
from lrft.errors import RecipeError

TYPES = (1, 2, 3, 4, 6)
# (d, k): outputs, inputs. Divisible and not, wide and narrow, R > k and R > d among them.
SHAPES = [
    (16, 16),
    (24, 36),
    (36, 24),
    (13, 17),
    (30, 31),
    (12, 48),
    (8, 64),
    (64, 8),
    (7, 50),
    (50, 7),
    (20, 5),
    (5, 20),
]
RANKS = (1, 2, 3, 5)


def side_of(d: int, k: int, r: int, operator: int) -> int:
    side = math.floor(math.sqrt((d + k) * r) + 0.5)
    return 2 * (side // 2) if operator == 6 else side


CASES = [
    (d, k, r, operator)
    for d, k in SHAPES
    for r in RANKS
    for operator in TYPES
    if 1 <= side_of(d, k, r, operator) <= 2 * k
]


def adapter_of(d: int, k: int, r: int, operator: int | str) -> Delta:
    composition = compose.compose([("mora", {"type": operator})])
    site = Site("layer", d, k, r, dtype=torch.float64)
    adapter = build_site(site, composition, None, fresh=True)
    assert isinstance(adapter, Delta)
    return adapter


def filled(adapter: Delta) -> Tensor:
    """Put random numbers into M and return them."""
    M = adapter.tensors()["M"]
    with torch.no_grad():
        M.copy_(torch.randn(M.shape, dtype=M.dtype, generator=torch.Generator().manual_seed(1)))
    return M.detach()


def group(i: int, n: int, R: int) -> int:
    """The contiguous group of entry i of n."""
    q, m = divmod(n, R)
    if q == 0:
        return i
    return i // (q + 1) if i < m * (q + 1) else m + (i - m * (q + 1)) // q


def dense_sharing(M: Tensor, d: int, k: int, operator: int) -> Tensor:
    R = len(M)
    p = math.ceil(k / R) * R - k
    dW = torch.zeros(d, k, dtype=M.dtype)
    for o in range(d):
        row = o % R if operator in (1, 3) else group(o, d, R)
        for i in range(k):
            if operator in (2, 3):
                dW[o, i] = M[row, group(i, k, R)]
            else:
                dW[o, i] = M[row, i % R] + (M[row, (k + i) % R] if i < p else 0.0)
    return dW


def dense_rotation(M: Tensor, d: int, k: int) -> Tensor:
    R = len(M)
    n, half = math.ceil(k / R), R // 2
    dW = torch.zeros(d, k, dtype=M.dtype)
    for o in range(d):
        block, j = divmod(o % (n * R), R)
        for t in range(R):
            angle = block * 10000.0 ** (-2.0 * (t % half) / R)
            if t < half:
                value = M[j, t] * math.cos(angle) + M[j, t + half] * math.sin(angle)
            else:
                value = M[j, t] * math.cos(angle) - M[j, t - half] * math.sin(angle)
            column = block * R + t
            dW[o, column if column < k else column - k] += value
    return dW


@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_the_update_and_the_forward_are_those_of_the_formulas(d: int, k: int) -> None:
    x = torch.randn(2, 3, k, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cases = [case for case in CASES if case[:2] == (d, k)]
    for _, _, r, operator in cases:
        adapter = adapter_of(d, k, r, operator)
        M = filled(adapter)
        assert M.shape == (side_of(d, k, r, operator),) * 2
        expected = dense_rotation(M, d, k) if operator == 6 else dense_sharing(M, d, k, operator)
        assert (adapter.delta_weight() - expected).abs().max() <= 1e-12, (r, operator)
        assert (adapter.delta(x) - x @ expected.T).abs().max() <= 1e-12 * k, (r, operator)


def test_the_cases_cover_what_is_special() -> None:
    """Else the test above could pass by having lost its hard cases."""
    sides = [(d, k, side_of(d, k, r, operator), operator) for d, k, r, operator in CASES]
    for operator in TYPES:
        mine = [(d, k, R) for d, k, R, kind in sides if kind == operator]
        assert {(d, k) for d, k, _ in mine} == set(SHAPES)
        for special in (
            [k % R == 0 for d, k, R in mine],
            [k % R != 0 for d, k, R in mine],
            [k < R for d, k, R in mine],
            [d < R for d, k, R in mine],
            [d > math.ceil(k / R) * R for d, k, R in mine],
        ):
            assert any(special), operator


def test_many_inputs_are_imaged_in_several_goes() -> None:
    d, k = 6, 1200
    adapter = adapter_of(d, k, 1, 1)
    M = filled(adapter)
    assert (adapter.delta_weight() - dense_sharing(M, d, k, 1)).abs().max() <= 1e-12


LLAMA_2_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
LLAMA_3_8B = [(4096, 4096)] * 2 + [(1024, 4096)] * 2 + [(14336, 4096)] * 2 + [(4096, 14336)]
SMOLLM2_135M = [(576, 576)] * 2 + [(192, 576)] * 2 + [(1536, 576)] * 2 + [(576, 1536)]


@pytest.mark.parametrize(
    ("shapes", "blocks", "rank", "operator", "total"),
    [
        (LLAMA_2_7B, 32, 8, 1, 20_014_592),
        (LLAMA_2_7B, 32, 8, 6, 20_014_592),
        (LLAMA_2_7B, 32, 256, 1, 639_433_088),
        (LLAMA_2_7B, 32, 256, 6, 639_433_088),
        (LLAMA_3_8B, 32, 8, 6, 20_961_536),
        (SMOLLM2_135M, 30, 8, 1, 2_439_000),
    ],
)
def test_numbers_trained_in_known_models(
    shapes: list[tuple[int, int]], blocks: int, rank: int, operator: int, total: int
) -> None:
    composition = compose.compose([("mora", {"type": operator})])
    with torch.device("meta"):
        sides = [composition.method.build(Site("layer", d, k, rank)).M.shape[0] for d, k in shapes]
    assert blocks * sum(R * R for R in sides) == total


@pytest.mark.parametrize(
    ("d", "k", "r", "operator", "R"),
    [
        (4096, 4096, 8, 6, 256),
        (4096, 4096, 128, 1, 1024),
        (4096, 4096, 256, 1, 1448),
        (4096, 11008, 8, 6, 348),
        (11008, 4096, 256, 1, 1966),
        (1024, 4096, 8, 6, 202),
        (10, 10, 1, 1, 4),  # sqrt(20) = 4.47 goes down,
        (11, 10, 1, 1, 5),  # sqrt(21) = 4.58 up,
        (11, 10, 1, 6, 4),  # and type 6 needs an even side
    ],
)
def test_side_of_the_matrix(d: int, k: int, r: int, operator: int, R: int) -> None:
    with torch.device("meta"):
        adapter = compose.compose([("mora", {"type": operator})]).method.build(Site("layer", d, k, r))
    assert adapter.M.shape == (R, R)


def test_auto_rotates_at_low_ranks_and_shares_at_high_ones() -> None:
    for rank, operator in ((8, 6), (32, 6), (33, 1), (48, 1)):
        chosen, named = adapter_of(64, 64, rank, "auto"), adapter_of(64, 64, rank, operator)
        M = filled(named)
        chosen.load({"M": M})
        assert type(chosen) is type(named)
        assert torch.equal(chosen.delta_weight(), named.delta_weight())


def test_a_rank_too_large_for_the_layer_is_refused_with_the_sizes() -> None:
    model = nn.Sequential(nn.Linear(3, 50))
    with pytest.raises(RecipeError, match=r"0: mora's matrix would be 16 x 16 for 3 inputs.*change rank 5"):
        lrft.attach(model, {"method": {"mora": {"type": 1}}, "rank": 5})
    assert isinstance(model[0], nn.Linear), "nothing was attached"
    with pytest.raises(ValueError, match="1 to"):
        adapter_of(1, 1, 1, 6).delta_weight()  # an even side of 1.41 is 0


def test_a_factor_is_refused_because_there_is_none() -> None:
    for words in ({"alpha": 16.0}, {"scale": 2.0}, {"overrides": {"q_proj": {"alpha": 4.0}}}):
        with pytest.raises(RecipeError, match="mora has no scaling factor"):
            lrft.attach(tiny.make("llama"), {"method": "mora", "rank": 2, **words})


def test_lora_plus_is_refused_because_there_is_no_pair() -> None:
    with pytest.raises(RecipeError, match="lora\\+ requires a pair of factors A and B; mora has no such pair"):
        lrft.attach(tiny.make("llama"), {"method": ["mora", "lora+"], "rank": 2})


@pytest.mark.parametrize("operator", [1, 2, 3, 4])
def test_sharing_has_rank_R(operator: int) -> None:
    adapter = adapter_of(30, 40, 2, operator)
    R = len(filled(adapter))
    assert torch.linalg.matrix_rank(adapter.delta_weight()) == R == 12


@pytest.mark.parametrize(("d", "k"), [(30, 40), (40, 30), (24, 24)])
def test_rotation_has_full_rank(d: int, k: int) -> None:
    adapter = adapter_of(d, k, 1, 6)
    filled(adapter)
    assert torch.linalg.matrix_rank(adapter.delta_weight()) == min(d, k)


def test_rotation_of_a_narrow_layer_never_reads_its_last_inputs() -> None:
    d, k = 16, 100
    adapter = adapter_of(d, k, 1, 6)
    R = len(filled(adapter))
    reached = math.ceil(d / R) * R
    dW = adapter.delta_weight()
    assert reached < k
    assert dW[:, :reached].abs().sum(0).min() > 0
    assert not dW[:, reached:].any()


def test_the_first_step_moves_the_matrix_from_zero() -> None:
    """One factor only: zero is no saddle here, as it would be for a product."""
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "mora", "rank": 2})
    model(input_ids=ids, labels=ids).loss.backward()
    for name, M in attached.trained().items():
        assert not M.any(), name
        assert M.grad.abs().max() > 0, name


def test_two_ranks_on_one_model_do_not_share_angles() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)).double()
    attached = lrft.attach(model, {"method": {"mora": {"type": 6}}, "rank": 1, "overrides": {"1": {"rank": 3}}})
    for name, (d, k) in {"0": (12, 12), "1": (12, 12)}.items():
        M = filled(attached.modules[name])
        assert (attached.delta(name) - dense_rotation(M, d, k)).abs().max() <= 1e-12
    sides = [len(M) for M in attached.trained().values()]
    assert all(a < b for a, b in pairwise(sides))


def test_bfloat16_base_keeps_the_matrix_in_float32() -> None:
    model = nn.Sequential(nn.Linear(12, 12)).bfloat16()
    attached = lrft.attach(model, {"method": "mora", "rank": 1})
    assert {p.dtype for p in attached.trained().values()} == {torch.float32}
    assert model(torch.ones(2, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16
