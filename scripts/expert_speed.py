"""A step of LoRA on stacked experts: lrft, its experts one by one, and PEFT's `target_parameters`, by turns.

    nice python scripts/expert_speed.py          # then scripts/docs

Two models of random weights: few large experts as Mixtral's, and many small ones as Qwen3-MoE's. All three systems have
the same weights, the same first values, the same tokens and the same loop: forward, backward, AdamW. The figures go to
docs/adapters.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.keeping import keep, machine_of
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import lrft
from lrft.adapters.peft_experts import expert_tensors
from lrft.runs.environment import environment

RANK = 8
COMMON = {"vocab_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Mixtral": (
        MixtralForCausalLM,
        MixtralConfig,
        {"hidden_size": 512, "intermediate_size": 1024, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "Qwen3-MoE": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            **{"hidden_size": 512, "moe_intermediate_size": 128, "num_experts": 64, "num_experts_per_tok": 8},
            **{"head_dim": 64, "norm_topk_prob": True},
        },
    ),
}
SYSTEMS = ("lrft", "lrft, one by one", "PEFT")


class System:
    """A model with its adapters, and one step of it."""

    def __init__(self, model: Any, trained: dict[str, torch.nn.Parameter]) -> None:
        self.model, self.trained = model.train(), trained
        self.optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)

    def step(self, ids: torch.Tensor) -> float:
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def make(name: str) -> Any:
    cls, config, own = MODELS[name]
    torch.manual_seed(0)
    return cls(config(**COMMON, **own))


def ours(name: str, *, alone: bool) -> System:
    model = make(name)
    attached = lrft.attach(model, {"method": "lora", "rank": RANK, "target_modules": "expert-linear"})
    if alone:  # somebody who wants to see what a layer gets has each compute for itself
        for layer in attached.layers().values():
            layer.register_forward_pre_hook(lambda *_: None)
    return System(model, attached.trained())


def theirs(name: str) -> System:
    """PEFT's, with lrft's first values."""
    attached = lrft.attach(make(name), {"method": "lora", "rank": RANK, "target_modules": "expert-linear"})
    start = expert_tensors(attached.model, {site: one.peft() for site, one in attached.modules.items()})
    words = [f"mlp.experts.{word}" for word in ("gate_up_proj", "down_proj")]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=[], target_parameters=words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no linear layer is adapted
        model: Any = get_peft_model(make(name), config)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    known = {key.removeprefix("base_model.model.").replace(".default", ""): p for key, p in trained.items()}
    with torch.no_grad():
        for key, value in start.items():
            known[key].copy_(value)
    return System(model, trained)


def measured(name: str, ids: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Seconds and losses of each system; the first step of each does not count."""
    makers: list[Callable[[], System]] = [
        lambda: ours(name, alone=False),
        lambda: ours(name, alone=True),
        lambda: theirs(name),
    ]
    systems = {system: make_it() for system, make_it in zip(SYSTEMS, makers, strict=True)}
    numbers = {system: sum(p.numel() for p in each.trained.values()) for system, each in systems.items()}
    assert len(set(numbers.values())) == 1, numbers
    losses: dict[str, list[float]] = {system: [each.step(ids)] for system, each in systems.items()}
    seconds: dict[str, dict[str, list[float]]] = {system: {"cpu": [], "wall": []} for system in SYSTEMS}
    for turn in range(rounds):
        for system in [*SYSTEMS[turn % 3 :], *SYSTEMS[: turn % 3]]:
            wall, cpu = time.perf_counter(), time.process_time()
            losses[system].append(systems[system].step(ids))
            seconds[system]["cpu"].append(round(time.process_time() - cpu, 4))
            seconds[system]["wall"].append(round(time.perf_counter() - wall, 4))
    total = sum(p.numel() for p in make(name).parameters())
    return {"parameters": total, "trained": numbers["lrft"], "seconds": seconds, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=512, help="of a step, in 4 rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ids = torch.randint(COMMON["vocab_size"], (4, asked.tokens // 4), generator=torch.Generator().manual_seed(1))
    models = {name: measured(name, ids, asked.rounds) for name in MODELS}
    for name, found in models.items():
        for system in SYSTEMS:
            cpu, wall = (statistics.median(found["seconds"][system][what]) for what in ("cpu", "wall"))
            print(f"{name}, {system}: {cpu:.3f} CPU s, {wall:.3f} s, losses {found['losses'][system][:3]}")
    facts = {
        "rank": RANK,
        "tokens": ids.numel(),
        "rounds": asked.rounds,
        "models": models,
        "machine": machine_of(environment(), "peft"),
    }
    keep(Path(__file__).parents[1] / "docs" / "adapters.json", "experts", facts)


if __name__ == "__main__":
    main()
