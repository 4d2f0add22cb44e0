"""The console, metrics.jsonl, log.txt, the picture and report.md of a run."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import resource
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from recorded import ODD, STEP, evaluation, make_run
from rich.cells import cell_len

from lrft.errors import CheckFailed, LrftError
from lrft.report import markdown
from lrft.report.loss_plot import ceiling, loss_picture, smooth
from lrft.runs import metrics
from lrft.runs.environment import environment
from lrft.tracking.console import Progress, Reporter
from lrft.tracking.fan_out import Trackers
from lrft.tracking.metrics_file import MetricsFile
from lrft.utils import text

pytestmark = pytest.mark.draws
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def plain() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(stream.encoding)


def records(folder: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    lines = (folder / "metrics.jsonl").read_text().split("\n")
    assert lines.pop() == ""
    return [json.loads(line, parse_constant=refuse) for line in lines]


# Text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.88123, "1.8812"),
        (3.2e-7, "3.2e-07"),
        (0.0, "0.0000"),
        (2e9, "2.0e+09"),
        (math.nan, "nan"),
        (-1.5, "-1.5000"),
    ],
)
def test_decimals(value: float, words: str) -> None:
    assert text.decimals(value, 4) == words


def test_lines_break_between_facts_before_within_one() -> None:
    assert text.flow("rank 16  alpha 32   factor 2.0", 20) == ["rank 16  alpha 32", "factor 2.0"]
    assert text.flow("one two three   four", 9) == ["one two", "three", "four"]


@pytest.mark.parametrize("words", ["a" * 50, "漢字" * 20, "short   " + "b" * 30 + " c", "", "é" * 30, "\x1b[2J" * 9])
@pytest.mark.parametrize("width", [2, 7, 20])
def test_no_line_is_wider_than_asked_and_nothing_is_lost(words: str, width: int) -> None:
    lines = text.flow(words, width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.visible(words).replace(" ", "")


def test_a_table_is_aligned_and_a_narrow_one_stacked() -> None:
    rows: list[text.Row] = [("model", "tiny   frozen"), ("data", ["a.jsonl", "10 rows"])]
    assert text.layout(rows, 100) == [
        ("model      ", "tiny   frozen"),
        ("data       ", "a.jsonl"),
        ("           ", "10 rows"),
    ]
    assert text.layout(rows, 12)[:3] == [("model", ""), ("  ", "tiny"), ("  ", "frozen")]


def test_control_characters_become_visible() -> None:
    assert text.visible("a\x1b[31m\u202eb\udc80\n") == "a\\x1b[31m\\u202eb\\udc80\\n"


# Console


def telling(folder: Path, stream: TextIO, quiet: bool = False) -> Trackers:
    return Trackers(Reporter(folder, stream=stream, quiet=quiet), MetricsFile(folder))


def test_the_plain_output_of_a_run(tmp_path: Path) -> None:
    stream = plain()
    with telling(tmp_path, stream) as trackers:
        reporter = trackers.console
        reporter.table([("model", "tiny   frozen in bf16")])
        reporter.begin(1642)
        trackers.log("eval", evaluation(0, 1.611, True))
        trackers.log("step", {"step": 20, "loss": 1.9, **STEP}, shown=False)
        trackers.log("step", {"step": 40, "loss": 1.8812, **STEP})
        reporter.doing("evaluating")
        trackers.log("eval", evaluation(164, 1.5021, True))
        trackers.log("eval", evaluation(328, 1.6, False))
        reporter.warn("rows were dropped")
        reporter.warn("rows were dropped")
        reporter.line("saved step 328")
        reporter.end([("done", "328 steps"), ("next", "lrft chat here")])
    assert written(stream).split("\n") == [
        "model      tiny   frozen in bf16",
        "eval at step 0  loss 1.6110 (before training)  perplexity 5.01",
        "step 40/1642  2.4 %  loss 1.8812  lr 1.6e-04  grad 0.82  412 tokens/s  3.1 GB  left 21 min",
        "eval at step 164  loss 1.5021 (best so far, was 1.6110)  perplexity 4.49",
        "eval at step 328  loss 1.6000 (best 1.5021 at step 164)  perplexity 4.95",
        "warning    rows were dropped",
        "saved step 328",
        "done       328 steps",
        "warnings   rows were dropped",
        "next       lrft chat here",
        "",
    ]
    assert (tmp_path / "log.txt").read_text() == written(stream)
    assert [(record["kind"], record["step"]) for record in records(tmp_path)] == [
        *[("eval", 0), ("step", 20), ("step", 40)],
        *[("eval", 164), ("eval", 328)],
    ]


def test_quiet_prints_warnings_only_and_keeps_the_files(tmp_path: Path) -> None:
    stream = plain()
    with telling(tmp_path, stream, quiet=True) as trackers:
        reporter = trackers.console
        reporter.begin(2)
        trackers.log("step", {"step": 1, "loss": 2.0})
        reporter.warn("odd")
        reporter.end([("done", "all")])
    assert written(stream) == "warning    odd\n"
    assert (tmp_path / "log.txt").read_text().startswith("step 1/2  50.0 %  loss 2.0000\n")
    assert len(records(tmp_path)) == 1


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    stream = plain()
    with Reporter(tmp_path, stream=stream, main=False) as reporter:
        reporter.begin(2)
        reporter.doing("saving")
        reporter.log("step", {"step": 1, "loss": 2.0})
        reporter.log("eval", evaluation(1, 2.0, True))
        reporter.warn("odd")
        reporter.end([("done", "all")])
    assert written(stream) == ""
    assert list(tmp_path.iterdir()) == []


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    with telling(tmp_path, plain()) as trackers:
        trackers.log("step", {"step": 1, "loss": 2.0})
        assert len(records(tmp_path)) == 1
        assert (tmp_path / "log.txt").read_text().endswith("loss 2.0000\n")


def test_what_the_encoding_lacks_is_replaced() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Reporter(None, stream=stream) as reporter:
        reporter.line("α × 漢 \udc80")
    assert written(stream) == "? ? ? \\udc80\n"


def test_no_stream_and_a_closed_stream_are_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = plain()
    closed.close()
    with Reporter(tmp_path, stream=closed) as reporter:
        reporter.line("one")
    monkeypatch.setattr(sys, "stdout", None)
    with Reporter(tmp_path) as reporter:
        reporter.line("two")
    log = (tmp_path / "log.txt").read_text()
    assert "one\nconsole output stopped (I/O operation on closed file" in log
    assert log.endswith("two\n")


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from lrft.tracking.console import Reporter
        with Reporter(Path(sys.argv[1])) as reporter:
            reporter.begin(3000)
            sys.stdin.read()  # until the reader of our output is gone
            for step in range(1, 3001):
                reporter.log("step", {"step": step, "loss": 1.0})
    """
    read, write = os.pipe()
    run = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    os.close(read)
    _, errors = run.communicate(b"")
    assert (run.returncode, errors) == (0, b"")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("Broken pipe); the run continues") == 1
    assert "step 3000/3000" in log


# The live block


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[io.TextIOWrapper, Callable[[], str]]]:
    """A real terminal of 80 columns: the stream to write to, and a function that returns what arrived."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")

    def arrived() -> str:
        stream.flush()
        found = b""
        while select.select([master], [], [], 0.2)[0]:  # the kernel passes it on at its own pace
            found += os.read(master, 1 << 20)
        return found.decode()

    yield stream, arrived
    stream.close()
    os.close(master)


Terminal = tuple[io.TextIOWrapper, Callable[[], str]]


def test_a_terminal_gets_one_block_and_the_log_gets_the_lines(terminal: Terminal, tmp_path: Path) -> None:
    stream, arrived = terminal
    with Reporter(tmp_path, stream=stream) as reporter:
        reporter.begin(100)
        for step in range(1, 5):
            reporter.log("step", {"step": step, "loss": 2.0, **STEP}, shown=step == 4)
        reporter.line("a line above")
    output = arrived()
    assert output.index(HIDE) < output.index("━") < output.index("a line above") < output.index(SHOW)
    assert "step 4 of 100   4.0 %   1 min left" in output
    assert "step 4/100" not in output
    assert "\x1b[36m" in output
    assert (tmp_path / "log.txt").read_text().startswith("step 4/100  4.0 %")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_cursor_returns_whatever_happens(terminal: Terminal, error: type[BaseException]) -> None:
    stream, arrived = terminal
    before = sys.stdout, sys.stderr

    def run() -> None:
        with Reporter(None, stream=stream) as reporter:
            reporter.begin(10)
            assert HIDE in arrived()
            raise error

    with pytest.raises(error):
        run()
    assert arrived().rstrip().endswith(SHOW)
    assert (sys.stdout, sys.stderr) == before


def test_no_color_has_no_colours(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream, arrived = terminal
    with Reporter(None, stream=stream) as reporter:
        reporter.table([("model", "tiny")])
        reporter.begin(10)
        reporter.log("step", {"step": 1, "loss": 2.0})
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", arrived()) is None


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_without_movement_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TERM", name)
    stream, arrived = terminal
    with Reporter(None, stream=stream) as reporter:
        reporter.begin(10)
        reporter.log("step", {"step": 1, "loss": 2.0})
    assert arrived() == "step 1/10  10.0 %  loss 2.0000\r\n"


@pytest.mark.parametrize("width", [12, 20, 39, 40, 100])
def test_the_block_fits_any_width(width: int) -> None:
    progress = Progress(total=100_000)
    progress.update({"step": 12_345, "loss": 1.2345, **STEP})
    lines = progress.block(width, ascii_only=True).plain.split("\n")
    assert all(len(line) <= width for line in lines)
    words = " ".join(" ".join(lines).split())
    for fact in (
        "step 12,345 of 100,000",
        "12.3 %",
        "19 h 29 min left",
        "grad 0.82",
        "412 tokens/s",
        "3.1 GB",
    ):
        assert fact in words
    assert words.isascii()


def test_the_time_left_ignores_one_slow_step() -> None:
    progress = Progress(total=1000)
    for step in range(1, 101):
        progress.update({"step": step, "seconds": 900.0 if step == 90 else 0.125})
    assert progress.plain() == "step 100/1000  10.0 %  left 2 min"


def test_the_smoothed_loss_starts_at_the_first_and_survives_nan() -> None:
    progress = Progress(total=10)
    progress.update({"step": 1, "loss": 4.0})
    assert "loss 4.0000 (last 4.0000)" in progress.block(100, False).plain
    progress.update({"step": 2, "loss": math.nan})
    assert "loss 4.0000 (last nan)" in progress.block(100, False).plain


# metrics.jsonl


def test_values_that_are_not_finite_are_null_and_named(tmp_path: Path) -> None:
    with telling(tmp_path, plain()) as trackers:
        trackers.log("step", {"step": 1, "loss": math.nan, "lr": 1e-4, "groups": {"q": {"share": -math.inf}}})
    assert records(tmp_path) == [
        {
            **{"kind": "step", "step": 1, "loss": None, "lr": 1e-4},
            **{"groups": {"q": {"share": None}}, "non_finite": ["loss", "groups.q.share"]},
        }
    ]


def test_rewind_cuts_later_records_and_remembers_the_best(tmp_path: Path) -> None:
    with telling(tmp_path, plain()) as trackers:
        for step in range(1, 6):
            trackers.log("step", {"step": step, "loss": 0.1 + 0.2, "text": "漢\udc80"})
            trackers.log("eval", evaluation(step, 3.0 - step / 4, True))
    before = records(tmp_path)
    stream = plain()
    with telling(tmp_path, stream) as trackers:
        trackers.rewind(3)
        assert records(tmp_path) == before[:6]
        trackers.log("eval", evaluation(4, 2.0, True))
    assert written(stream) == "eval at step 4  loss 2.0000 (best so far, was 2.2500)  perplexity 7.39\n"
    assert [record["step"] for record in records(tmp_path)] == [1, 1, 2, 2, 3, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "metrics.jsonl"]


def test_what_decides_on_the_best_is_named_and_a_state_that_cannot_be_it_says_so(tmp_path: Path) -> None:
    stream = plain()
    with telling(tmp_path, stream) as trackers:
        trackers.log("eval", evaluation(0, 2.0, True) | {"by": "f1"})
        trackers.log("eval", evaluation(1, 1.0, False) | {"by": "f1"})
        trackers.log("eval", evaluation(2, 3.0, True) | {"by": "f1"})
        trackers.log("eval", evaluation(3, 1.0, False) | {"unfinished": True})
    assert [line.split("  ")[1] for line in written(stream).splitlines()] == [
        "loss 2.0000 (before training)",
        "loss 1.0000 (best by f1 before training)",
        "loss 3.0000 (best so far by f1)",
        "loss 1.0000 (not yet a result: the method has more to do)",
    ]


def test_rewind_says_that_a_torn_line_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n{"kind": "step", "ste\xff')
    stream = plain()
    with telling(tmp_path, stream) as trackers:
        trackers.rewind(9)
    assert path.read_bytes() == b'{"kind": "step", "step": 1}\n'
    assert written(stream).startswith("warning    1 unreadable line was removed from metrics.jsonl")


def test_a_line_after_a_torn_one_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "st')
    with telling(tmp_path, plain()) as trackers:
        trackers.log("step", {"step": 2})
    assert metrics.read_metrics(path) == ([{"kind": "step", "step": 2}], 1)


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with telling(tmp_path, plain()) as trackers, pytest.raises(LrftError) as caught:
        trackers.log("step", {"step": 1, "loss": 1.0})
    assert str(tmp_path / name) in caught.value.message
    assert re.search(r"needs 1\.0 MB, [\d,.]+ [MG]B are free", caught.value.message)
    assert caught.value.hint
    assert "--resume" in caught.value.hint


def test_a_line_that_did_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    file = metrics.LineFile(tmp_path / "log.txt")
    file.add("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.add("a longer line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.add("last")
    file.close()
    assert (tmp_path / "log.txt").read_text() == "first\nlast\n"


# The picture and report.md


@pytest.mark.parametrize("run", ODD.values(), ids=ODD)
def test_any_run_has_a_picture(run: list[dict[str, Any]]) -> None:
    picture = loss_picture(run)
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (1000, 600)


def test_smoothing_keeps_the_level_up_to_both_ends() -> None:
    noisy = [1.0 + 0.1 * (-1) ** i for i in range(200)]
    assert all(abs(value - 1.0) < 0.02 for value in smooth(noisy))
    assert smooth([3.0, 3.0]) == [3.0, 3.0]


def test_a_spike_does_not_decide_the_height_but_a_steep_start_does() -> None:
    level = [2.0 + i / 100 for i in range(50)]
    assert ceiling([*level, 1e4, 1e25]) == max(level)
    assert ceiling([3.0, *level]) == 3.0
    assert ceiling([5.0]) == 5.0


def test_the_report_of_a_run(tmp_path: Path) -> None:
    make_run(tmp_path)
    path = markdown.write_report(tmp_path)
    report = path.read_text()
    assert path == tmp_path / "report.md"
    assert report.startswith("# a \\| b\n\n")
    assert "\n\n![Losses and learning rate](loss.png)\n\n## Result\n" in report
    for line in (
        *("| best loss | 1.25 |", "| merged | yes |", "| speed | – |", "| dtypes: weights | bf16 |"),
        *("| rows | 12,345 |", "| path | records used | dropped |", "| a.jsonl | 3 |  |", "| b |  | x: 1 |"),
        *("| 2 | 1.2500 | 3.49 | best |", "| 1 | 2.0000 | 7.39 |  |"),
        *("| Steps with values that are not finite | 1 |", "| Tokens | 1,000 |"),
    ):
        assert line in report.split("\n")
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run.json", "metrics.jsonl", "log.txt", "report.md", "loss.png")
    }


def test_the_report_shows_samples_of_the_first_and_the_best_evaluation(tmp_path: Path) -> None:
    make_run(tmp_path)
    report = markdown.write_report(tmp_path).read_text()
    samples = report[report.index("## Samples") :]
    assert re.findall(r"^At step .*:$", samples, re.M) == [
        "At step 0, loss 3.0000:",
        "At step 2, loss 1.2500 (best):",
    ]
    assert re.findall(r"answer \d", samples) == ["answer 0", "answer 2"]
    assert "… *(709 characters)*" in samples
    assert "| *(empty)* |" in samples


def test_text_from_outside_cannot_break_the_report(tmp_path: Path) -> None:
    make_run(tmp_path)
    report = markdown.write_report(tmp_path).read_text()
    assert "- \\`41\\` rows \\| &lt;b&gt;dropped&lt;/b&gt;\\\\x1b\\[31m<br>\\# no heading\n- \\- no list\n" in report
    assert "| a\\|b<br>\\`c\\` \\*d\\*\\\\x00 |" in report
    assert not re.search("[\x00-\x09\x0b-\x1f]", report)
    for table in re.findall(r"(?:^\|.*\n)+", report, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_report_of_a_run_that_was_killed_at_once(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"title": "x"}')
    (tmp_path / "metrics.jsonl").write_text('{"kind": "st')
    report = markdown.write_report(tmp_path).read_text()
    assert "| Recorded steps | 0 |\n| Unreadable lines in metrics.jsonl | 1 |" in report


@pytest.mark.parametrize("content", [None, "", "[1]", "{"])
def test_a_broken_run_record_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckFailed, match=r"run\.json"):
        markdown.write_report(tmp_path)
    assert not (tmp_path / "report.md").exists()


# The environment


def test_the_environment_names_versions_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CANARY", "canary-7f3a")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    found = environment()
    text = json.dumps(found)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.match(r"\d+\.\d+", found["packages"]["torch"])
    assert found["cores"] >= found["cores_usable"] >= 1
    assert found["memory_gb"] > 0.1
    for secret in ("canary", str(Path.home()), socket.gethostname()):
        assert secret not in text


def test_nothing_heavy_is_imported() -> None:
    program = """if True:
        import sys
        import lrft.report.markdown, lrft.runs.environment
        found = lrft.runs.environment.environment()
        heavy = {"torch", "transformers", "datasets", "matplotlib", "numpy"} & set(sys.modules)
        print(sorted(heavy), "torch" in found)
        import torch
        torch.set_num_threads(1)
        print(lrft.runs.environment.environment()["torch"]["threads"])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n1\n"
