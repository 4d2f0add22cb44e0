#!/usr/bin/env python
"""Recipes and data files, mutated at random: nothing may crash, hang, grow, write, or be miscounted.

    scripts/stress/fuzz.py                                   100,000 recipes and 10,000 data files
    scripts/stress/fuzz.py --recipes 2000 --data 200 --seed 1

Works in a temporary folder of its own, prints a table, exits with 1 on any violation. Case n of a seed is always the
same; `--show n` prints the recipe of that number.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

sys.path.insert(0, str(Path(__file__).parents[1]))

from stress import recipes, rows
from stress.tally import Tally


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=100_000)
    parser.add_argument("--data", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="no batch begins after that")
    parser.add_argument("--show", type=int, help="print a recipe and its overrides instead")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    if chosen.show is not None:
        text, overrides = recipes.generate(chosen.show, chosen.seed)
        sys.stdout.buffer.write(text)
        print(overrides)
        return 0
    tally = Tally(chosen.minutes)
    home = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="lrft-fuzz-") as folder:
        recipes.campaign(tally, Path(folder), chosen.recipes, chosen.seed)
        rows.campaign(tally, Path(folder), chosen.data, chosen.seed)
        os.chdir(home)
    print(tally.to_json() if chosen.json else tally.table())
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
