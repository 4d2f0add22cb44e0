"""One family from the recipe to the merged folder, by the product's own commands."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import peft
import torch
import transformers

from lrft import recipe
from lrft.adapters import targets
from lrft.adapters.peft_export import PEFT_TENSORS
from lrft.adapters.peft_names import peft_names
from lrft.adapters.reach import uncalled
from lrft.adapters.storage import load_adapter
from lrft.cli.main import run_command
from lrft.model.load import load_model, load_skeleton
from model_table.making import knows_text_alone, make_model
from model_table.others import ASIDE

RECIPE = """\
model: {folder}
adapter: {{rank: 4}}
data: {{train: {rows}, validation: none}}
training:
  {{max_steps: 2, global_batch_size: 4, micro_batch_size: 2, learning_rate: 0.01, warmup_steps: 0, precision: fp32}}
evaluation: {{every: none, at_start: false, samples: 0}}
checkpoint: {{every: none}}
output_dir: {out}
"""
# Largest difference of logits over what the adapter changes.
SAME = 1e-3
YES, NO = "yes", "no"


@dataclass
class Tried:
    """A line of the table."""

    family: str
    model: str = ""
    text: bool = True
    """whether it knows text alone"""
    not_built: str = ""
    """why no tiny model could be made"""
    trains: str = ""
    rows: str = ""
    merges: str = ""
    peft: str = ""
    forecast: str = ""
    without: list[str] = field(default_factory=list)
    """linear layers and tensors that all-linear does not adapt, by the last words of their names"""


def attempt(family: str, place: Path, rows: Path) -> Tried:
    """Make, plan, train, merge and load with PEFT. What fails is said in its column, and what needs it is left out."""
    folder, out = place / "base", place / "run"
    tried = Tried(family, text=knows_text_alone(family), not_built=ASIDE.get(family, ""))
    if tried.not_built:
        return tried
    try:
        tried.model = type(make_model(family, folder)).__name__
    except Exception as error:  # whatever a model's code may raise at a size that it was not made for
        tried.not_built = not_built(error)
        return tried
    written = place / "recipe.yaml"
    written.write_text(RECIPE.format(folder=folder, rows=rows, out=out))
    tried.forecast = command("plan", str(written))
    tried.trains = command("train", str(written), "--fresh")
    if tried.trains == YES:
        tried.without = not_adapted(folder, recipe.load(written))
        tried.rows = "packed" if "packing" in json.loads((out / "run.json").read_text())["checks"] else "padded"
        tried.merges = command("merge", str(out), "-o", str(place / "merged"))
        tried.peft = with_peft(folder, out / "last")
    return tried


def not_built(error: Exception) -> str:
    """What a configuration's validator or a missing package says, without the words around it."""
    said = first_line(str(error.__cause__ or error) if str(error).startswith("Class validation error") else str(error))
    return said.removesuffix(" but it was not found in your environment. You can install it with pip:")


def command(*words: str) -> str:
    """ "yes", or the first line of what went wrong."""
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        code = run_command(list(words))
    return YES if code == 0 else f"{NO}: {first_line(wrong.getvalue())}"


def not_adapted(folder: Path, asked: Any) -> list[str]:
    model = load_skeleton(folder)
    choice = targets.choose(model, asked.adapter, asked.where, uncalled(model))
    outside = (name.removesuffix(".weight") for name in targets.outside_linears(model))
    return [
        *(f"{words} ({reason})" for reason, words in by_reason(choice.left_out).items()),
        *([f"{last_words(outside)} (no linear layers)"] if targets.outside_linears(model) else []),
    ]


def by_reason(left_out: dict[str, str]) -> dict[str, str]:
    reasons = dict.fromkeys(left_out.values())
    return {reason: last_words(name for name, its in left_out.items() if its == reason) for reason in reasons}


def last_words(names: Iterable[str]) -> str:
    """The last words of names that are no numbers, each once."""
    words = (next(w for w in reversed(name.split(".")) if not w.isdigit()) for name in names)
    return " ".join(sorted(set(words)))


@torch.no_grad()
def with_peft(folder: Path, adapter: Path) -> str:
    """Whether stock PEFT on stock transformers answers as lrft does with the adapter."""
    ids = torch.tensor([[1, 20, 30, 41, 52, 63, 7, 8]])

    def logits(model: Any) -> torch.Tensor:
        answer: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
        return answer

    ours = load_model(folder, dtype=torch.float32)
    untouched = logits(ours)
    attached = load_adapter(ours, adapter)
    if not (adapter / PEFT_TENSORS).exists():
        forms = {name: module.peft() for name, module in attached.modules.items()}
        return f"{NO}: {peft_names(attached, forms).refused}, so the adapter has lrft's own format"
    expected = logits(ours)
    stock = getattr(transformers, ours.config.architectures[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = logits(peft.PeftModel.from_pretrained(stock.from_pretrained(folder, dtype=torch.float32), adapter))
    except (ValueError, RuntimeError, KeyError) as error:
        return f"{NO}: {first_line(str(error))}"
    distance = ((answer - expected).abs().max() / (expected - untouched).abs().max()).item()
    return YES if distance <= SAME else f"{NO}: its logits differ by {distance:.0%} of what the adapter changes"


def first_line(text: str) -> str:
    """The first line that says something, without places on this machine."""
    lines = (re.sub(r"(https?:/)?/\S*/base(/tree/main)?\b", "the folder", line.strip()) for line in text.splitlines())
    return shorten(
        next((line for line in lines if line and "Loading weights" not in line), ""), 200, placeholder=" ..."
    )
