"""How threads wait: briefly, never against the user, and told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lrft.utils import threads


@pytest.mark.parametrize(("cores", "chosen"), [(1, False), (2, True), (64, True)])
def test_several_threads_wait_briefly(cores: int, chosen: bool) -> None:
    environment: dict[str, str] = {}
    threads.choose(environment, cores)
    assert ("GOMP_SPINCOUNT" in environment) == (threads.NOTE in environment) == chosen


@pytest.mark.parametrize("name", threads.CHOSEN)
def test_what_the_user_has_set_holds(name: str) -> None:
    environment = {name: "1"}
    threads.choose(environment, 2)
    assert environment == {name: "1"}


def test_it_is_settled_before_torch_is_loaded() -> None:
    program = (
        "import os, sys\nos.sched_getaffinity = lambda _: {0, 1}\nfrom lrft.model.load import importing\n"
        "with importing():\n    assert 'torch' not in sys.modules\n"
        "    from lrft.utils import threads; print(os.environ['GOMP_SPINCOUNT'], threads.note())"
    )
    environment = {k: v for k, v in os.environ.items() if k not in (*threads.CHOSEN, threads.NOTE)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "3000 threads spin briefly while they wait (GOMP_SPINCOUNT=3000)\n"
