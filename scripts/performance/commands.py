"""Mode `commands`: processor time of whole commands on a tiny model, beside what importing libraries alone takes."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from performance import descendants, machine, processes, rows
from performance.place import Place
from performance.rounds import turns
from performance.tables import count, spread, table

MODEL = "tiny"
STEPS = 20
RECIPE = """\
model: {model}
adapter: lora
data: {{train: {rows}, validation: 8}}
training: {{max_steps: {steps}, global_batch_size: 4, epochs: 99}}
output_dir: {out}/run
"""
COMPARISON = "recipe: {recipe}\nruns: [lora, dora]\nseeds: [1, 2]\noutput_dir: {out}/compared\n"
# What a command cannot do without, as it is without lrft.
FLOORS = {
    "torch": "import torch",
    "a tokenizer": "import sys; from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(sys.argv[1])",
    "a model's class": "from transformers.models.llama.modeling_llama import LlamaForCausalLM",
}
COMMANDS = {
    "check": ("check {out}/recipe.yaml", "a model's class"),
    "plan": ("plan {out}/recipe.yaml", "a model's class"),
    "preview": ("preview {out}/recipe.yaml", "a tokenizer"),
    f"train, {STEPS} steps": ("train {out}/recipe.yaml --fresh", "a model's class"),
    "merge --no-verify": ("merge {out}/run -o {out}/merged --no-verify", "torch"),
    "merge": ("merge {out}/run -o {out}/merged", "a model's class"),
    f"compare, 2 methods, 2 seeds, {STEPS} steps": ("compare {out}/compare.yaml --jobs 1", "a model's class"),
}


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    facts = place.facts()
    sides = {"now": processes.ROOT} | ({} if options.before is None else {"before": options.before.resolve()})
    folders = {side: prepare(place, place.work / "commands" / side, options.seed) for side in sides}
    names = [*FLOORS, *COMMANDS]
    found: dict[str, dict[str, list[float]]] = {name: {side: [] for side in sides} for name in names}
    for number, name in turns(names, options.rounds):
        for side, checkout in sides.items() if name in COMMANDS else [("now", processes.ROOT)]:
            cpu = seconds(place, name, folders[side], checkout)
            found[name][side].append(cpu)
            print(f"round {number + 1}  {side:<6} {name:<44} {cpu:.2f} s", file=sys.stderr, flush=True)
    commit = None if options.before is None else machine.commit(options.before)
    return facts | {"seed": options.seed, "rounds": options.rounds, "cpu": found, "before": commit}


def prepare(place: Place, out: Path, seed: int) -> Path:
    """A folder with a recipe, a comparison, and a run to be merged."""
    shutil.rmtree(out, ignore_errors=True)
    vocabulary = place.origin(MODEL)["config"]["vocab_size"]
    shape = rows.Shape(rows=32, tokens=640, padding=0.2)
    made = rows.save(rows.batches(shape, vocabulary=vocabulary, seed=seed), out / "rows.json")
    text = RECIPE.format(model=place.model(MODEL), rows=made.with_suffix(".jsonl"), steps=STEPS, out=out)
    (out / "recipe.yaml").write_text(text)
    (out / "compare.yaml").write_text(COMPARISON.format(recipe=out / "recipe.yaml", out=out))
    return out


def seconds(place: Place, name: str, out: Path, checkout: Path) -> float:
    """CPU seconds of a command, with all that it starts, by the lrft in `checkout`. Raises RuntimeError."""
    for left in ("merged", "compared"):
        shutil.rmtree(out / left, ignore_errors=True)
    if name in FLOORS:
        command = [str(place.python), "-c", FLOORS[name], str(place.model(MODEL))]
    else:
        words = COMMANDS[name][0].format(out=out).split()
        if "merge" in words and not (out / "run").exists():
            seconds(place, f"train, {STEPS} steps", out, checkout)
        command = [str(place.python), "-m", "lrft", *words]
    counting = [place.python, descendants.__file__, *command]
    # The lrft of the folder that a process starts in would come first.
    env = {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    ended = processes.run(counting, threads=place.threads, env=env)
    if ended.code:
        raise RuntimeError(f"{name}: {ended.reason()}")
    return ended.cpu


def page(section: dict[str, Any]) -> str:
    found, before = section["cpu"], section["before"]
    text = (
        f"CPU seconds of whole commands, processes that they start included; a Llama of 0.3 M parameters, "
        f"{count(section['rounds'], 'round')} by turns. The last columns are what a command needs and what that takes "
        f"without lrft: importing `torch`; `AutoTokenizer.from_pretrained`; importing `LlamaForCausalLM`, with "
        f"DTensor, the compiler and sympy, which transformers imports with any configuration of a model. (lrft imports "
        f"without the garbage collector, so that a command can take less than that.)"
    )
    head = ["", "CPU seconds", *([f"lrft at {before}"] if before else []), "needs", "alone", "over it"]
    lines = []
    for name, (_, floor) in COMMANDS.items():
        now, alone = found[name]["now"], found[floor]["now"]
        earlier = [spread(found[name]["before"])] if before else []
        over = f"{median(now) - median(alone):.2f}"
        lines.append([f"`{name}`", spread(now), *earlier, floor, spread(alone), over])
    return f"{text}\n\n{table(head, lines)}"
