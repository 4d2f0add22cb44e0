"""scripts/benchmark: the page; `files`: the comparisons; `base`: the base and the data; `run`: everything."""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import keeping

from lrft.utils.files import read_json, write_json
from method_benchmark import base, files, page


def run(comparison: str, jobs: int) -> None:
    """Train what is not trained yet, and keep the figures. A method that fails has a line of its own on the page."""
    folder = base.FOLDER / comparison
    with keeping.counted(folder / "cost.json"):
        command = ["compare", str(files.FOLDER / f"{comparison}.yaml"), "--jobs", str(jobs)]
        subprocess.run([sys.executable, "-m", "lrft", *command], check=False)
    found = keeping.of_comparison(read_json(folder / "compare.json"), folder / "cost.json")
    files.KEPT.mkdir(exist_ok=True)
    write_json(files.KEPT / f"{comparison}.json", found)


def main() -> None:
    known = ", ".join(files.COMPARISONS)
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description="Every method on three small tasks.")
    parser.add_argument("action", nargs="?", choices=["files", "base", "run"], help="nothing: write docs/benchmark.md")
    parser.add_argument("comparisons", nargs="*", metavar="COMPARISON", help=f"of run: {known}; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    if unknown := [one for one in asked.comparisons if one not in files.COMPARISONS or asked.action != "run"]:
        parser.error(f"{unknown[0]} is not a comparison of `run`; there are {known}")
    if asked.action == "files":
        files.write()
    if asked.action in ("base", "run"):
        base.make()
    if asked.action == "run":
        for comparison in asked.comparisons or files.COMPARISONS:
            files.write([comparison])
            run(comparison, asked.jobs)
    page.write()


if __name__ == "__main__":
    main()
