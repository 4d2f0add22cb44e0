"""Words for combinations: a paper's method that is a row of values of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A word for entries with chosen options: a paper's method that is a row of values of others."""

    paper: str
    summary: str
    entries: tuple[tuple[str, dict[str, Any]], ...]
    learning_rate: float | None = None
    """as MethodCard.learning_rate; it comes before those of the entries"""
    rate_source: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.entries)

    @property
    def written(self) -> str:
        """The entries as a recipe holds them."""
        return f"[{', '.join(_entry(name, options) for name, options in self.entries)}]"


def _entry(name: str, options: dict[str, Any]) -> str:
    values = ", ".join(f"{key}: {value}" for key, value in options.items())
    return f"{{{name}: {{{values}}}}}" if options else name


PRESETS: dict[str, Preset] = {
    "remora": Preset(
        "arXiv 2405.12130",
        "MoRA with restarts that switch between its four sharing operators.",
        (("mora", {"type": 1, "switch": 4}), ("relora", {"moments": "forget"})),
        learning_rate=5e-5,
        rate_source="docs/benchmark.md: a third of LoRA's best",
    ),
    "cola": Preset(
        "arXiv 2401.04151",
        "A chain of three LoRAs, each trained for a third of the run with a new optimiser state.",
        (("lora", {}), ("relora", {"restarts": 2, "moments": "forget"})),
    ),
    "dct-adamw": Preset(
        "arXiv 2505.17967",
        "GaLore in fixed directions, the cosines that hold most of each step's gradient.",
        (("galore", {"projection": "dct", "every": 1.0, "factor": 1.0, "moments": "rotate"}),),
        learning_rate=1e-4,
        rate_source="as fira, whose step has the same size",
    ),
    "asymmetry": Preset(
        "arXiv 2402.16842",
        "LoRA with a random, orthonormal, frozen A.",
        (("lora-fa", {"init": "orthonormal"}),),
    ),
    "sam": Preset(
        "arXiv 2010.01412",
        "The gradient is taken where the loss is highest nearby: at the end of one step uphill.",
        (("adversarial-model-perturbation", {"ascent": "normalized", "ball": "all"}),),
    ),
    "low-rank-tickets": Preset(
        "arXiv 2205.13571",
        "Gradient descent of the update among matrices of a low rank, which follows a threshold: a reconstruction.",
        (("riemannlora", {"momentum": "none", "init": "zero", "threshold": 0.05}),),
        learning_rate=6e-3,
        rate_source="plain gradient descent: thirty times LoRA's best on a tiny task",
    ),
    "pmss": Preset(
        "arXiv 2409.16722",
        "A square matrix between the most informative columns and rows of the weight; the choice is a reconstruction.",
        (("curlora", {"selection": "pivots"}),),
    ),
    "weight-refactorization": Preset(
        "arXiv 2505.22922",
        "Every so often the pair is written anew by the singular vectors of B A, and the momentum set to zero.",
        (("fedsvd", {"train_A": True, "split": "both", "moments": "momentum", "every": 200.0}),),
    ),
}
