"""Every method, two steps in float32 and two in bfloat16 on the GPU, beside the losses of the same on the CPU.

    python -m gpu_day.methods FOLDER NUMBER OF PRECISION END CASE...    # every OFth case, a line of JSON each

Several processes share the GPU, and one more has none: what a run of a tiny model costs is set-up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from gpu_day.day import Day

TOGETHER = 4
LIMIT = 130.0
# Relative difference of the losses. In bfloat16 two devices round each product in another order.
SAME = {"fp32": 1e-3, "bf16": 3e-2}
FEW = ("lora", "dora")


def run(day: Day) -> None:
    from cases import first_of_each_method

    chosen = list(FEW) if day.dry else first_of_each_method()
    day.part("methods", LIMIT, lambda end: compared(day, chosen, end))


def compared(day: Day, chosen: list[str], end: float) -> dict[str, Any]:
    """What differs, what failed and what was not reached."""
    together = 1 if day.dry else TOGETHER
    with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
        here = [started(folder, n, together, "fp32", end, chosen, gpu=True) for n in range(together)]
        there = [started(folder, n, together, "fp32", end, chosen, gpu=False) for n in range(together)]
        rounded = [started(folder, n, together, "bf16", end, chosen, gpu=True) for n in range(together)]
        found = {"fp32": lines(here), "bf16": lines(rounded)}
        cpu = lines(there)
    said: dict[str, Any] = {"compared": 0, "differs": {}, "failed": {}}
    for precision, losses in found.items():
        for case, mine in losses.items():
            theirs = cpu.get(case)
            if isinstance(mine, str) or isinstance(theirs, str):
                said["failed"][f"{case} {precision}"] = mine if isinstance(mine, str) else f"on the CPU: {theirs}"
            elif theirs is not None:
                said["compared"] += 1
                apart = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(mine, theirs, strict=True))
                if not apart <= SAME[precision]:
                    said["differs"][f"{case} {precision}"] = apart
        said[f"not reached in {precision}"] = [case for case in chosen if case not in losses or case not in cpu]
    return said


def started(folder: str, number: int, of: int, precision: str, end: float, chosen: list[str], *, gpu: bool) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    words = [folder, str(number), str(of), precision, str(end), *chosen]
    command = [sys.executable, "-m", "gpu_day.methods", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def lines(processes: list[Any]) -> dict[str, Any]:
    """{case: its losses, or what went wrong}"""
    said = [line for process in processes for line in process.communicate()[0].splitlines() if line.startswith("{")]
    return {case: value for line in said for case, value in json.loads(line).items()}


def main() -> None:
    import runs
    from accelerate.state import AcceleratorState, PartialState
    from cases import CASES

    folder, number, of, precision, end = (
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
        float(sys.argv[5]),
    )
    warnings.simplefilter("ignore")
    own = Path(tempfile.mkdtemp(dir=folder))
    os.environ["LRFT_CACHE"] = str(own / "cache")
    place = runs.Place.make(own)
    for case in sys.argv[6:][number::of]:
        if time.monotonic() > end:
            break
        AcceleratorState._reset_state()
        PartialState._reset_state()
        words = (f"training.precision={precision}", "training.max_steps=2", "logging.every=1")
        try:
            made = place.train(f"adapter.method={json.dumps(CASES[case][0])}", *words, out=f"{number}-{case}")
            value: Any = [record["loss"] for record in runs.records(made)]
        except Exception as error:
            value = f"{type(error).__name__}: {str(error)[:300]}"
        print(json.dumps({case: value}), flush=True)


if __name__ == "__main__":
    main()
