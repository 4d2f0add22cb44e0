"""`lrft verify`."""

from __future__ import annotations

import json
from pathlib import Path

from lrft.errors import UsageError
from lrft.runs.locate import adapter_of, run_of
from lrft.tracking.console import Reporter
from lrft.verification.run import Finding, verify_run


def verify(source: Path, *, as_json: bool) -> None:
    """`lrft verify`."""
    adapter = adapter_of(source)
    run = run_of(adapter)
    if run is None or not (run / "resolved.yaml").is_file():
        raise UsageError(f"{source} is not a run: its recipe and data are needed")
    with Reporter(None, quiet=as_json) as reporter:

        def tell(finding: Finding) -> None:
            reporter.table([("holds" if finding.holds else "FAILS", [f"{finding.name}: {finding.text}"])])

        findings = verify_run(run, adapter, tell=tell)
    if as_json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
