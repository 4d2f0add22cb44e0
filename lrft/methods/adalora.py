"""AdaLoRA. Zhang et al., 2023, arXiv 2303.10512. The rule is that of the authors' code and PEFT, without their 1e-5.

The code's penalty is the norm itself, averaged over all A and B (the paper has its square). The score of a component
is that of its gate plus the means of those of its row of A and column of B (equations 7 to 11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Delta, Site
from lrft.adapters.gated import GatedPair, asked, built, smoothed
from lrft.adapters.part import Method, Run
from lrft.adapters.peft_type import Named, PeftType

FIRST = 2  # steps without a mask in any run: averages of one gradient say nothing


@dataclass(frozen=True)
class AdaLora(Method):
    """Starts with more components than asked for and takes away, over all layers, those that matter least."""

    name: ClassVar[str] = "adalora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2303.10512"
    equation: ClassVar[str] = "W + (alpha / r0) B diag(g) A; g = 0 where the score is low"
    parameters: ClassVar[str] = "r0 (d + k + 1), r0 = over * rank"
    exports: ClassVar[str] = "PEFT LoRA of the remaining components, or merged model"
    evidence: ClassVar[str] = "forward, merge, penalty, budget and every training step compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "docs/benchmark.md: 10 times LoRA's best; the paper uses 5e-4 to 2.2e-3"
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    peft_type: ClassVar[str] = "ADALORA"
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    over: Annotated[float, Field(ge=1)] = 1.5
    """Initial rank relative to the recipe's rank, which is the final average. PEFT's defaults are 12 and 8."""
    initial: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Fraction of the run before the first component is pruned. The authors' scripts give steps, per task."""
    final: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Final fraction of the run in which ranks stay fixed. The authors' scripts give steps."""
    every: Annotated[int, Field(ge=1)] = 1
    """Steps between two rank updates. PEFT's default; the authors' scripts have 1 to 100."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the orthogonality penalty on A and B. PEFT's default; the authors' scripts: 0.1 to 0.3."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.85
    """EMA decay of the sensitivities."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.85
    """EMA decay of their uncertainty."""

    @classmethod
    def in_peft(cls) -> AdaLoraType:
        return AdaLoraType(
            "ADALORA",
            GatedPair,
            {"A": Named("lora_A", "rk"), "B": Named("lora_B", "dr"), "gate": Named("lora_E", "ro")},
            patterns=("rank_pattern",),
            training=(
                *("beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "target_r", "tfinal", "tinit", "total_step"),
                *("init_lora_weights", "lora_alpha", "lora_dropout", "megatron_core", "qalora_group_size"),
            ),
        )

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / built(rank, self.over)

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        return [replace(site, rank=built(site.rank, self.over)) for site in sites]

    def build(self, site: Site) -> Delta:
        adapter = GatedPair(site, trains_gate=True)
        nn.init.normal_(adapter.A, std=0.02)
        nn.init.normal_(adapter.B, std=0.02)
        return adapter

    def loss(self, run: Run) -> Tensor | None:
        if not self.orthogonality:
            return None
        gaps = []
        for adapter in run.adapters.values():
            A, B = adapter.tensors()["A"], adapter.tensors()["B"]
            one = torch.eye(len(A), dtype=A.dtype, device=A.device)
            gaps += [torch.linalg.matrix_norm(A @ A.T - one), torch.linalg.matrix_norm(B.T @ B - one)]
        return self.orthogonality * torch.stack(gaps).mean()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        # As in the authors' code: the updated tensors with the gradients of the step that updated them.
        done = run.step + 1
        first, last = self.phases(run.total_steps)
        pairs = {site: adapter.tensors() for site, adapter in run.adapters.items()}
        if done < last:
            for site, tensors in pairs.items():
                for word in ("A", "gate", "B"):
                    self.follow(f"{site}.{word}", tensors[word])
        if done >= last or (done > first and done % self.every == 0):
            ranks = [len(tensors["gate"]) for tensors in pairs.values()]
            keep = self.budget(done, run.total_steps, sum(ranks), sum(asked(rank, self.over) for rank in ranks))
            scores = torch.cat([self.scores(site).to(tensors["gate"].device) for site, tensors in pairs.items()])
            gone = torch.zeros_like(scores, dtype=torch.bool)
            gone[scores.argsort(stable=True)[: len(scores) - keep]] = True  # ties too: exactly so many
            for tensors, mine in zip(pairs.values(), gone.split(ranks), strict=True):
                tensors["gate"].masked_fill_(mine, 0)

    def phases(self, total: int) -> tuple[int, int]:
        """Steps of the first phase, and the step from which on nothing changes any more."""
        first = max(FIRST, round(self.initial * total))
        return first, max(first + 1, total - round(self.final * total))

    def budget(self, done: int, total: int, most: int, least: int) -> int:
        """Components of all layers together that are left after step `done`, counted from 1 (equation 12)."""
        first, last = self.phases(total)
        if done <= first:
            return most
        if done >= last:
            return least
        return int(least + (most - least) * (1 - (done - first) / (last - first)) ** 3)

    def follow(self, key: str, p: nn.Parameter) -> None:
        """Move the averages of one tensor: sensitivity |p dL/dp|, and its distance from its own average."""
        if p.grad is None:
            raise ValueError(f"{key} has no gradient")
        smoothed(self.memory, key, (p * p.grad).abs(), self.beta1, self.beta2)

    def scores(self, site: str) -> Tensor:
        """(r,) for one layer, where its memory lies: after resuming on the CPU, until it is followed again."""
        A, gate, B = (self.memory[f"mean/{site}.{w}"] * self.memory[f"spread/{site}.{w}"] for w in ("A", "gate", "B"))
        return gate + A.mean(dim=1) + B.mean(dim=0)

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """All that a run carries from step to step. Once it stands still, in the last phase, so does the choice."""
        return {}

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.clear()
        self.memory.update({key: value.clone() for key, value in state.items()})


@dataclass(frozen=True)
class AdaLoraType(PeftType):
    """Read as a LoRA of the components that are left; what is written is one, too."""

    def fits(self, adapter: Adapter) -> bool:
        return False

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return [("lora", {})]

    def said_rank(self, name: str, config: Mapping[str, Any]) -> None:
        """Its rank_pattern lists which components are left; the tensors have those alone."""

    def factor(self, name: str, config: Mapping[str, Any], rank: int) -> float:
        first = int(config["init_r"])
        return float(config["lora_alpha"] or first) / (first + 1e-5)

    def read(self, tensors: Mapping[str, Tensor], site: Site) -> dict[str, Tensor]:
        return {"A": tensors["A"] * tensors["gate"], "B": tensors["B"]}
