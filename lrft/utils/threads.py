"""How torch's threads wait for each other, chosen before torch is loaded.

The threads of OpenMP spin while they wait. On an idle machine that is fastest; beside other busy processes a spinning
thread takes the core that the thread it waits for would need, and a run is several times slower. A short spin and then
sleep is nearly as fast as either in its own case (docs/performance.md), whatever the machine does later in the run.
libgomp reads the environment when it is loaded, so the choice is made once, before.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# A user who has set one of these has chosen.
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
# Rounds of a waiting loop; libgomp's own number is 300,000 (scripts/performance/threads.py measures).
SPINS = "3000"
NOTE = "LRFT_THREADS"


def choose(environment: MutableMapping[str, str], cores: int) -> None:
    """Set GOMP_SPINCOUNT in `environment` where several threads may run and the user has chosen nothing."""
    if cores < 2 or any(name in environment for name in CHOSEN):
        return
    environment["GOMP_SPINCOUNT"] = SPINS
    environment[NOTE] = f"threads spin briefly while they wait (GOMP_SPINCOUNT={SPINS})"


def settle() -> None:
    """Choose for this process and those that it starts. Has an effect before torch is loaded only."""
    choose(os.environ, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def note() -> str:
    """What was chosen, for the start summary; "" where nothing was."""
    return os.environ.get(NOTE, "")
