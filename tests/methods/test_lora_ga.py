"""LoRA-GA: the start against the decomposition of the whole gradient, where PEFT differs, and its first step."""

from __future__ import annotations

import math

import pytest
import runs
import tiny
import torch
from gradient_init import (
    NAMES,
    RANK,
    TARGETS,
    attach,
    batch,
    gradients,
    losses,
    near,
    observed,
    place,
    resumed_without_a_look,
    truncated,
)
from runs import Place
from torch import Tensor
from torch.nn.functional import cosine_similarity
from two_processes import KEYS, launch

import lrft
from lrft.errors import RecipeError

__all__ = ["place"]


@pytest.mark.parametrize(("gamma", "scale"), [(16.0, 2.0), (4.0, 0.5)])
def test_the_start_is_the_gradients_leading_directions(gamma: float, scale: float) -> None:
    attached = attach({"lora-ga": {"gamma": gamma}}, scale=scale)
    for name, G in gradients(1).items():
        pair = attached.modules[name].inner
        A, B, size = pair.A.detach(), pair.B.detach(), len(G) ** 0.25 / math.sqrt(gamma)
        U, _, Vh = torch.linalg.svd(G)
        assert near((A @ Vh[:RANK].T).abs(), size * torch.eye(RANK, dtype=A.dtype)), name
        assert near((B.T @ U[:, RANK : 2 * RANK]).abs(), size * torch.eye(RANK, dtype=A.dtype)), name
        assert near(A @ A.T, size**2 * torch.eye(RANK, dtype=A.dtype), 1e-10)
        assert near(B.T @ B, size**2 * torch.eye(RANK, dtype=A.dtype), 1e-10)
        assert near(B @ B.T @ G + G @ A.T @ A, size**2 * truncated(G, 2 * RANK)), name


def test_fresh_is_the_weight_and_counting_goes_from_the_start() -> None:
    attached = attach("lora-ga")
    layer = attached.layers()[NAMES[0]]
    adapter, W, s = layer.adapter, layer.base.weight.detach(), layer.adapter.site.scale
    assert torch.equal(adapter.weight(W), W)
    rest = W - s * (adapter.inner.B @ adapter.inner.A).detach()
    tiny.disturb(list(attached.trained().values()))
    assert torch.allclose(adapter.weight(W), rest + s * adapter.inner.B @ adapter.inner.A, atol=1e-12)


def test_the_size_of_the_loss_does_not_matter() -> None:
    one, thousand = observed("lora-ga", 1.0), observed("lora-ga", 1000.0)
    for name in NAMES:
        for part in ("U", "V"):
            assert near(thousand[name][part][:, : 2 * RANK], one[name][part][:, : 2 * RANK]), name


def test_a_power_round_is_nearly_the_decomposition() -> None:
    """Of gradients whose rank is more than the sketch has vectors."""
    missed = {}
    for rounds in (0, 1, 3):
        attached = attach({"lora-ga": {"rounds": rounds}}, rows=8)
        shares = []
        for name, G in gradients(8).items():
            V = attached.modules[name].inner.A.detach()
            best = torch.linalg.svdvals(G)[:RANK].square().sum()
            shares.append(1 - ((G @ V.T).norm() ** 2 / V[0].norm() ** 2 / best).item())
        missed[rounds] = max(shares)
    assert missed[0] > 0.01
    assert missed[1] < 0.01
    assert missed[3] < 1e-4


def test_signs_of_directions_are_settled() -> None:
    """Rounding, as of the number of processes, must not choose them: another run would follow."""
    for name, found in observed("lora-ga", 1.0).items():
        largest = found["V"].gather(0, found["V"].abs().argmax(0, keepdim=True))
        assert (largest > 0).all(), name


def peft_start(factor: float) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by layer of PEFT's own, for a loss multiplied by `factor`."""
    from peft import LoraConfig, LoraGAConfig, get_peft_model
    from peft.tuners.lora.loraga import preprocess_loraga

    model = tiny.make("llama").double()
    config = LoraConfig(
        r=RANK, target_modules=TARGETS, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(direction="ArB2r")
    )

    def step() -> None:
        with torch.enable_grad():
            (factor * model(**batch(1)).loss).backward()

    preprocess_loraga(model, config, step)
    layers = get_peft_model(model, config).base_model.model
    pairs = {name: layers.get_submodule(name) for name in NAMES}
    return {
        name: (layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double())
        for name, layer in pairs.items()
    }


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_directions_are_those_of_peft_and_lengths_are_not() -> None:
    theirs, larger, attached = peft_start(1.0), peft_start(1000.0), attach("lora-ga")
    for name, G in gradients(1).items():
        pair, (A, B) = attached.modules[name].inner, theirs[name]
        assert near(cosine_similarity(pair.A.detach(), A).abs(), torch.ones(RANK, dtype=A.dtype))
        assert near(cosine_similarity(pair.B.detach().T, B.T).abs(), torch.ones(RANK, dtype=A.dtype))
        # Theirs grows with the loss, and is not along the best rank-2r part of the gradient: ours is.
        assert larger[name][1].norm() > 500 * B.norm()
        ours = cosine_similarity((pair.B @ pair.B.T @ G + G @ pair.A.T @ pair.A).flatten(), G.flatten(), dim=0)
        peft = cosine_similarity((B @ B.T @ G + G @ A.T @ A).flatten(), G.flatten(), dim=0)
        best = truncated(G, 2 * RANK).norm() / G.norm()
        assert ours.item() == pytest.approx(best.item(), abs=1e-4)
        assert peft < ours - 1e-3


def test_refused_with_dropout_another_start_and_more_directions_than_there_are() -> None:
    for words, sentence in (
        ({"method": "lora-ga", "dropout": 0.1}, "lora-ga requires adapter.dropout: 0, got 0.1"),
        ({"method": ["mora", "lora-ga"]}, "lora-ga requires a pair of factors A and B"),
        ({"method": ["pissa", "lora-ga"]}, "pissa and lora-ga both set the init of A and B"),
        ({"method": ["lora-ga", "relora"]}, "relora conflicts with lora-ga"),
        (
            {"method": "lora-ga", "rank": 7},
            "v_proj: rank 7 takes 14 directions of the gradient, which has 12: at most 6",
        ),
        ({"method": "lora-ga", "rank": 30}, "rank 30 takes 60 directions"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words, batches=[batch(1)])


def test_a_run_starts_at_the_base_and_is_resumed_to_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrft.methods.lora_ga import LoraGa

    plain = place.train("training.max_steps=1", out="plain")
    whole = resumed_without_a_look(place, monkeypatch, "[lora-ga, rslora]", LoraGa)
    assert losses(whole)[0] == pytest.approx(losses(plain)[0], rel=1e-4)
    assert losses(whole)[-1] < losses(whole)[0]


@pytest.mark.slow
def test_two_processes_start_and_train_as_one(place: Place) -> None:
    one = place.train(*KEYS, "adapter.method=lora-ga", out="one")
    two = launch(place, "two", "adapter.method=lora-ga")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-2
