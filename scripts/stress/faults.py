#!/usr/bin/env python
"""Break runs on purpose and see that nothing is lost: kills, signals, full disks, damaged files, hostile pickles.

    scripts/stress/faults.py                         everything, about 25 minutes on one core
    scripts/stress/faults.py --only kills --kills 20

Works in a temporary folder of its own, prints a table, exits with 1 when a single case did not end as it must.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # read when torch is imported

sys.path.insert(0, str(Path(__file__).parents[1]))

from stress import damage, disk, kills, lab
from stress.tally import Tally

CAMPAIGNS = ("kills", "disk", "damage")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at random moments")
    parser.add_argument("--at-save", type=int, default=50, help="SIGKILLs aimed at the save")
    parser.add_argument("--signals", type=int, default=20, help="runs stopped by SIGTERM or SIGINT, once; and twice")
    parser.add_argument("--mutations", type=int, default=500, help="damaged files, at least")
    parser.add_argument("--disks", type=int, default=30, help="sizes of a disk that becomes full")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a run, 2 to 6")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="no case begins after that")
    parser.add_argument("--only", choices=CAMPAIGNS, action="append", help="one campaign; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    only = chosen.only or CAMPAIGNS
    tally = Tally(chosen.minutes)
    lab.warm()
    with tempfile.TemporaryDirectory(prefix="lrft-faults-") as folder:
        Path(folder).chmod(0o755)  # one case runs as another user
        place = lab.Lab(Path(folder), steps=chosen.steps)
        if "kills" in only:
            rng = random.Random(f"{chosen.seed} kills")
            kills.campaign(tally, place, rng, chosen.kills, chosen.at_save, chosen.signals)
        if "disk" in only:
            disk.campaign(tally, place, random.Random(f"{chosen.seed} disk"), chosen.disks)
        if "damage" in only:
            damage.campaign(tally, place, random.Random(f"{chosen.seed} damage"), chosen.mutations)
    print(tally.to_json() if chosen.json else f"{lab.versions()}, seed {chosen.seed}\n{tally.table()}")
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
