"""scripts/gpu OUT.json [--dry]: the parts one after the other, each within its own time, its result written at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from gpu_day import methods, speed, switches
from gpu_day.day import Day

SECONDS = 470


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__)
    parser.add_argument("out", type=Path, help="what was found, as JSON")
    parser.add_argument("--dry", action="store_true", help="tiny models, on whatever there is")
    given = parser.parse_args()
    if not given.dry and not torch.cuda.is_available():
        sys.exit("there is no GPU here: --dry rehearses without one")
    day = Day(given.out, dry=given.dry, seconds=SECONDS)
    for subject in (methods, switches, speed):
        subject.run(day)
    print(f"{given.out}: {day.seconds:.0f} of {SECONDS} seconds")
    sys.exit(1 if day.failed else 0)


if __name__ == "__main__":
    main()
