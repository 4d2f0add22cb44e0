"""NOLA: its random matrices by integers of Python, its gradient by autograd through them, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Delta, Site
from lrft.adapters.attach import build_site
from lrft.adapters.storage import save_adapter
from lrft.methods import nola

F64 = torch.float64


def adapter_of(n: int = 5, d: int = 8, k: int = 11, r: int = 3, *, seed: int = 0, name: str = "layer") -> Any:
    composition = compose.compose([("nola", {"basis": n, "seed": seed})])
    adapter = build_site(Site(name, d, k, r, scale=1.5, dtype=F64), composition, None, fresh=True)
    assert isinstance(adapter, Delta)
    return adapter


def basis(adapter: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A_0 (r, k), every A_i (n, r, k) and every B_i (n, d, r), read off from the factors."""
    own, zero = adapter.tensors(), adapter.factors()
    with torch.no_grad():
        A, B = [], []
        for i in range(len(own["a"])):
            own["a"][i] = own["b"][i] = 1.0
            A.append(adapter.factors().A - zero.A)
            B.append(adapter.factors().B)
            own["a"][i] = own["b"][i] = 0.0
    return zero.A.detach(), torch.stack(A), torch.stack(B)


def hashed(x: int) -> int:
    """lowbias32, as its author states it in C for 32 bits."""
    x %= 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def test_the_random_matrices_are_those_of_the_hash() -> None:
    """Pinned: an adapter that was saved must mean the same matrices for ever."""
    keys = (0, 1, 2**31, 2**32 - 3, 123456789)
    for key in keys:
        ours = nola.uniform(2, 6, 7, key, like=torch.zeros((), dtype=F64))
        for i in range(2, 6):
            for j in range(7):
                bits = hashed(hashed(i + key) + hashed(j))
                assert ours[i - 2, j].item() == (bits >> 8) / 2**23 - 1
    assert hashed(1) == 1753845952  # so that hash and test cannot change together
    single = nola.uniform(2, 6, 7, keys[2], like=torch.zeros(()))
    assert torch.equal(single.double(), nola.uniform(2, 6, 7, keys[2], like=torch.zeros((), dtype=F64)))


def test_they_are_uniform_and_independent_to_the_eye() -> None:
    M = nola.uniform(0, 200, 2000, 77, like=torch.zeros((), dtype=F64))
    assert M.min() >= -1
    assert M.max() < 1
    for power, expected in ((1, 0.0), (2, 1 / 3), (3, 0.0), (4, 1 / 5)):
        assert M.pow(power).mean().item() == pytest.approx(expected, abs=0.005)  # five standard errors
    rows = M @ M.T / 2000 * 3
    off = rows - torch.diag(rows.diagonal())
    assert off.abs().max() < 6 / 2000**0.5
    columns = M.T @ M / 200 * 3
    assert (columns - torch.diag(columns.diagonal())).abs().max() < 7 / 200**0.5
    other = nola.uniform(0, 200, 2000, 78, like=torch.zeros((), dtype=F64))
    assert (M * other).mean().abs() < 0.005


def test_sizes_of_the_start_and_of_the_basis() -> None:
    A0, A, B = basis(adapter_of(n=40, d=50, k=60, r=4))
    assert A0.abs().max() <= 60**-0.5
    assert A0.std().item() == pytest.approx((3 * 60) ** -0.5, rel=0.1)
    for matrices in (A, B):
        assert matrices.abs().max() <= 40**-0.5
        assert matrices.std().item() == pytest.approx((3 * 40) ** -0.5, rel=0.05)


def test_the_update_is_the_sum_of_the_materialised_matrices_with_the_same_gradient() -> None:
    for at_once in (2**22, 1, 50):  # entries that exist at one time
        adapter = adapter_of()
        A0, A, B = basis(adapter)
        tiny.disturb(list(adapter.parameters()))
        own = {name: p.detach().clone().requires_grad_() for name, p in adapter.tensors().items()}
        dW = 1.5 * torch.einsum("n,ndr->dr", own["b"], B) @ (A0 + torch.einsum("n,nrk->rk", own["a"], A))
        x = torch.randn(2, 4, 11, dtype=F64, generator=torch.Generator().manual_seed(3))
        kept, nola.BLOCK = nola.BLOCK, at_once
        try:
            assert torch.allclose(adapter.delta_weight(), dW, atol=1e-12)
            adapter.delta(x).square().sum().backward()
        finally:
            nola.BLOCK = kept
        (x @ dW.T).square().sum().backward()
        for name, p in adapter.tensors().items():
            assert torch.allclose(p.grad, own[name].grad, rtol=1e-10), (at_once, name)
        assert torch.linalg.matrix_rank(dW) == 3


def test_the_first_step_reaches_b_and_not_yet_a() -> None:
    adapter = adapter_of()
    assert not adapter.delta_weight().any()
    adapter.delta(torch.ones(2, 11, dtype=F64)).sum().backward()
    assert adapter.tensors()["b"].grad.abs().min() > 0
    assert not adapter.tensors()["a"].grad.any()


def test_layers_and_seeds_have_matrices_of_their_own() -> None:
    first, *others = (basis(adapter_of(seed=s, name=n)) for s, n in ((0, "x"), (1, "x"), (0, "y")))
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert (a - b).abs().min() > 0
    A0, A, B = (matrices.flatten(-2) for matrices in first)
    assert (A[0] - A[1]).abs().min() > 0
    assert (A[:, :24] - B).abs().min() > 0, "A and B"
    assert (A0 * 11**0.5 - A[0] * 5**0.5).abs().min() > 0, "A_0 and A_1"


def test_no_generator_is_touched_and_nothing_is_kept() -> None:
    adapter = adapter_of(n=200, d=30, k=40)
    state = torch.get_rng_state()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        y = adapter.delta(torch.ones(2, 40, dtype=F64))
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert max(saved) <= 200, "coefficients, factors of rank 3, inputs; the basis has 200 * 3 * 70 numbers"
    assert not list(adapter.buffers())


def test_only_the_coefficients_are_saved_beside_the_lora(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    attached = lrft.attach(tiny.make("llama"), {"method": {"nola": {"basis": 7, "seed": 3}}, "rank": 2})
    tiny.disturb(list(attached.trained().values()))
    save_adapter(attached, tmp_path, base={"name": "tiny"})
    own = load_file(tmp_path / "lrft.safetensors")
    assert {tuple(t.shape) for t in own.values()} == {(7,)}
    assert json.loads((tmp_path / "lrft.json").read_text())["methods"][0]["options"]["seed"] == 3
    lora = load_file(tmp_path / "adapter_model.safetensors")
    for name, adapter in attached.modules.items():
        A, B = (lora[f"base_model.model.{name}.lora_{word}.weight"] for word in "AB")
        assert torch.allclose(adapter.site.scale * B @ A, attached.delta(name), atol=1e-6)


def test_a_run_trains_and_a_resume_is_exact(place: Place) -> None:
    keys = ("adapter.method={nola: {basis: 32}}", "checkpoint.every=3", "checkpoint.keep=9")
    whole = place.train(*keys)
    part = runs.cut(whole, 3, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    losses = [record["loss"] for record in runs.records(whole)]
    assert losses[-1] < losses[0]
