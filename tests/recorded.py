"""Records of runs as metrics.jsonl holds them, odd ones included, and a run folder with a few of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lrft.tracking.console import Reporter
from lrft.tracking.fan_out import Trackers
from lrft.tracking.metrics_file import MetricsFile

STEP = {"lr": 1.6e-4, "grad_norm": 0.82, "tokens_per_second": 412.4, "memory_gb": 3.1, "seconds": 0.8}


def evaluation(step: int, loss: float, best: bool) -> dict[str, Any]:
    return {"step": step, "loss": loss, "perplexity": math.exp(loss), "tokens": 100, "best": best}


def steps(*losses: float | None) -> list[dict[str, Any]]:
    return [{"kind": "step", "step": i, "loss": loss, "lr": 1e-4} for i, loss in enumerate(losses, 1)]


# Records that a picture of them must survive.
ODD: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "one": steps(2.0),
    "nan": steps(None),
    "flat": steps(2.0, 2.0, 2.0),
    "huge": steps(2.0, None, 1e300, 1e25, 1.9),
    "only-eval": [{"kind": "eval", "step": 0, "loss": 1.5, "best": True}],
    "eval-nan": [*steps(*(2 - i / 100 for i in range(100))), {"kind": "eval", "step": 50, "loss": None}],
    "eval-huge": [{"kind": "eval", "step": 0, "loss": 1.7e308}, {"kind": "eval", "step": 1, "loss": -1.7e308}],
    "zero": [{"kind": "step", "step": 1, "loss": 0.0, "lr": 0.0}],
}


def make_run(folder: Path) -> None:
    run = {
        "title": "a | b",
        "model": {"name": "tiny_model", "dtypes": {"weights": "bf16"}},
        "data": {
            "rows": 12345,
            "sources": [{"path": "a.jsonl", "used": 3}, {"path": "b", "dropped": {"x": 1}}],
        },
        "warnings": ["`41` rows | <b>dropped</b>\x1b[31m\n# no heading", "- no list"],
        "result": {"best_loss": 1.25, "merged": True, "speed": None},
    }
    (folder / "run.json").write_text(json.dumps(run))

    def sample(answer: str) -> list[dict[str, str]]:
        return [{"prompt": "a|b\r\n`c` *d*\x00", "expected": "", "answer": answer}]

    with Trackers(Reporter(folder, quiet=True), MetricsFile(folder)) as trackers:
        trackers.log("step", {"step": 1, "loss": math.inf, "tokens": 1000, "tokens_per_second": 50, "memory_gb": 2})
        for step, loss, best in ((0, 3.0, True), (1, 2.0, True), (2, 1.25, True), (3, 1.5, False)):
            answer = f"answer {step} " + "x" * 700 * (step == 2)
            trackers.log("eval", {**evaluation(step, loss, best), "samples": sample(answer)})
