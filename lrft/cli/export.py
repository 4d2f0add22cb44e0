"""`lrft export`: the result of a run as a folder that another tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson, Base, loading, read_options
from lrft.cli.progress import shown
from lrft.errors import UsageError, nearest
from lrft.utils.slow import telling
from lrft.utils.text import Row

if TYPE_CHECKING:
    from lrft.registry import Declaration
    from lrft.verification.merge import Difference


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|ADAPTER", help="A run (its best adapter) or an adapter folder.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="merged, peft, lora, gguf, gguf-lora, ollama, or the exporter of an installed package."
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="Options of the exporter.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The new folder. Default: export/NAME in the run.")
    ] = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Write the result as a folder for another tool; a model folder is compared with the adapter.

    Example: lrft export runs/first --to peft
    """
    card = exporter(to)
    values = read_options(card, f"--to {to}", options or [])
    from lrft.runs.locate import adapter_folder, run_of

    adapter = adapter_folder(source)
    with loading():
        from lrft.adapters.peft_import import read_any
        from lrft.export.gguf import FILE
        from lrft.loading.base import base_of
        from lrft.verification.adapter import verify_adapter
        from lrft.verification.gguf import verify_gguf
        from lrft.verification.merge import verify_merge

    saved = read_any(adapter)
    folder = base_of(saved, base)
    run = run_of(adapter)
    if out is None and run is None:
        raise UsageError("lrft export needs -o FOLDER for an adapter outside a run")
    out = out or Path(run or ".") / "export" / to
    writer = card.load()(**values)
    with shown():
        facts = writer.export(saved, folder, out)
    rows: list[Row] = [("exported", [str(out), *facts])]
    with telling("comparing what was written with the adapter"):
        if writer.writes_model:
            rows.append(("checked", checked(verify_merge(out, adapter, base_folder=folder))))
        if writer.writes_adapter:
            found = verify_adapter(out, adapter, base_folder=folder, tolerance=writer.tolerance)
            rows.append(("checked", [*checked(found), share(found)]))
        if writer.writes_gguf:
            read = verify_gguf(out / FILE, adapter, base_folder=folder, dtype=writer.dtype)
            unread = f"weights alone: transformers does not read {', '.join(read.unread)} of the file"
            rows.append(("checked", [*checked(read.difference), share(read.difference), *[unread] * bool(read.unread)]))
    with answering(as_json) as reporter:
        reporter.table(rows)


def exporter(name: str) -> Declaration:
    """The declaration of an exporter. Raises UsageError with the nearest name."""
    from lrft import registry

    cards = registry.declared("exporters")
    if name not in cards:
        close = nearest(name, list(cards))
        hint = f"Did you mean {close[0]}?" if close else None
        raise UsageError(f"--to must be one of {', '.join(sorted(cards))} (got {name})", hint)
    return cards[name]


def checked(difference: Difference) -> list[str]:
    return [
        f"largest logit difference to the adapter {difference.largest:.2g} (largest logit "
        f"{difference.largest_logit:.3g})",
        f"same first token {difference.same_first:.2%}",
    ]


def share(difference: Difference) -> str:
    """What was lost beside what was trained."""
    return f"mean difference {difference.mean / difference.mean_changed:.2%} of what the adapter changes"
