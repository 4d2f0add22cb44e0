"""The `lrft` command line: one file per command in this folder, and exit codes.

Nothing heavy is imported here: `lrft --help` and a misspelt key answer before torch is loaded.
"""

from __future__ import annotations

import gc
import inspect as inspect_module
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lrft.cli import error_output
from lrft.cli.chat import chat
from lrft.cli.check import check
from lrft.cli.combine import combine
from lrft.cli.compare import compare
from lrft.cli.convert import convert
from lrft.cli.data import data
from lrft.cli.doctor import doctor
from lrft.cli.eval import evaluate
from lrft.cli.export import export
from lrft.cli.generate import generate
from lrft.cli.init import init
from lrft.cli.inspect import inspect
from lrft.cli.merge import merge
from lrft.cli.methods import methods
from lrft.cli.plan import plan
from lrft.cli.preview import preview
from lrft.cli.push import push
from lrft.cli.quickstart import quickstart
from lrft.cli.report import report
from lrft.cli.schema import schema
from lrft.cli.serve import serve
from lrft.cli.show import show
from lrft.cli.train import train
from lrft.cli.tune import tune
from lrft.cli.verify import verify
from lrft.errors import LrftError, MemoryExhausted, UsageError, exit_code, nearest
from lrft.utils import slow
from lrft.utils.allocator import expandable_segments
from lrft.version import built_from

# In the order of use: `lrft --help` shows them like this.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Start": {"quickstart": quickstart, "init": init, "check": check, "data": data, "preview": preview, "plan": plan},
    "Train": {"train": train, "tune": tune, "compare": compare},
    "Use": {
        "merge": merge,
        "eval": evaluate,
        "generate": generate,
        "chat": chat,
        "serve": serve,
        "combine": combine,
        "convert": convert,
        "export": export,
        "push": push,
    },
    "Look": {"report": report, "inspect": inspect, "verify": verify, "doctor": doctor},
    "Reference": {"methods": methods, "show": show, "schema": schema},
}


Verbose = Annotated[
    bool, typer.Option("--verbose", help="Log what is done, and what libraries log, on the standard error.")
]


def with_verbose(command: Callable[..., None]) -> Callable[..., None]:
    """The command with `--verbose` beside its own options."""

    @wraps(command)
    def run(*given: Any, verbose: bool, **named: Any) -> None:
        if verbose or slow.verbose():
            slow.begin_log()
        command(*given, **named)

    signature = inspect_module.signature(command, eval_str=True)
    own = inspect_module.Parameter("verbose", inspect_module.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])  # type: ignore[attr-defined]
    run.__annotations__ = {name: each.annotation for name, each in run.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return run


class Grouped(TyperGroup):
    """Lists its commands in groups, each with the first paragraph of its help in full. One that does not exist is
    answered with one that is near, if any, or with all of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            close = nearest(args[0], self.commands)
            hint = f"Did you mean {close[0]}?" if close else f"Commands: {', '.join(self.commands)}"
            raise UsageError(f"{args[0]} is not a command of lrft", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            found: Any = self.get_command(ctx, name)
            summary = " ".join((found.help or "").split("\n\n")[0].split())
            groups.setdefault(found.rich_help_panel, []).append((name, summary))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


app = typer.Typer(
    name="lrft",
    cls=Grouped,
    help="Low-rank fine-tuning from a YAML recipe.\n\n`lrft COMMAND -h` explains a command, with an example.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for title, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=title)(with_verbose(command))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"lrft {built_from()}")
        raise typer.Exit


def spell_resume(arguments: list[str]) -> list[str]:
    """`--resume` alone means `--resume last`; a following word with `=` is an override, not its value."""
    spelt = []
    for at, word in enumerate(arguments):
        following = arguments[at + 1] if at + 1 < len(arguments) else "-"
        if word == "--resume" and (following.startswith(("-", "~")) or "=" in following):
            word = "--resume=last"
        spelt.append(word)
    return spelt


def main() -> None:
    """Run a command; turn every failure into its documented exit code."""
    gc.freeze()  # this process is ours: what it imports is never looked at for garbage, see lrft.model.load.importing
    expandable_segments()
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    try:
        app(spell_resume(arguments), standalone_mode=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except LrftError as error:
        error_output.tell(error)
        if "--json" in arguments:
            print(json.dumps({"error": error.lines(), "exit_code": exit_code(error)}, indent=1))
        return exit_code(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if error_output.is_lack_of_memory(error):
            print(f"out of memory: {(str(error).splitlines() or ['allocation failed'])[0]}", file=sys.stderr)
            return MemoryExhausted.exit_code
        return error_output.unexpected(error)
    return 0
