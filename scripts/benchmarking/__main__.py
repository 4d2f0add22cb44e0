"""scripts/benchmark: the page; `files`: the comparisons; `base`: the base and the data; `run`: everything."""

from __future__ import annotations

import argparse
import subprocess
import sys

import keeping

from benchmarking import base, files, page
from benchmarking.tasks import TASKS
from lrft.files import read_json, write_json


def run(task: str, jobs: int) -> None:
    """Train what is not trained yet, and keep the figures. A method that fails has a line of its own on the page."""
    folder = base.FOLDER / task
    with keeping.counted(folder / "cost.json"):
        command = ["compare", str(files.FOLDER / f"{task}.yaml"), "--jobs", str(jobs)]
        subprocess.run([sys.executable, "-m", "lrft", *command], check=False)
    found = keeping.of_comparison(read_json(folder / "compare.json"), folder / "cost.json")
    page.KEPT.mkdir(exist_ok=True)
    write_json(page.KEPT / f"{task}.json", found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description="Every method on three small tasks.")
    parser.add_argument("action", nargs="?", choices=["files", "base", "run"], help="nothing: write docs/benchmark.md")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of run: {', '.join(TASKS)}; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    if unknown := [task for task in asked.tasks if task not in TASKS or asked.action != "run"]:
        parser.error(f"{unknown[0]} is not a task of `run`; there are {', '.join(TASKS)}")
    if asked.action == "files":
        files.write()
    if asked.action in ("base", "run"):
        base.make()
    if asked.action == "run":
        for task in asked.tasks or TASKS:
            files.write([task])
            run(task, asked.jobs)
    page.write()


if __name__ == "__main__":
    main()
