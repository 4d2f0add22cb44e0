"""`lrft merge`: write the merged folder, compare it with the adapter, report rounding losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.arguments import AsJson, Base, loading, one_of, refuse_missing_base, tell_choice, typed
from lrft.cli.progress import shown
from lrft.errors import UsageError
from lrft.utils.files import refuse_taken
from lrft.utils.slow import telling
from lrft.utils.text import Row, command, count

if TYPE_CHECKING:
    from lrft.export.merge import MergeResult
    from lrft.verification.merge import Difference, Quantized

DTYPES = ("float32", "bfloat16", "float16")
INTO = ("original", "dequantized")
LARGEST_ROUNDING_LOSS = 0.1  # share of the update lost to rounding at a merge that is worth a warning


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
    base: Base = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Skip the check that the merged model matches the adapter.")
    ] = False,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Maximum logit difference, relative to the largest logit.")
    ] = None,
    accept_other_base: Annotated[
        bool,
        typer.Option("--accept-other-base", help="Accept a base other than the one the adapter was trained on."),
    ] = False,
    into: Annotated[
        str,
        typer.Option(
            help="original, or dequantized: the weights that were trained against, where the base was quantised."
        ),
    ] = "original",
    as_json: AsJson = False,
) -> None:
    """Write base + adapter as a plain model folder, and check that its logits match.

    Example: lrft merge runs/first
    """
    one_of("--dtype", dtype, DTYPES)
    one_of("--into", into, INTO)
    from lrft.runs.locate import adapter_folder, run_of, trusts_remote_code

    adapter = adapter_folder(source)
    folder = out or folder_in_run(adapter)
    refuse_taken(folder)
    refuse_missing_base(base)
    with loading():
        from lrft.export.merge import merge_adapter
        from lrft.runs.after import noted

    tell_choice(source, adapter)
    with noted(run_of(adapter), "merge", typed()) as found:
        found["folder"] = str(folder)
        with shown():
            result = merge_adapter(
                adapter,
                folder,
                base_model=base,
                dtype=dtype,
                accept_other_base=accept_other_base,
                into=into,
                trust_remote_code=trusts_remote_code(adapter),
            )
        found |= {"update lost in rounding": f"{result.lost_share:.2%}", "checked": "no, --no-verify"}
        difference = None
        if not no_verify:
            del found["checked"]
            with telling("comparing the merged model with the adapter"):
                difference = compared(folder, adapter, result.base, tolerance, into)
            found |= {"checked": checked_words(difference)}
    if as_json:
        verified = difference.to_dict() if difference else None
        print(json.dumps({"out": str(folder), **result.to_dict(), "verified": verified}, indent=1))
    else:
        tell(folder, result, difference)


def compared(folder: Path, adapter: Path, base: Path, tolerance: float | None, into: str) -> Difference:
    """Loads both models, and only now what that takes. Raises CheckFailed when they differ."""
    with loading():
        from lrft.verification.merge import verify_merge

    return verify_merge(folder, adapter, base_folder=base, tolerance=tolerance, into=into)


def folder_in_run(adapter: Path) -> Path:
    """merged/ in the run of `adapter`. Raises UsageError when it is in none."""
    from lrft.runs.locate import run_of

    run = run_of(adapter)
    if run is None:
        raise UsageError(f"{adapter} is not inside a run: choose the merged folder with -o FOLDER")
    return run / "merged"


def tell(out: Path, result: MergeResult, difference: Difference | None) -> None:
    """Print what was merged, what was lost, and what to do next."""
    from lrft.tracking.console import Reporter

    smaller: list[Row] = [("smaller", result.shrunk.lines)] if result.shrunk else []
    rows = [*merge_rows(out, result), *smaller, *(check_rows(difference) if difference else [])]
    rows.append(("next", [command("lrft", "eval", out, "--data", "test.jsonl")]))
    with Reporter(None) as reporter:
        reporter.table(rows)
        if result.lost_share > LARGEST_ROUNDING_LOSS:
            reporter.warn(rounding_warning(result))


def merge_rows(out: Path, result: MergeResult) -> list[Row]:
    lost = f"{result.lost_share:.2%} of the update lost"
    return [
        ("merged", [str(out), count(result.sites, "module")]),
        *([("beside", [f"{count(result.beside, 'tensor')} written as trained"])] if result.beside else []),
        *([("left out", [left_out(result.left_out)])] if result.left_out else []),
        ("rounding", [lost, f"worst {result.worst_share:.2%} in {result.worst_site}"]),
    ]


def left_out(names: list[str]) -> str:
    """What of the base the merged model does not read."""
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return f"{count(len(names), 'tensor')} that a model with this head does not read: {', '.join(names[:3])}{more}"


def rounding_warning(result: MergeResult) -> str:
    dtype = result.dtype if result.dtype in DTYPES else "the stored dtype"
    return f"{result.lost_share:.0%} of the update was lost to {dtype} rounding; merge with --dtype float32 to keep it"


def checked_words(difference: Difference) -> str:
    return (
        f"merged vs. adapter on {count(difference.rows, 'row')}: largest logit difference "
        f"{difference.largest:.2g} (largest logit {difference.largest_logit:.3g})"
    )


def check_rows(difference: Difference) -> list[Row]:
    """How far the merged model's logits are from those of base and adapter."""
    found: list[Row] = [
        (
            "checked",
            [
                checked_words(difference),
                f"same {difference.choice} {difference.same_first:.2%}",
            ],
        )
    ]
    if difference.quantized:
        found.append(("quantised", quantized_lines(difference.quantized)))
    return found


def quantized_lines(found: Quantized) -> list[str]:
    """How far apart the two bases are that an adapter can be merged into."""
    return [
        f"the adapter was trained on a {found.kind} base and was merged into the original base",
        f"mean logit difference: {found.mean:.2g} merged vs. adapter on the {found.kind} base, {found.base:.2g} "
        f"between the "
        f"two bases, {found.update:.2g} between the adapter's effects on the two bases",
        "use --into dequantized to merge into the dequantised weights used in training",
    ]
