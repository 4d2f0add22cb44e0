"""The commands of a recipe's `after`, and how they ended: RUN/after_training.json.

Each is a command of lrft like any that a person types, so it can be repeated as it stands.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lrft import registry
from lrft.recipe import Recipe
from lrft.recipe.dump import inline
from lrft.recipe.schema import Named
from lrft.utils import files
from lrft.utils.text import command

FILE = "after_training.json"


@dataclass(frozen=True)
class Ended:
    """A command as a shell takes it, the step that the run had reached, and its exit code."""

    command: str
    step: int
    exit_code: int

    @property
    def line(self) -> str:
        """In one line."""
        return f"{self.command}   {'done' if not self.exit_code else f'FAILED, exit code {self.exit_code}'}"


def commands(recipe: Recipe, run: str) -> list[list[str]]:
    """The words behind `lrft` of each command, in their order: what is pushed has been made and measured by then.

    run: the run's folder, as these words are to name it.
    """
    after, folder = recipe.after, {"adapter": run, "merged": f"{run}/merged"}
    return [
        *([["merge", run]] if after.merge else []),
        *(["export", run, "--to", exporter.name, *options(exporter)] for exporter in after.export),
        *(["eval", run, "--data", path] for path in after.eval),
        *(
            [["push", folder.get(after.push_from, f"{run}/export/{after.push_from}"), "--to", after.push]]
            if after.push is not None
            else []
        ),
    ]


def options(exporter: Named) -> list[str]:
    """OPTION=VALUE of each option that has another value than its default."""
    defaults = {knob.name: knob.default for knob in registry.declared("exporters")[exporter.name].knobs}
    return [f"{name}={inline(value)}" for name, value in exporter.options.items() if value != defaults[name]]


def shown(recipe: Recipe) -> list[str]:
    """The commands as a shell takes them, with ${NAME} for what came from the environment."""
    return [
        command("lrft", *(recipe.masked(word) for word in words), expand=True)
        for words in commands(recipe, recipe.output_dir)
    ]


def keep(run: Path, ended: list[Ended]) -> None:
    """Write how they ended. Raises LrftError when the disk is full."""
    files.write_json(run / FILE, [asdict(one) for one in ended])


def kept(run: Path) -> list[Ended]:
    """What was written; nothing where it is missing or broken."""
    try:
        return [Ended(**one) for one in json.loads((run / FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
