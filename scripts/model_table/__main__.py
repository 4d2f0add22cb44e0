"""scripts/models: docs/models.json and docs/models.md. With families, only theirs are made anew."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrft.utils import files
from model_table.families import FAMILIES
from model_table.making import write_rows
from model_table.others import others
from model_table.page import page
from model_table.trying import attempt

KEPT, WRITTEN = Path("docs/models.json"), Path("docs/models.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/models", description="What lrft does with each family of models.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="as docs/models.md calls it; all by default")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    families = [*FAMILIES, *others()]
    if unknown := [name for name in asked.families if name not in families]:
        parser.error(f"there is no family {unknown[0]!r}; there are {', '.join(families)}")
    known = files.read_json(KEPT)["families"] if KEPT.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LRFT_CACHE"] = f"{scratch}/cache"
        os.chdir(Path(__file__).parents[2])
        rows = write_rows(Path(scratch) / "rows.jsonl")
        for number, family in enumerate([] if asked.page else asked.families or families):
            place = Path(scratch) / str(number)
            tried = attempt(family, place, rows)
            known[family] = asdict(tried)
            keep(known)
            print(f"{family}: trains {tried.trains}, merges {tried.merges}, PEFT {tried.peft}", file=sys.stderr)
    keep({family: known[family] for family in families if family in known})
    WRITTEN.write_text(page(files.read_json(KEPT)), encoding="utf-8")


def keep(known: dict[str, Any]) -> None:
    versions = {name: version(name).partition("+")[0] for name in ("transformers", "peft", "torch")}
    files.write_json(KEPT, {"versions": versions, "families": known})


if __name__ == "__main__":
    main()
