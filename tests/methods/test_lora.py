"""LoRA, rsLoRA and LoRA+: what their papers promise, and the factor and the rates of each layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import composition_warnings
from lrft.adapters.attached import Attached
from lrft.adapters.storage import save_adapter
from lrft.optim import lr_schedule
from lrft.optim.adamw import AdamW
from lrft.optim.named_state import grouped, set_lr

ADAMW = AdamW()


def small(d: int = 9, k: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(k, d)).double()


def attach(model: nn.Module, words: Any = "lora", rank: int = 2, **more: Any) -> Attached:
    return lrft.attach(model, {"method": words, "rank": rank, **more})


# LoRA


def test_fresh_output_is_that_of_the_base_bit_for_bit() -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    before = tiny.logits(model, ids)
    attach(model)
    assert torch.equal(tiny.logits(model, ids), before)


def test_rank_and_number_of_trained_values() -> None:
    attached = attach(small(), rank=3)
    tiny.disturb(list(attached.trained().values()))
    assert torch.linalg.matrix_rank(attached.delta("0")) == 3
    assert sum(p.numel() for p in attached.trained().values()) == 3 * (9 + 7)


def test_a_starts_as_kaiming_uniform_and_only_b_gets_a_gradient_at_first() -> None:
    model = nn.Sequential(nn.Linear(400, 30))
    attached = attach(model, rank=16)
    A, B = attached.trained()["0.A"], attached.trained()["0.B"]
    bound = 1 / math.sqrt(400)
    assert A.abs().max() <= bound
    assert A.abs().max() > 0.99 * bound
    assert A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not B.any()
    model(torch.randn(4, 400)).square().sum().backward()
    assert not A.grad.any()
    assert B.grad.abs().min() > 0


def test_the_update_is_scale_times_b_times_a() -> None:
    attached = attach(small(), rank=4, alpha=6.0)
    tiny.disturb(list(attached.trained().values()))
    A, B = (attached.trained()[f"0.{word}"] for word in "AB")
    assert torch.allclose(attached.delta("0"), 1.5 * B @ A, atol=1e-14)


def test_dropout_meets_the_adapters_input_only() -> None:
    model = small()
    attached = attach(model, dropout=0.5)
    tiny.disturb(list(attached.trained().values()))
    x = torch.randn(6, 7, dtype=torch.float64)
    model.train()
    torch.manual_seed(5)
    y = model(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    assert torch.allclose(y, model[0].base(x) + dropped @ attached.delta("0").T, atol=1e-12)
    model.eval()
    assert torch.allclose(model(x), model[0].base(x) + x @ attached.delta("0").T, atol=1e-12)


# The factor


@pytest.mark.parametrize(
    ("words", "more", "scale"),
    [
        ("lora", {}, 2.0),  # alpha is twice the rank by default
        ("lora", {"alpha": 4.0}, 0.5),
        ("lora", {"scale": 3.0}, 3.0),
        ("rslora", {}, 16 / math.sqrt(8)),
        ("rslora", {"alpha": 4.0}, 4 / math.sqrt(8)),
        ("rslora", {"scale": 3.0}, 3.0),
        ("pissa", {}, 1.0),
        (["pissa", "rslora"], {"alpha": 8.0}, math.sqrt(8)),
    ],
)
def test_the_factor(words: Any, more: dict[str, float], scale: float) -> None:
    assert attach(nn.Sequential(nn.Linear(30, 30)), words, rank=8, **more).sites[0].scale == pytest.approx(scale)


def test_every_layer_has_the_factor_of_its_own_rank_and_override() -> None:
    overrides = {
        "q_proj": {"rank": 2},
        "k_proj": {"alpha": 12.0},
        "v_proj": {"scale": 0.5},
        "o_proj": {"rank": 1, "alpha": 3.0},
        "*.1.self_attn.o_proj": {"rank": 9},
    }
    for words, root in (("lora", 1.0), ("rslora", 0.5)):
        attached = attach(tiny.make("llama"), words, rank=4, alpha=8.0, overrides=overrides)
        found = {site.name: (site.rank, site.scale) for site in attached.sites}
        expected = {
            "0.self_attn.q_proj": (2, 8 / 2**root),
            "0.self_attn.k_proj": (4, 12 / 4**root),
            "0.self_attn.v_proj": (4, 0.5),
            "0.self_attn.o_proj": (1, 3.0),
            "1.self_attn.o_proj": (9, 3 / 9**root),  # later entries add to earlier ones
            "0.mlp.up_proj": (4, 8 / 4**root),
        }
        for end, (rank, scale) in expected.items():
            assert found[f"model.layers.{end}"] == (rank, pytest.approx(scale)), (words, end)


def test_an_override_of_alpha_wins_over_a_scale_for_all() -> None:
    overrides = {"q_proj": {"alpha": 8.0}, "k_proj": {"rank": 2}}
    attached = attach(tiny.make("llama"), rank=4, scale=7.0, overrides=overrides)
    scales = {site.name.rsplit(".", 1)[-1]: site.scale for site in attached.sites}
    assert (scales["q_proj"], scales["k_proj"], scales["v_proj"]) == (2.0, 7.0, 7.0)


def test_rslora_over_lora_is_the_root_of_the_rank() -> None:
    for rank in (1, 4, 9):
        deltas = []
        for words in ("lora", "rslora"):
            attached = attach(small(12, 12), words, rank=rank, alpha=5.0)
            tiny.disturb(list(attached.trained().values()))
            deltas.append(attached.delta("0"))
        assert torch.allclose(deltas[1], math.sqrt(rank) * deltas[0], atol=1e-12)


def test_the_export_says_the_factor_to_a_reader_that_knows_no_rslora(tmp_path: Path) -> None:
    """Trust 24."""
    attached = attach(tiny.make("llama"), "rslora", rank=4, alpha=8.0, overrides={"down_proj": {"rank": 9}})
    save_adapter(attached, tmp_path, base={"name": "tiny"})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["use_rslora"] is False
    assert (config["r"], config["lora_alpha"]) == (4, 8 * math.sqrt(4))
    for name in (n for n in attached.modules if n.endswith("down_proj")):
        assert config["rank_pattern"][name] == 9
        assert config["alpha_pattern"][name] == pytest.approx(8 * math.sqrt(9))


# LoRA+


def rates(words: Any, **more: Any) -> tuple[Attached, torch.optim.AdamW]:
    attached = attach(small(), words, **more)
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    return attached, ADAMW.make(grouped(attached.trained(), composition.lr_factors(), 1e-2, 0.1))


def test_the_ratio_holds_at_every_step_of_a_schedule_and_every_tensor_is_in_one_group() -> None:
    attached, optimizer = rates([{"lora+": {"ratio": 5.0}}, "dora"])
    pairs = [(name, group) for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(name for name, _ in pairs) == sorted(attached.trained())
    group_of = dict(pairs)
    for step in range(7):
        lr = 1e-2 * lr_schedule.lr_factor(step, 7, lr_schedule.Shape("cosine"), warmup=2)
        set_lr(optimizer, lr)
        assert group_of["0.A"]["lr"] == group_of["0.magnitude"]["lr"] == lr
        assert group_of["0.B"]["lr"] == pytest.approx(5 * lr, rel=1e-12)
    assert group_of["0.A"]["weight_decay"] == group_of["0.B"]["weight_decay"] == 0.1
    assert group_of["0.magnitude"]["weight_decay"] == 0


def run(attached: Attached, optimizer: torch.optim.Optimizer, steps: int = 8) -> torch.Tensor:
    """Fit a fixed target and return the update."""
    target = torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for _ in range(steps):
        optimizer.zero_grad()
        adapter = attached.modules["0"]
        (adapter.delta_weight() - target).square().sum().backward()
        optimizer.step()
    return attached.delta("0")


def test_ratio_one_is_plain_lora_bit_for_bit() -> None:
    assert torch.equal(run(*rates([{"lora+": {"ratio": 1.0}}])), run(*rates("lora")))
    assert not torch.equal(run(*rates([{"lora+": {"ratio": 2.0}}])), run(*rates("lora")))


def test_a_factor_is_a_ratio_of_rates() -> None:
    """With B = 0, Adam, eps -> 0 and no decay: factor s and ratio q are factor 1 and ratio s q."""
    found = []
    for scale, ratio in ((4.0, 3.0), (1.0, 12.0), (1.0, 3.0)):
        attached = attach(small(), [{"lora+": {"ratio": ratio}}], scale=scale)
        no_eps = AdamW(eps=1e-300)
        optimizer = no_eps.make(grouped(attached.trained(), {"B": ratio}, 1e-3, 0.0))
        found.append(run(attached, optimizer))
    assert torch.allclose(found[0], found[1], rtol=1e-9, atol=1e-14)
    assert not torch.allclose(found[0], found[2], rtol=1e-2)


def test_groups_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    attached, optimizer = rates([{"lora+": {"ratio": 5.0}}])
    theirs = get_peft_model(small(), LoraConfig(r=2, target_modules=["0"]))
    reference = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=5.0)
    names = {id(p): name for name, p in theirs.named_parameters()}
    expected = {
        "A" if "lora_A" in names[id(p)] else "B": group["lr"]
        for group in reference.param_groups
        for p in group["params"]
    }
    ours = {name[-1]: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert ours == pytest.approx(expected)
    assert set(ours) == {"A", "B"} == {name[-1] for name in attached.trained()}


def test_advice_on_large_effective_ratios_and_on_starts_that_are_not_zero() -> None:
    def advice(words: list[tuple[str, dict[str, Any]]], scale: float) -> list[str]:
        return composition_warnings(compose.compose(words), [Site("a", 4, 4, 2, scale=scale)], nn.Linear(4, 4))

    assert advice([("lora+", {"ratio": 16.0})], 4.0) == []
    assert any("80 in effect" in text for text in advice([("lora+", {"ratio": 16.0})], 5.0))
    assert any("neutral choice is ratio 1" in text for text in advice([("pissa", {}), ("lora+", {"ratio": 2.0})], 1.0))
