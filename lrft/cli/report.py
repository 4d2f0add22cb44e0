"""`lrft report`: a run's own page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Output file. Default: report.html in the run folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report as one HTML file with curves, samples, checks, environment and recipe.

    Example: lrft report runs/first
    """
    from lrft.report.run_page import write_page

    page = write_page(run, out)
    with answering(as_json, {"wrote": str(page)}) as reporter:
        reporter.line(f"wrote {page}")
