"""COAP and Online Subspace Descent: GaLore's memory, and a better use of it."""

from __future__ import annotations

from paper_claims.claim import Claim, Facts, Measure, Verdict, losses, of_run, together
from paper_claims.papers.galore_memory import megabytes

MORE = 0.1
"""largest share by which the optimizer's state may be larger than GaLore's, on every seed"""


def better_within(facts: Facts) -> Verdict:
    """Every run has a lower loss than the baseline, with a state at most MORE larger, on every seed."""
    base, states = facts["baseline"], facts["measured"]["state"]
    theirs = of_run(facts, base)
    others = [run for run in states if run != base]
    held = {
        run: all(
            of_run(facts, run)[seed] < theirs[seed] and states[run][seed] <= (1 + MORE) * states[base][seed]
            for seed in theirs
        )
        for run in others
    }
    told = "; ".join(f"{run} {losses(of_run(facts, run))} with {losses(states[run])} MB" for run in [base, *others])
    return together(held, f"the loss is: {told} of state.")


CLAIM = Claim(
    "equal-memory",
    "COAP and Online Subspace Descent learn more than GaLore in the same memory",
    "Xiao et al., 2024, arXiv 2412.00071; Liang et al., 2024, arXiv 2408.12857",
    "COAP corrects GaLore's directions by small steps: LLaMA-1B comes to AdamW's perplexity with 61 % less optimizer "
    "memory. Online Subspace Descent updates them in every step, by online PCA, and has lower perplexities than other "
    "low-rank training of LLaMA from 60M to 7B. Neither keeps more than GaLore does.",
    "On every seed both end with a lower loss than GaLore after 60 steps on the instructions, at rank 32, the factor "
    "0.25 and the better of two learning rates each, and the tensors of their optimizer's state take at most a tenth "
    "more bytes. GaLore finds its directions five times in the run.",
    better_within,
    (Measure("state", "optimizer state, MB", megabytes, ".2f"),),
    "tasks",
)
