"""Processes that begin as forks of a server, and cold where the server has more than one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lrft

PRELOADED = {
    "alone": "",
    "threaded": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
}
ASKED = """\
import os, sys
print(sys.argv[1:], os.environ["GIVEN"], "known" in sys.modules, sys.stdin is None or sys.stdin.read())
print("an error", file=sys.stderr)
sys.exit(3)
"""
PROGRAM = """\
import os, sys
from pathlib import Path
from lrft.compare import warm
warm.PRELOADED = "known"
process = warm.WarmProcess(
    "asked", ["x", "y"], out=Path("out"), log=Path("log"), environment={**os.environ, "GIVEN": "this"}
)
print(process.wait())
"""


@pytest.mark.parametrize(("kind", "forked"), [("alone", True), ("threaded", False)])
def test_a_server_with_a_second_thread_is_not_forked_into_the_process(kind: str, forked: bool, tmp_path: Path) -> None:
    (tmp_path / "known.py").write_text(PRELOADED[kind])
    (tmp_path / "asked.py").write_text(ASKED)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(lrft.__file__).parents[1]}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.stdout, done.stderr) == ("3\n", "")
    assert (tmp_path / "out").read_text() == f"['x', 'y'] this {forked} \n"
    assert (tmp_path / "log").read_text() == "an error\n"
