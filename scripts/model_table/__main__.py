"""scripts/models: docs/models.json and docs/models.md. With families, only theirs are made anew."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrft.utils import files
from model_table.families import FAMILIES
from model_table.forecasts import SIZES, measure, processor
from model_table.making import write_rows
from model_table.others import others
from model_table.page import page
from model_table.trying import attempt

KEPT, WRITTEN = Path("docs/models.json"), Path("docs/models.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/models", description="What lrft does with each family of models.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="as docs/models.md calls it; all by default")
    parser.add_argument("--forecasts", action="store_true", help="only compare forecasts of memory with runs")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    families = list(SIZES) if asked.forecasts else [*FAMILIES, *others()]
    if unknown := [name for name in asked.families if name not in families]:
        parser.error(f"there is no family {unknown[0]!r}; there are {', '.join(families)}")
    kept = files.read_json(KEPT) if KEPT.exists() else {}
    known = kept.get("families", {})
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LRFT_CACHE"] = f"{scratch}/cache"
        os.chdir(Path(__file__).parents[2])
        if asked.forecasts:
            compare_forecasts(asked.families or families, Path(scratch), kept)
            return
        rows = write_rows(Path(scratch) / "rows.jsonl")
        for number, family in enumerate([] if asked.page else asked.families or families):
            place = Path(scratch) / str(number)
            tried = attempt(family, place, rows)
            known[family] = asdict(tried)
            keep(kept, known)
            print(f"{family}: trains {tried.trains}, merges {tried.merges}, PEFT {tried.peft}", file=sys.stderr)
    keep(kept, {family: known[family] for family in families if family in known})
    WRITTEN.write_text(page(files.read_json(KEPT)), encoding="utf-8")


def compare_forecasts(families: Sequence[str], scratch: Path, kept: dict[str, Any]) -> None:
    found = kept.get("forecasts", {}).get("families", {})
    for number, family in enumerate(families):
        place = scratch / str(number)
        place.mkdir()
        found[family] = measure(family, place)
        print(family, found[family], file=sys.stderr)
        table = {name: found[name] for name in SIZES if name in found}
        kept["forecasts"] = {"versions": versions(), "processor": processor(), "families": table}
        files.write_json(KEPT, kept)
    WRITTEN.write_text(page(files.read_json(KEPT)), encoding="utf-8")


def keep(kept: dict[str, Any], known: dict[str, Any]) -> None:
    files.write_json(KEPT, kept | {"versions": versions(), "families": known})


def versions() -> dict[str, str]:
    return {name: version(name).partition("+")[0] for name in ("transformers", "peft", "torch")}


if __name__ == "__main__":
    main()
