"""How torch's threads wait for each other, chosen before torch is loaded.

The threads of OpenMP spin while they wait. On an idle machine that is fastest; beside other busy processes a spinning
thread takes the core that the thread it waits for would need, and a run is several times slower. libgomp reads the
environment when it is loaded, so the choice is made once, from the load of the machine at start.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# A user who has set one of these has chosen.
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
# Share of the cores that other processes keep busy from which threads no longer spin. `scripts/threads` measures it.
BUSY = 0.5
NOTE = "LRFT_THREADS"


def choose(environment: MutableMapping[str, str], load: float, cores: int) -> None:
    """Set OMP_WAIT_POLICY=passive in `environment` when the machine is busy and the user has chosen nothing.

    load: processes that ran or waited for a core in the last minute
    """
    if cores < 2 or any(name in environment for name in CHOSEN) or load < BUSY * cores:
        return
    environment["OMP_WAIT_POLICY"] = "passive"
    environment[NOTE] = f"threads wait passively: the load was {load:.1f} on {cores} cores at the start"


def settle() -> None:
    """Choose for this process and those that it starts. Has an effect before torch is loaded only."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    choose(os.environ, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, cores)


def note() -> str:
    """What was chosen, for the start summary; "" where nothing was."""
    return os.environ.get(NOTE, "")
