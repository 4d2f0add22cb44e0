"""scripts/claims: the page; `base`: the bases and the data; `run`: comparisons too."""

from __future__ import annotations

import argparse
from pathlib import Path

from method_benchmark import base

from lrft.utils import files
from paper_claims import pairs, running
from paper_claims.page import page
from paper_claims.papers import CLAIMS

WRITTEN = Path("docs/claims.md")
MAKE = {"pairs": pairs.make, "tasks": base.make}
"""What makes the base and the data of a setting."""


def main() -> None:
    names = [claim.name for claim in CLAIMS]
    parser = argparse.ArgumentParser(prog="scripts/claims", description="Claims of papers, tried on a small model.")
    parser.add_argument("action", nargs="?", choices=["base", "run"], help="nothing: write docs/claims.md")
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"of run: {', '.join(names)}; all by default")
    asked = parser.parse_args()
    if unknown := [name for name in asked.claims if name not in names or asked.action != "run"]:
        parser.error(f"{unknown[0]} is not a claim of `run`; there are {', '.join(names)}")
    wanted = [claim for claim in CLAIMS if claim.name in (asked.claims or names)]
    if asked.action:
        for setting in dict.fromkeys(claim.setting for claim in wanted):
            MAKE[setting]()
    if asked.action == "run":
        for claim in wanted:
            files.write_json(running.kept_at(claim.name), running.run(claim.name, claim.measures))
    files.write_text(WRITTEN, page(running.kept()))


if __name__ == "__main__":
    main()
