"""The tests' own fork server: what begins there is a process like any other."""

from __future__ import annotations

import os
import signal

import forked
import pytest


def test_a_fork_has_its_own_arguments_environment_folder_output_and_exit_code(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['A']); print('no', file=sys.stderr); sys.exit(3)"
    )
    done = forked.run(code, "x", "y", environment={"A": "ä"})
    assert done.stdout == f"['x', 'y'] {os.path.realpath(tmp_path)} ä\n"
    assert (done.stderr, done.returncode) == ("no\n", 3)
    again = forked.run("import os, sys; print(os.environ.get('A'), 'torch' in sys.modules)")
    assert again.stdout == "None True\n"


def test_a_fork_has_one_thread() -> None:
    assert forked.run("import os; print(len(os.listdir('/proc/self/task')))").stdout == "1\n"


def test_an_exception_and_a_signal_show() -> None:
    broken = forked.run("1 / 0")
    assert broken.returncode == 1
    assert "ZeroDivisionError" in broken.stderr
    process = forked.Forked("import time; print('here', flush=True); time.sleep(600)")
    while not process.outputs[0].read_text():
        pass
    os.kill(process.pid, signal.SIGINT)
    done = process.wait(60)
    assert "KeyboardInterrupt" in done.stderr


def test_who_does_not_end_is_killed() -> None:
    with pytest.raises(TimeoutError, match="not ended"):
        forked.Forked("import time; time.sleep(600)").wait(0.1)


def test_the_command_line() -> None:
    done = forked.run(forked.LRFT, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lrft ")
