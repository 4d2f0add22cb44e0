"""Every method on a GPU that is pretended: the machine's own memory under the name cuda:0, with the CPU's arithmetic.

The device refuses what CUDA refuses, and what the machine waits for is counted. See `pretended.py`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import pretended
import pytest
from gpu_budget import AT_EACH_CHANGE, LOGGED_READS, OPERATIONS, OVERFLOWS, READS, READS_OF, SENDS_OF, SLACK

HERE = Path(__file__).parent
Ask = Callable[[str], Any]
NAMES = [
    pytest.param(case, marks=() if case in AT_EACH_CHANGE else pytest.mark.all) for case in cases.first_of_each_method()
]
EACH = pytest.mark.parametrize("case", NAMES)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks a process with the pretended GPU, which answers each question once."""
    if pretended.compiler() is None:
        pytest.skip("no C++ compiler: with c++, g++ or clang++ the rules of CUDA are tested without a GPU")
    pretended.libraries()
    folder, known = tmp_path_factory.mktemp("fakecuda"), {}
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "pretended.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    to, back = process.stdin, process.stdout

    def ask(question: str) -> Any:
        if question not in known:
            print(question, file=to, flush=True)
            line = back.readline()
            assert line, (folder / "said.txt").read_text()[-3000:]
            known[question] = json.loads(line)
        return known[question]

    yield ask
    to.close()
    process.wait(60)
    back.close()


def test_the_pretended_gpu_refuses_what_cuda_refuses(worker: Ask) -> None:
    said = worker("=refusals")
    assert "same device" in said["two devices"]
    assert "generator" in said["a generator of the CPU"]
    assert said["reads"] == {"elsewhere": 4}, "of item, tolist, a choice by a mask and a copy"
    assert said["sends"] == {"elsewhere": 2}, "not from pinned memory"


def test_a_search_for_what_fits_leaves_a_reserve_and_no_peak(worker: Ask) -> None:
    said = worker("=auto")
    assert said["shares"][-2:] == [pytest.approx(0.95), 1.0]
    assert said["forgotten"] == 1


def test_a_base_in_fp8_trains_where_a_gpu_lacks_the_kernel(worker: Ask) -> None:
    said = worker("=fp8")
    assert said["losses"] == pytest.approx(said["cpu"], rel=2e-3)


def test_a_recipe_that_says_nothing_of_passes_fills_them_on_a_gpu(worker: Ask) -> None:
    said = worker("=default")
    assert said["here"] > 0
    assert (said["there"], said["rows"]) == (None, 4)


@EACH
def test_a_run_trains_evaluates_answers_and_resumes(worker: Ask, case: str) -> None:
    """In bf16 over packed rows, to the bit; in fp16 with a loss scale, and checkpointed and offloaded, to rounding."""
    said = worker(case)
    ways = [way for way in ("whole", "light", "full", "cpu") if way != "light" or case not in OVERFLOWS]
    assert [(way, said[way]) for way in ways if "error" in said[way]] == []
    assert said["whole"]["resumed"] == [], "tensors that differ after resuming"
    assert said["full"]["losses"] == pytest.approx(said["cpu"]["losses"], rel=1e-5)
    assert said["full"]["moved"] > 0, "nothing was offloaded"
    if case not in OVERFLOWS:
        first, second = said["light"]["losses"]
        assert first == pytest.approx(said["cpu"]["losses"][0], rel=1e-3)
        assert math.isfinite(second)


@EACH
def test_a_step_waits_for_the_gpu_only_where_it_must(worker: Ask, case: str) -> None:
    """A read costs every step the time in which the GPU has nothing to do. Those that are needed have their line."""
    plain, logged = (worker(case)["whole"][step] for step in ("plain", "logged"))
    assert over(plain["reads"], READS | READS_OF.get(case, {})) == {}
    assert over(logged["reads"], READS | LOGGED_READS | READS_OF.get(case, {})) == {}
    assert over(plain["sends"] | logged["sends"], SENDS_OF.get(case, {})) == {}, "not from pinned memory"


def over(counts: dict[str, int], allowed: dict[str, int]) -> dict[str, int]:
    return {place: n for place, n in counts.items() if n > allowed.get(place, 0)}


@EACH
def test_a_step_starts_no_more_operations_than_its_budget(worker: Ask, case: str) -> None:
    """Each is a kernel to start: what makes small passes slow on a GPU. A step has two passes of two blocks."""
    found = sum(worker(case)["whole"]["plain"]["operations"].values())
    assert found <= SLACK * OPERATIONS[case]
