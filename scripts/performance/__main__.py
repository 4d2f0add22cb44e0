"""The command line: scripts/bench MODE."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from performance import commands, curves, inside, machine, merge, methods, preferences, report, startup, steps
from performance.place import Place
from performance.processes import ROOT

MODES = {
    "curves": curves.measure,
    "methods": methods.measure,
    "preferences": preferences.measure,
    "kernels": inside.kernels,
    "startup": startup.measure,
    "commands": commands.measure,
    "merge": merge.measure,
    "starts": inside.starts,
}
DESCRIPTION = """\
Measures lrft against its peers and writes docs/performance.md, .svg and .json.

  steps     a training step: lrft, PEFT, TRL and a hand-written limit
  curves    losses of lrft and of PEFT from the same first values
  methods   every method of lrft against lora
  preferences   a step of dpo against one of sft, and against TRL
  kernels   fast paths against their definitions
  startup   --help, a recipe error, the first step
  commands  whole commands on a tiny model, in CPU seconds; --before CHECKOUT compares with another lrft
  merge     lrft merge against a copy and against PEFT
  starts    PiSSA's decompositions
  all       everything
  page      only the page and the picture, from performance.json
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["steps", *MODES, "all", "page"])
    parser.add_argument("--model", action="append", choices=["smollm2", "small", "llama-8b"], help="of steps; repeat")
    parser.add_argument(
        "--only", help="contestants of steps or preferences, with semicolons between: 'limit; lrft; peft-loop'"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant")
    parser.add_argument("--steps", type=int, default=3, help="steps that count in each process")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step")
    parser.add_argument("--tokens", type=int, default=3071, help="tokens of a step")
    parser.add_argument("--curve-steps", type=int, default=50)
    parser.add_argument("--method-tokens", type=int, default=800)
    parser.add_argument("--startup-rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, help="of commands: the folder of an earlier checkout of lrft")
    parser.add_argument(
        "--threads", type=int, default=machine.cores(), help="of each process; 1 where other work runs beside it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the three files")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    place = Place(threads=options.threads)
    usual = ["llama-8b"] if machine.gpu() else ["smollm2", "small"]
    if options.mode in ("steps", "all"):
        for model in options.model or usual:
            section = steps.measure(place, options, model)
            report.keep(options.out, f"steps:{model}", section)
    for mode, measure in MODES.items():
        if options.mode in (mode, "all"):
            report.keep(options.out, mode, measure(place, options))
    print(report.write(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
