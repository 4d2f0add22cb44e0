"""`lrft combine`: several adapters over one base made into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson, Base, loading, one_of
from lrft.errors import UsageError
from lrft.utils.text import Row, command, count

WAYS = ("cat", "svd", "linear", "magnitude-prune", "dare", "ties", "dare-ties")
SPARSE = ("magnitude-prune", "dare", "ties", "dare-ties")


def combine(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|ADAPTER...", help="Two or more, over one base; a run stands for its best."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new adapter folder.")],
    how: Annotated[
        str, typer.Option(help="cat (exact), svd, linear, magnitude-prune, dare, ties or dare-ties.")
    ] = "cat",
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="One for each adapter. Default: 1/n, and 1 for ties and dare-ties."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the result, but for cat and linear. Default: the largest.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of an update that dare, ties and magnitude-prune keep. Default: 0.5.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the numbers that dare keeps.")] = 0,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Combine adapters over one base into a LoRA that lrft and PEFT load.

    Example: lrft combine runs/chat runs/json -o both --weights 0.7,0.3
    """
    one_of("--how", how, WAYS)
    shares = numbers(weights)
    if len(sources) < 2:
        raise UsageError(f"lrft combine takes two or more adapters, got {len(sources)}")
    if shares is not None and len(shares) != len(sources):
        raise UsageError(f"--weights has {count(len(shares), 'number')} for {count(len(sources), 'adapter')}")
    if rank is not None and how in ("cat", "linear"):
        raise UsageError(f"--rank has no effect with --how {how}", "Use --how svd to cut the sum to a rank.")
    if density is not None and how not in SPARSE:
        raise UsageError(f"--density has no effect with --how {how}")
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"--density must be above 0 and at most 1 (got {density:g})")
    from lrft.runs.locate import adapter_folder, trusts_remote_code

    adapters = [adapter_folder(source) for source in sources]
    with loading():
        from lrft.export.combine import combine_adapters

    found = combine_adapters(
        adapters,
        out,
        how=how,
        weights=shares,
        rank=rank,
        density=0.5 if density is None else density,
        seed=seed,
        base_model=base,
        trust_remote_code=trusts_remote_code(adapters[0]),
    )
    low, high = found.ranks
    ranks = f"rank {low}" if low == high else f"rank {low} to {high}"
    error = found.errors[found.worst]
    exact = "exact" if not error else f"largest relative error of a cut to the rank {error:.2%} in {found.worst}"
    rows: list[Row] = [
        ("combined", [str(out), f"{count(found.modules, 'module')}, {ranks}", exact if how != "linear" else ""]),
        ("next", [command("lrft", "eval", out, "--data", "test.jsonl")]),
    ]
    with answering(as_json) as reporter:
        reporter.table(rows)


def numbers(text: str | None) -> list[float] | None:
    """Raises UsageError for what are no numbers."""
    if text is None:
        return None
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights must be numbers with commas between them, such as 0.7,0.3 (got {text})") from None
    if not all(abs(number) < float("inf") for number in found) or not any(found):
        raise UsageError(f"--weights must be finite and not all zero (got {text})")
    return found
