"""What `lrft convert` loses: methods trained for a few steps at one budget, cut to ranks 8 and 32 and 99 % of energy.

    nice python scripts/conversion_errors.py     # then scripts/docs

The model is SmolLM2-135M-Instruct, fetched as the quickstart does, and the rows are the quickstart's. Adapters stand in
four of the last blocks and rows are few, so that a method takes about a minute and a half of one core. Each method has
the rank whose trainable parameters are closest to LoRA's of rank 8, as `lrft compare` chooses it. The figures go to
docs/adapters.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common.keeping import keep, machine_of

from lrft.adapters import compose
from lrft.adapters.attach import attach_sites
from lrft.adapters.attached import Attached
from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.storage import load_saved
from lrft.adapters.targets import site_of
from lrft.compare import budget, config
from lrft.export.lora import Cut, Lora
from lrft.loading.saved import base_of, load_as_trained
from lrft.model import linear
from lrft.quickstart import commands
from lrft.quickstart.model import MODELS, fetch
from lrft.runs.environment import environment
from lrft.runs.probe import probe
from lrft.utils import files
from lrft.verification.merge import compare, logits

MODEL = "SmolLM2-135M-Instruct"
BLOCKS = [20, 23, 26, 29]
STEPS, ROWS, HELD_OUT = 10, 2, 4
# The LoRA that the others are matched with has 81,408 numbers in a block: fourierft as many, in seven layers.
BASELINE = "lora"
METHODS: dict[str, Any] = {
    "mora": "mora",
    "hra": "hra",
    "fourierft": {"fourierft": {"frequencies": 11630}},
    "vera": "vera",
    "dora": "dora",
    "full": "full",
}
KEPT = {"rank 8": Lora(rank=8), "rank 32": Lora(rank=32), "energy 0.99": Lora(energy=0.99)}


def write_inputs(work: Path) -> None:
    """Rows, the recipe and the comparison that chooses the ranks."""
    commands.write(work, train=STEPS * ROWS + HELD_OUT, test=1)
    recipe = {
        "model": str(fetch(MODELS[MODEL])),
        "adapter": {"method": "lora", "rank": 8, "layers": BLOCKS},
        "data": {"train": str(work / "train.jsonl"), "validation": HELD_OUT, "max_length": 256},
        "training": {"max_steps": STEPS, "global_batch_size": ROWS, "micro_batch_size": ROWS},
        "checkpoint": {"every": STEPS},
        "output_dir": str(work / "run"),
    }
    files.write_json(work / "recipe.yaml", recipe)
    runs = {name: {"adapter.method": method} for name, method in {BASELINE: BASELINE, **METHODS}.items()}
    files.write_json(work / "compare.yaml", {"recipe": str(work / "recipe.yaml"), "runs": runs, "output_dir": "out"})


def train(work: Path, name: str, rank: int) -> Path:
    """The last adapter of a run of `lrft train`, which says with exit code 4 that no state beats the base."""
    run = work / name
    words = [f"adapter.method={json.dumps(METHODS[name])}", f"adapter.rank={rank}", f"output_dir={run}"]
    done = subprocess.run([sys.executable, "-m", "lrft", "train", str(work / "recipe.yaml"), *words])
    if done.returncode not in (0, 4):
        raise SystemExit(f"{name}: lrft train ended with exit code {done.returncode}")
    return run / "last"


def converted(attached: Attached, cuts: dict[str, Cut]) -> Attached:
    """The base of `attached` with the LoRA in the place of its adapter."""
    model: Any = attached.detach()
    layers = dict(linear.named_linears(model))
    sites = [site_of(name, layers[name], rank=len(cut.A), scale=1.0, dropout=0.0) for name, cut in cuts.items()]
    lora = attach_sites(model, sites, compose.compose([("lora", {})]), seed=0, fresh=False)
    for name, cut in cuts.items():
        lora.modules[name].load({"A": cut.A, "B": cut.B})
    return lora


def errors(adapter: Path) -> dict[str, Any]:
    """Of each way to cut: ranks, relative errors of the layers, and of the logits on the run's held-out rows."""
    saved = read_any(adapter)
    folder = base_of(saved, None)
    model, rows = load_as_trained(saved, folder, widen=True), probe(adapter, folder)
    attached = load_saved(model, placed(saved, model))
    expected = logits(model, rows)
    with attached.disabled():
        untouched = logits(model, rows)
    parts = {name: torch.linalg.svd(attached.delta(name).float(), full_matrices=False) for name in attached.modules}
    found: dict[str, Any] = {}
    for how, lora in KEPT.items():
        cuts = {name: lora.kept(*each) for name, each in parts.items()}
        attached = converted(attached, cuts)
        apart = compare(logits(model, rows), expected, untouched, tolerance=1.0, dtype="float32")
        lost, ranks = [cut.error for cut in cuts.values()], [len(cut.A) for cut in cuts.values()]
        found[how] = {
            **{"ranks": [min(ranks), max(ranks)], "layers": len(lost)},
            **{"median": round(statistics.median(lost), 5), "largest": round(max(lost), 5)},
            **{"logits": round(apart.mean / apart.mean_changed, 5), "same token": round(apart.same_first, 5)},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=[*METHODS], help="print one method's, and keep nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_inputs(work)
        _, *choices = budget.choose(config.read(work / "compare.yaml"))
        chosen = dict(zip(METHODS, choices, strict=True))
        facts = {"model": MODEL, "blocks": BLOCKS, "steps": STEPS, "rows": ROWS, "held out": HELD_OUT}
        rows: dict[str, Any] = {}
        for name in METHODS if asked.only is None else [asked.only]:
            adapter = train(work, name, chosen[name].rank)
            own = {"rank": None if chosen[name].fixed else chosen[name].rank, "trained": chosen[name].trained}
            rows[name] = {**own, "converted": errors(adapter)}
            print(name, rows[name], flush=True)
            if asked.only is None:
                more = {"methods": rows, "machine": machine_of(environment())}
                keep(Path(__file__).parents[1] / "docs" / "adapters.json", "conversions", {**facts, **more})


if __name__ == "__main__":
    main()
