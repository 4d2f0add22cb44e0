"""RiemannLoRA and LoRA-RITE: a step that does not depend on how the update is split into A and B."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paper_claims.claim import Claim, Facts, Measure, Verdict

if TYPE_CHECKING:
    from torch import Tensor

SAME, OTHER = 0.01, 0.1
"""most that the step of an invariant optimiser may change, least that LoRA's has to, over the step's length"""
RATE = 1e-3


def invariant(facts: Facts) -> Verdict:
    found = facts["measured"]["change"]
    judged = ("riemannlora", "lora-rite")
    shows = all(found[run][seed] <= SAME for run in judged for seed in found[run])
    told = "; ".join(f"{run} {', '.join(f'{x:.1e}' for x in found[run].values())}" for run in ("lora", *judged))
    return Verdict(
        shows and min(found["lora"].values()) >= OTHER, f"what the other split changes of the next step is: {told}."
    )


def change(folder: str, _: str) -> float:
    """|step of the pairs split otherwise - step| / |step|, all layers as one vector."""
    plain, other = (next_step(folder, split) for split in (False, True))
    return float((other - plain).norm() / plain.norm())


@cache
def next_step(folder: str, split: bool) -> Tensor:
    """Change of the adapted weights in one step of a new optimiser from a run's end, on the rows of its first step.

    split: with B M and M^-1 A in place of B and A, M with singular values from 1/2 to 2 between random rotations.
    """
    import torch

    from lrft import recipe as recipes
    from lrft.adapters.storage import read_adapter
    from lrft.training.setup import set_up
    from lrft.training.state import Options
    from paper_claims.first_step import updates

    session = set_up(recipes.load(Path(folder) / "resolved.yaml"), Options(quiet=True))
    saved = read_adapter(Path(folder) / "last").tensors
    generator = torch.Generator().manual_seed(0)
    adapters: dict[str, Any] = dict(session.adapted.attached.modules)
    for name, adapter in adapters.items():
        A, B = (saved[name][role].double() for role in "AB")
        if split:
            M = other_basis(A.shape[0], generator)
            A, B = torch.linalg.solve(M, A), B @ M
        pair = adapter.tensors()  # also inside of what counts the update from its start
        with torch.no_grad():
            pair["A"].copy_(A)
            pair["B"].copy_(B)
    before = updates(session.adapted.attached)
    engine = session.engine
    engine.model.train()
    rows = [int(row) for row in session.inputs.batches.rows(0)]
    engine.answer(engine.batch(session.inputs.train, rows)).backward()
    optimizer = engine.optimizer.optimizer
    for group in optimizer.param_groups:
        group["lr"] = RATE
    optimizer.step()
    after = updates(session.adapted.attached)
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


def other_basis(rank: int, generator: Any) -> Tensor:
    """M (r, r), float64."""
    import torch

    left, right = (torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0] for _ in "LR")
    return left @ torch.logspace(-1, 1, rank, 2.0, dtype=torch.float64).diag() @ right


CLAIM = Claim(
    "factorisation",
    "A step of RiemannLoRA or LoRA-RITE does not depend on how the update is split",
    "arXiv 2507.12142, 2025; Yen et al., 2024, arXiv 2410.20625",
    "One update B A has many splits, (B M) (M^-1 A), and Adam takes another step for each. Both papers construct an "
    "optimiser whose step is the same for all: on the manifold of the rank, or by matching preconditioners.",
    "On every seed, from the pairs after 10 steps, split otherwise by an M with singular values from 1/2 to 2, one "
    "step of a new optimiser changes the adapted weights as without M, within 1 % of the step's length, for "
    "RiemannLoRA and for LoRA-RITE; for LoRA with AdamW the two differ by more than 10 %.",
    invariant,
    (Measure("change", "change of the step", change, ".1e"),),
    "tasks",
)
