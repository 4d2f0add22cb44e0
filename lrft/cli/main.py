"""The command line: what can be said, and who does it. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lrft.cli import errors
from lrft.errors import LrftError, MemoryExhausted, UsageError, exit_code, nearest
from lrft.version import __version__


class Commands(TyperGroup):
    """The commands; one that does not exist is answered with one that is near, if any, and with all of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            close = nearest(args[0], self.commands)
            hint = f"Did you mean {close[0]}?" if close else f"Commands: {', '.join(self.commands)}"
            raise UsageError(f"{args[0]} is not a command of lrft", hint)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="lrft",
    help="Low-rank fine-tuning from a YAML recipe: train, merge, evaluate, compare methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    cls=Commands,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or the folder of a run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the recipe: adapter.rank=8, ~data.validation."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"lrft {__version__}")
        raise typer.Exit


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[last|best|PATH]", help="Continue a run from its last checkpoint, or another."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run aside and start again.")] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="With --resume: go on although recipe, data or base have changed."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings only.")] = False,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this machine, one for each device. Left out: one for each GPU."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what each process would do; load no weights, start no run.")
    ] = False,
) -> None:
    """Fine-tune what a recipe says."""
    if resume and fresh:
        raise UsageError("--resume and --fresh exclude each other")
    if resume and dry_run:
        raise UsageError("--resume and --dry-run exclude each other", "With --fresh a dry run moves nothing aside.")
    loaded = read_recipe(recipe, overrides)
    refuse_missing(loaded)
    from lrft.cli.train import start

    with as_written(loaded):
        code = start(
            loaded,
            recipe,
            overrides or [],
            resume=resume,
            fresh=fresh,
            accept_changes=accept_changes,
            quiet=quiet,
            devices=devices,
            dry_run=dry_run,
        )
    raise typer.Exit(code)


@app.command()
def merge(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|ADAPTER", help="A run (its best adapter) or an adapter folder.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The new folder. Default: merged/ in the run.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: as the base is stored.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, when it is not where the adapter says.")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare merged and adapter.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest logit difference allowed, over the largest logit.")
    ] = None,
    accept_other_base: Annotated[
        bool,
        typer.Option("--accept-other-base", help="Merge into a base that the adapter was not trained on."),
    ] = False,
    into: Annotated[
        str,
        typer.Option(
            help="original, or dequantized: the weights that were trained against, where the base was quantised."
        ),
    ] = "original",
    as_json: AsJson = False,
) -> None:
    """Write base + adapter as a plain model folder, and check that it answers the same."""
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UsageError(f"--dtype: {dtype} is none of float32, bfloat16, float16")
    if into not in ("original", "dequantized"):
        raise UsageError(f"--into: {into} is neither original nor dequantized")
    with loading():
        from lrft.cli.merge import merge as run

    run(
        source,
        out,
        dtype=dtype,
        base_model=base,
        verify=not no_verify,
        tolerance=tolerance,
        accept_other_base=accept_other_base,
        into=into,
        as_json=as_json,
    )


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    as_json: AsJson = False,
) -> None:
    """Test a run's promises on a slice of its own data: packed, accumulation, merged, resumed."""
    with loading():
        from lrft.cli.verify import verify as run

    run(source, as_json=as_json)


@app.command()
def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|ADAPTER", help="A run (its best adapter), or an adapter folder of lrft or of PEFT."
        ),
    ],
    base: Annotated[str | None, typer.Option(help="The base model, when it is not where the adapter says.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where inspect.json and inspect.png go. Default: the run.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Leading singular vectors that may be intruders.")] = 10,
    epsilon: Annotated[
        float, typer.Option(min=0, max=1, help="An intruder's largest |cosine| with the base's vectors is below this.")
    ] = 0.5,
    accept_other_base: Annotated[
        bool,
        typer.Option("--accept-other-base", help="Take a base that the adapter was not trained on."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what an adapter did to the weights: norms, ranks, spectra and intruder dimensions by module."""
    with loading():
        from lrft.cli.inspect import inspect as run

    run(
        source,
        out,
        base_model=base,
        top=top,
        epsilon=epsilon,
        accept_other_base=accept_other_base,
        as_json=as_json,
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file. Default: report.html in the run.")] = None,
) -> None:
    """Write a run's own page: one HTML file with curves, samples, checks, environment and recipe."""
    from lrft.report.html import write_page

    typer.echo(f"wrote {write_page(run, out)}")


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|ADAPTER|MODEL", help="What to measure.")],
    data: Annotated[str | None, typer.Option(help="Rows to measure on. Default: the run's validation rows.")] = None,
    data_format: Annotated[
        str | None, typer.Option("--format", help="Layout of these rows, as data.train[].format. Default: the run's.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="{THEIRS: OURS}", help="Renames their columns. Default: the run's.")
    ] = None,
    special_tokens: Annotated[
        str | None, typer.Option(metavar="text|tokens", help="As data.train[].special_tokens. Default: the run's.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, when it is not where the adapter says.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    no_generate: Annotated[bool, typer.Option("--no-generate", help="Loss only, no answers.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per pass; the figures do not depend on it.")] = 8,
    samples: Annotated[int, typer.Option(min=0, help="Answers to show.")] = 3,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Execute code that the model brings along.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Token-exact loss and perplexity, and exact match of greedy answers."""
    with loading():
        from lrft.cli.evaluate import evaluate_target as run

    run(
        target,
        data,
        reading={"format": data_format, "columns": columns, "special_tokens": special_tokens},
        base_model=base,
        limit=limit,
        generate=not no_generate,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        samples=samples,
        trust_remote_code=trust_remote_code,
        as_json=as_json,
    )


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    static: Annotated[bool, typer.Option("--static", help="The recipe alone: no model, no data.")] = False,
) -> None:
    """Find everything that is wrong with a recipe, without training."""
    loaded = read_recipe(recipe, overrides)
    if static:
        typer.echo(f"{recipe}: the recipe is sound (model and data were not looked at)")
        return
    refuse_missing(loaded)
    with loading():
        from lrft.cli.check import check as run

    with as_written(loaded):
        run(loaded, recipe)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="Divide the run over this many devices of each node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines with as many devices each.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Say what a run will take: parameters, memory by part, steps, tokens and time. Loads no weights."""
    loaded = read_recipe(recipe, overrides)
    refuse_missing(loaded)
    with loading():
        from lrft.cli.plan import plan as run

    with as_written(loaded):
        run(loaded, devices=devices, nodes=nodes, as_json=as_json)


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A comparison: which runs, on what grid and seeds.")],
    jobs: Annotated[int, typer.Option(min=1, help="Runs that are trained side by side.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs with their ranks, parameters and time.")
    ] = False,
) -> None:
    """Train one recipe with several methods, at equal parameters, and say which is best.

    Every method is trained at each point of a grid and with each seed, as an ordinary run; what is finished is kept,
    so the same command goes on after an interruption. Results: compare.md, .csv, .json and .html in output_dir.

    
    recipe       a recipe file, or its keys: what all runs have in common
    runs         by name: a method, a list of methods, or the keys that differ
    grid         keys with lists of values: training.learning_rate: [1e-4, 1e-3]
    seeds        [1, 2, 3]
    budget       parameters (ranks that train as much as the baseline), rank, none
    baseline     the run that the others are compared with; the first
    metric       loss, perplexity or exact_match, on the validation rows
    forgetting   general text, whose loss is measured before and after
    output_dir   folder of the comparison
    """
    from lrft.compare.config import read

    comparison = read(file)
    with loading():
        from lrft.compare.run import run

    with as_written(comparison.first_recipe()):
        run(comparison, jobs=jobs, dry_run=dry_run)


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved recipe: every key, its value and where that comes from."""
    loaded = read_recipe(recipe, overrides)
    from lrft import recipe as recipes

    if as_json:
        typer.echo(json.dumps(recipes.plain(loaded), indent=1))
    else:
        typer.echo(recipes.resolved(loaded, {}), nl=False)


@app.command()
def schema(
    key: Annotated[str | None, typer.Argument(help="Explain one key, such as adapter.rank.")] = None,
) -> None:
    """Print the JSON Schema of recipes for editors, or explain one key."""
    from lrft import recipe as recipes

    typer.echo(recipes.describe(key) if key else json.dumps(recipes.json_schema(), indent=1))


@app.command()
def methods(
    action: Annotated[str | None, typer.Argument(metavar="[show]")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    kind: Annotated[str | None, typer.Option(help="Only methods of this kind.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Count what each would train on this recipe's model, layers and rank.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the adapter methods, or show one: its equation, options, and what it combines with."""
    if recipe is not None:
        if action is not None:
            raise UsageError("lrft methods show and --recipe exclude each other")
        loaded = read_recipe(recipe, None)
        with loading():
            from lrft.cli.count_methods import count_methods

        with as_written(loaded):
            count_methods(loaded, kind=kind, as_json=as_json)
        return
    from lrft.cli.methods import render

    typer.echo(render(action, name, kind=kind, as_json=as_json), nl=False)


@app.command()
def preview(
    recipe: RecipePath,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Samples to show.")] = 3,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
) -> None:
    """Show samples as the model will see them, coloured by what is trained, and the data's counts."""
    if split not in ("train", "validation"):
        raise UsageError(f"--split: {split} is neither train nor validation")
    loaded = read_recipe(recipe, overrides)
    with loading():
        from lrft.cli.preview import preview as run

    with as_written(loaded):
        run(loaded, n=n, split=split)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option(help="Folder or hub id of the base model.")] = "HuggingFaceTB/SmolLM2-135M",
    data: Annotated[str, typer.Option(help="Training rows.")] = "train.jsonl",
    method: Annotated[str, typer.Option(help="Adapter method, see `lrft methods`.")] = "lora",
    full: Annotated[bool, typer.Option("--full", help="Every key with its default.")] = False,
) -> None:
    """Write a commented recipe to start from."""
    from lrft.cli.init import write

    write(path, model=model, data=data, method=method, full=full)
    typer.echo(f"wrote {path}\nnext       lrft check {path}    lrft preview {path}    lrft train {path}")


def read_recipe(path: Path, overrides: list[str] | None) -> Any:
    """The recipe at `path`, or the one that a run folder was made with. Raises RecipeError or UsageError."""
    from lrft import recipe as recipes

    if path.is_dir():
        if not (path / "resolved.yaml").is_file():
            raise UsageError(f"{path} is a folder without a run (no resolved.yaml)")
        path = path / "resolved.yaml"
    return recipes.load(path, tuple(overrides or ()))


def refuse_missing(recipe: Any) -> None:
    """Raises MissingError for a package that the recipe needs and that is not installed, before anything is loaded."""
    from lrft.model import load

    load.refuse_missing(recipe.model.quantization, recipe.where("model.quantization"))


def loading() -> AbstractContextManager[None]:
    """Around the imports of what works with a model."""
    from lrft.model.load import importing

    return importing()


@contextmanager
def as_written(recipe: Any) -> Iterator[None]:
    """Errors name what came from the environment as the recipe does: ${NAME}."""
    try:
        yield
    except LrftError as error:
        error.rewrite(recipe.masked)
        raise


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
    gc.freeze()  # this process is ours: what it imports is never looked at for garbage, see base.importing
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    try:
        app(spell_resume(arguments), standalone_mode=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except LrftError as error:
        errors.tell(error)
        return exit_code(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if errors.is_lack_of_memory(error):
            print(
                f"out of memory: {(str(error).splitlines() or ['nothing more can be allocated'])[0]}", file=sys.stderr
            )
            return MemoryExhausted.exit_code
        return errors.unexpected(error)
    return 0
