"""`lrft verify`: correctness checks on a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lrft.cli.arguments import AsJson, loading, tell_choice, typed
from lrft.errors import UsageError


def verify(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    as_json: AsJson = False,
) -> None:
    """Check a run on a slice of its own data: packing, gradient accumulation, merge and resume.

    Example: lrft verify runs/first
    """
    from lrft.runs.locate import adapter_of, run_of

    adapter = adapter_of(source)
    run = run_of(adapter)
    if run is None or not (run / "resolved.yaml").is_file():
        raise UsageError(f"{source} is not a run folder; verify needs the run's recipe and data")
    with loading():
        from lrft.runs.after import noted
        from lrft.tracking.console import Reporter
        from lrft.verification.run import Finding, verify_run

    tell_choice(source, adapter)
    with Reporter(None, quiet=as_json) as reporter, noted(run, "verify", typed()) as found:

        def tell(finding: Finding) -> None:
            found[finding.name] = f"{'holds' if finding.holds else 'FAILS'}: {finding.text}"
            reporter.table([("holds" if finding.holds else "FAILS", [f"{finding.name}: {finding.text}"])])

        findings = verify_run(run, adapter, tell=tell)
    if as_json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
