"""scripts/benchmark real: what fits a budget is planned and run, in as many parts as one likes; then the page."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from lrft.errors import LrftError, exit_code
from lrft.utils.text import aligned, duration
from real_benchmark import claims, design, measuring, page, peers, plan, running, stages
from real_benchmark.design import ALL, EIGHT, Tier
from real_benchmark.stages import Part


def tier_of(name: str) -> Tier:
    return next(tier for tier in ALL if tier.name == name)


def told(tier: Tier, cost: plan.Cost) -> list[str]:
    """The plan: a line for each stage, with what it took where it is finished."""
    rows = [["stage", "task", "methods", "rates", "seeds", "steps", "runs", "forecast", "so far"]]
    for stage in plan.stages(tier):
        found = stages.kept(tier.name, stage.name)
        took = "" if found is None else duration(found["cost"]["cpu_seconds"])
        figures = (stage.methods, stage.points, len(stage.seeds), stage.steps, stage.runs)
        forecast = duration(plan.seconds(stage, tier, cost))
        rows.append([stage.name, stage.task, *map(str, figures), forecast, took])
    place = "GPU" if tier is EIGHT else "CPU thread"
    hours = plan.total(tier, cost) / 3600
    runs = sum(stage.runs for stage in plan.stages(tier))
    return [f"{tier.name}: {tier.says}. {runs} runs, about {hours:.1f} hours on one {place}.", *aligned(rows)]


def part_of(group: str, name: str) -> Part:
    of_claims = [part for claim in claims.CLAIMS for part in claims.parts(claim)]
    among = of_claims if group == claims.FOLDER else stages.parts(tier_of(group))
    return next(part for part in among if part.stage.name == name)


def run(parts: Sequence[Part], minutes: float | None) -> int:
    """Those that are not finished. minutes: stop after so many. Returns the exit code."""
    until = None if minutes is None else time.monotonic() + 60 * minutes
    for part in parts:
        if part.kept is not None:
            continue
        print(f"\n=== {part.group}, {part.stage.name}", flush=True)
        try:
            finished = running.run(part, until)
        except subprocess.CalledProcessError as error:
            print(f"{part.stage.name} failed; the same command tries again", file=sys.stderr)
            return error.returncode
        if not finished:
            print("Stopped; the same command goes on.")
            return running.STOPPED
        page.write()
    return 0


def stage(group: str, name: str) -> int:
    """One part in this process: what `run` starts."""
    try:
        running.train(part_of(group, name))
    except LrftError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return exit_code(error)
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/benchmark real", description="Methods on a real model.")
    parser.add_argument("action", nargs="?", choices=["measure", "peers", "stage"], help="nothing: the page, or a plan")
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, metavar="HOURS", help="CPU hours; the largest tier that fits is run")
    parser.add_argument("--tier", choices=[tier.name for tier in ALL], help="this tier, whatever it takes")
    parser.add_argument("--claim", choices=[claim.name for claim in claims.CLAIMS], help="this claim of a paper")
    parser.add_argument("--for", type=float, dest="minutes", metavar="MINUTES", help="stop after so many; go on later")
    parser.add_argument("--dry", action="store_true", help="print the plan and run nothing")
    return parser


def main() -> int:
    parser = arguments()
    asked = parser.parse_args()
    if asked.action == "stage":
        return stage(*asked.names)
    if asked.action == "measure":
        measuring.measure()
    if asked.action == "peers":
        return peers.compare()
    cost = plan.Cost(**design.cost())
    if asked.claim:
        made = claims.parts(claims.named_claim(asked.claim))
        seconds = sum(plan.seconds_of(part.stage, claims.factor_of(asked.claim), cost) for part in made)
        print(f"{asked.claim}: about {seconds / 3600:.1f} CPU hours on one thread.")
    elif asked.budget is None and asked.tier is None:
        page.write()
        return 0
    else:
        try:
            tier = tier_of(asked.tier) if asked.tier else plan.fitting(3600 * asked.budget, cost)
        except ValueError as error:
            parser.error(str(error))
        cost = plan.ON_GPU if tier is EIGHT else cost
        running.write_data()
        print("\n".join(told(tier, cost)))
        made = stages.parts(tier)
    return 0 if asked.dry else run(made, asked.minutes)


if __name__ == "__main__":
    sys.exit(main())
