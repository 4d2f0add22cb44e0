"""How threads wait: chosen from the load, never against the user, and told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lrft.utils import threads


@pytest.mark.parametrize(
    ("load", "cores", "passive"), [(0.0, 2, False), (0.9, 2, False), (1.0, 2, True), (9.0, 1, False)]
)
def test_threads_wait_passively_on_a_busy_machine(load: float, cores: int, passive: bool) -> None:
    environment: dict[str, str] = {}
    threads.choose(environment, load, cores)
    assert environment.get("OMP_WAIT_POLICY") == ("passive" if passive else None)
    assert (threads.NOTE in environment) == passive


@pytest.mark.parametrize("name", threads.CHOSEN)
def test_what_the_user_has_set_holds(name: str) -> None:
    environment = {name: "1"}
    threads.choose(environment, 99.0, 2)
    assert environment == {name: "1"}


def test_it_is_settled_before_torch_is_loaded() -> None:
    program = (
        "import os, sys\nfrom lrft.utils import threads\nos.getloadavg = lambda: (99.0, 0, 0)\n"
        "os.sched_getaffinity = lambda _: {0, 1}\nfrom lrft.model.load import importing\n"
        "with importing():\n    assert 'torch' not in sys.modules\n"
        "    print(os.environ['OMP_WAIT_POLICY'], threads.note())"
    )
    environment = {k: v for k, v in os.environ.items() if k not in threads.CHOSEN}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "passive threads wait passively: the load was 99.0 on 2 cores at the start\n"
