"""`lrft report`: a run's own page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Output file. Default: report.html in the run folder.")
    ] = None,
) -> None:
    """Write a run's report as one HTML file with curves, samples, checks, environment and recipe.

    Example: lrft report runs/first
    """
    from lrft.report.html import write_page

    typer.echo(f"wrote {write_page(run, out)}")
