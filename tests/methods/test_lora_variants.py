"""KaSA, QA-LoRA, MonteCLoRA and VeLoRA: the variants of PEFT's LoRA against its own code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import tiny
import torch
from peft.tuners.lora.config import KasaConfig, VeloraConfig
from peft.tuners.lora.monteclora import MontecloraSampler
from peft.tuners.lora.variants import QALoraLinearVariant
from safetensors.torch import load_file, save_file
from torch import nn

import lrft
from lrft.adapters.part import Run
from lrft.errors import CheckFailed, RecipeError
from lrft.methods.kasa import Kasa
from lrft.methods.monteclora import MonteClora, dirichlet_divergence


def run_of(attached: Any) -> Run:
    return Run(0, 1, attached.model, attached.modules, None, 0, lambda t: t)  # type: ignore[arg-type]


def test_kasa_leaves_out_the_smallest_components_and_adds_a_diagonal() -> None:
    model, attached = tiny.layer("kasa", 7, 5, rank=2, alpha=6)
    tiny.disturb(list(attached.trained().values()))
    adapter, W = attached.modules["0"], model[0].base.weight
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    change = 3 * adapter.B @ torch.diag(adapter.diagonal) @ adapter.A - (U[:, 3:] * S[3:]) @ Vh[3:]
    assert tiny.same_function(model, attached, change)


def test_kasas_penalty_is_that_of_stock_peft(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], kasa_config=KasaConfig(beta=0.3, gamma=0.7))
    theirs: Any = peft.get_peft_model(tiny.make("llama"), config)
    tiny.disturb([p for p in theirs.parameters() if p.requires_grad], size=0.1)
    theirs.save_pretrained(tmp_path)
    attached = lrft.load_adapter(tiny.make("llama"), tmp_path)
    options = attached.methods[0]["options"]
    assert options == {"beta": 0.3, "gamma": 0.7}
    term = Kasa(**options).loss(run_of(attached))
    assert term is not None
    torch.testing.assert_close(term, theirs.base_model._get_kasa_loss(), rtol=1e-5, atol=1e-6)


def test_kasa_needs_a_rank_below_the_smaller_side() -> None:
    with pytest.raises(RecipeError, match="kasa leaves 5 singular components out, and the weight has 5"):
        tiny.layer("kasa", 7, 5, rank=5)


def test_qalora_is_pefts_forward_of_gptq_layers() -> None:
    model, attached = tiny.layer({"qalora": {"group_size": 3}}, 5, 12, rank=2, alpha=6)
    tiny.disturb(list(attached.trained().values()))
    adapter, x = attached.modules["0"], torch.randn(2, 4, 12, dtype=torch.float64)
    layer = SimpleNamespace(
        in_features=12,
        training=False,
        lora_A={"a": SimpleNamespace(weight=adapter.A)},
        lora_B={"a": SimpleNamespace(weight=adapter.B)},
        lora_dropout={"a": nn.Identity()},
        scaling={"a": 3.0},
        qalora_group_size={"a": 3},
    )
    expected = QALoraLinearVariant.forward(layer, "a", x, model[0].base(x))
    torch.testing.assert_close(model(x), expected)
    assert tiny.same_function(model, attached, adapter.delta_weight())


def test_qalora_folders_are_read_and_a_lora_with_that_word_is_refused(tmp_path: Path) -> None:
    """PEFT heeds the word on layers of GPTQ alone: elsewhere its file holds a whole A."""
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], use_qalora=True, qalora_group_size=4)
    theirs: Any = peft.get_peft_model(tiny.make("llama"), config)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckFailed, match="q_proj"):
        lrft.load_adapter(tiny.make("llama"), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({n: t[:, :6] + 1 if "lora_A" in n else t + 1 for n, t in load_file(path).items()}, path)
    attached = lrft.load_adapter(tiny.make("llama"), tmp_path)
    assert attached.methods == ({"name": "qalora", "options": {"group_size": 4}},)
    name, adapter = next(iter(attached.modules.items()))
    stored = {n.rpartition("lora_")[2][0]: t for n, t in load_file(path).items() if f"{name}." in n}
    expected = adapter.site.scale * 24 / 16 * stored["B"] @ stored["A"].repeat_interleave(4, dim=1)
    torch.testing.assert_close(attached.delta(name), expected)


def test_qalora_needs_groups_that_divide_the_inputs() -> None:
    with pytest.raises(RecipeError, match="5 inputs are not divisible by group_size 2"):
        tiny.layer({"qalora": {"group_size": 2}}, 7, 5)


def test_monteclora_draws_as_stock_peft_and_is_its_lora_afterwards() -> None:
    model, attached = tiny.layer({"monteclora": {"samples": 4, "noise": 0.5}}, 6, 400, rank=3)
    adapter = attached.modules["0"]
    tiny.disturb(list(attached.trained().values()))
    torch.manual_seed(0)
    with torch.no_grad():
        A = adapter.inner.A
        ours = torch.stack([adapter.displaced().A - A for _ in range(200)])
        theirs = MontecloraSampler(400, 3, 4, sample_scaler=0.5, buffer_size=200, device="cpu", dtype=torch.float64)
        theirs.std_prior.copy_(adapter.spread)
        theirs.expert_weights_prior.copy_(adapter.mix)
        drawn = [theirs() for _ in range(200)]
    wanted = torch.stack([torch.einsum("n,nij->ji", weights, noise) for noise, weights in drawn])
    for found, expected in ((ours.std(dim=(0, 2)), wanted.std(dim=(0, 2))), (ours.mean(), torch.zeros(()).double())):
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)
    x = torch.randn(3, 400, dtype=torch.float64)
    assert not torch.equal(model.train()(x), model(x))
    dW = adapter.inner.delta_weight()
    torch.testing.assert_close(model.eval()(x), model[0].base(x) + x @ dW.T)
    torch.testing.assert_close(adapter.weight(model[0].base.weight), model[0].base.weight + dW)


def test_monteclora_is_drawn_to_its_priors() -> None:
    a, prior = torch.tensor([0.3, 2.0, 0.9], dtype=torch.float64), 0.4
    torch.testing.assert_close(
        dirichlet_divergence(a, prior),
        torch.distributions.kl_divergence(
            torch.distributions.Dirichlet(a), torch.distributions.Dirichlet(torch.full_like(a, prior))
        ),
    )
    _, attached = tiny.layer({"monteclora": {"divergence": 1.0, "samples": 3, "prior": 0.4}}, 6, 8, rank=2)
    adapter = attached.modules["0"]
    with torch.no_grad():
        adapter.mix.copy_(a.log())
    theirs = MontecloraSampler(8, 2, 3, device="cpu", dtype=torch.float64, buffer_size=1)
    u = adapter.spread.detach()
    means = torch.diag(2 * (2 * u).exp())  # of what is drawn: r times the Wishart's scale
    expected = dirichlet_divergence(a, prior) + theirs.wishart_kl(torch.diag(u.exp()))
    term = MonteClora(samples=3, prior=0.4, divergence=1.0).loss(run_of(attached))
    torch.testing.assert_close(term, expected + theirs.multivariate_kl(means))


def test_a_folder_of_monteclora_is_its_lora(tmp_path: Path) -> None:
    """The distributions stand in the file and are left."""
    config = peft.LoraConfig(
        r=3, target_modules=["q_proj"], monteclora_config=peft.tuners.lora.config.MontecloraConfig(buffer_size=1)
    )
    theirs: Any = peft.get_peft_model(tiny.make("llama"), config)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["monteclora_config"]
    assert lrft.load_adapter(tiny.make("llama"), tmp_path).methods == ({"name": "lora", "options": {}},)


@pytest.mark.parametrize("direction", ["mean", "random"])
def test_velora_has_the_gradients_of_stock_peft(direction: str, tmp_path: Path) -> None:
    """5 groups do not divide 24 inputs."""
    model = tiny.make("llama").train()
    words = ["lora", {"velora": {"groups": 5, "direction": direction, "gradient_scale": 0.5}}]
    attached = lrft.attach(model, {"method": words, "rank": 3, "target_modules": ["q_proj"]})
    tiny.disturb(list(attached.trained().values()))
    init = {"mean": "batch_average", "random": "random"}[direction]
    config = VeloraConfig(num_groups=5, scale=0.5, init_type=init)
    theirs: Any = peft.get_peft_model(
        tiny.make("llama"), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], velora_config=config)
    )
    for name, adapter in attached.modules.items():
        layer = theirs.base_model.model.get_submodule(name)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(adapter.inner.A)
            layer.lora_B["default"].weight.copy_(adapter.inner.B)
        if direction == "random":
            layer.lora_velora_embed["default"] = adapter.direction.clone()
    ids = tiny.tokens()
    losses = [one(input_ids=ids, labels=ids).loss for one in (model, theirs.train())]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    plain = tiny.make("llama")
    other = lrft.attach(plain, {"method": "lora", "rank": 3, "target_modules": ["q_proj"]})
    for name, adapter in attached.modules.items():
        other.modules[name].load(adapter.tensors())
    plain(input_ids=ids, labels=ids).loss.backward()
    for name, adapter in attached.modules.items():
        layer = theirs.base_model.model.get_submodule(name)
        for word in ("A", "B"):
            wanted = getattr(layer, f"lora_{word}")["default"].weight.grad
            torch.testing.assert_close(adapter.tensors()[word].grad, wanted, rtol=1e-4, atol=1e-7)
        exact = other.modules[name].tensors()["A"].grad
        assert not torch.allclose(adapter.tensors()["A"].grad, exact, rtol=1e-2)


def test_velora_keeps_one_number_for_each_group() -> None:
    model, _ = tiny.layer(["lora", {"velora": {"groups": 4}}], 5, 12, rank=2)
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        model.train()(x)
    assert (21, 4) in kept
    assert all(shape[-1] != 12 or len(shape) < 3 for shape in kept)
