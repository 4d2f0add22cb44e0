"""What a claim of scripts/paper_claims is judged by figures that are written down."""

from __future__ import annotations

from typing import Any

from paper_claims.claim import Verdict
from paper_claims.papers import CLAIMS

BY_NAME = {claim.name: claim for claim in CLAIMS}
Values = dict[str, list[float]]


def shows(name: str, losses: Values | None = None, **measured: Values) -> bool:
    return judged(name, losses, **measured).shows


def judged(name: str, losses: Values | None = None, **measured: Values) -> Verdict:
    """Of values by run, one for each seed; the first run is the baseline."""

    def by_seed(values: list[float]) -> dict[str, float]:
        return {str(seed): value for seed, value in enumerate(values, start=1)}

    runs = list(losses or next(iter(measured.values())))
    facts: dict[str, Any] = {
        "baseline": runs[0],
        "methods": [{"run": run, "values": by_seed((losses or {}).get(run, [1.0, 1.0]))} for run in runs],
        "measured": {
            measure.replace("_", "-"): {run: by_seed(values) for run, values in found.items()}
            for measure, found in measured.items()
        },
    }
    return BY_NAME[name].judge(facts)
