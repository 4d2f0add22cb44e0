"""The console of a command or a run, and log.txt, which holds every line of it.

No threads: the live block on a terminal is drawn when a step is reported, never in between.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, ClassVar, Self, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lrft.runs.metrics import LineFile
from lrft.tracking.base import Tracker
from lrft.utils.slow import LOG
from lrft.utils.text import Outlet, Row, decimals, duration, layout, visible

PLAIN_WIDTH = 100  # columns of a table that does not go to a terminal
BAR_WIDTH = 60
SMOOTHING = 0.9  # weight of the past in the smoothed loss of the live block
RECENT = 51  # steps in the moving median that predicts the time left
REDRAW_SECONDS = 0.1
FIGURES = 2  # of the objective, in the line of a step
PROGRESS_SECONDS = 5.0  # between two plain lines about other work than steps


def figures_in_words(record: Mapping[str, Any], most: int | None = None) -> list[str]:
    """The figures of the objective that a record has, each with its name; the first `most` of them."""
    return [f"{name} {decimals(value, 4)}" for name, value in list(record.get("figures", {}).items())[:most]]


class Progress:
    """Where the run stands, from the records of its steps; drawn as one plain line or as the live block."""

    def __init__(self, total: int = 0, step: int = 0) -> None:
        self.total = total
        self.step = step
        self.doing = ""
        self._record: Mapping[str, Any] = {}
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._sum = self._weight = 0.0  # of the losses; their quotient has no bias at the start

    def update(self, record: Mapping[str, Any]) -> None:
        self.step, self.doing, self._record = record["step"], "", record
        loss, seconds = record.get("loss"), record.get("seconds")
        if seconds is not None:
            self._seconds.append(seconds)
        if loss is not None and math.isfinite(loss):
            self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    def _left(self) -> str | None:
        remaining = self.total - self.step
        if remaining <= 0 or not self._seconds:
            return None
        return duration(remaining * statistics.median(self._seconds))

    def _share(self) -> float:
        return min(self.step / self.total, 1.0) if self.total else 0.0

    def _facts(self) -> list[str]:
        """The first figures, learning rate, gradient norm, speed and memory, as far as the last record has them."""
        shown = {
            "lr": lambda value: f"lr {value:.1e}",
            "grad_norm": lambda value: f"grad {decimals(value, 2)}",
            "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
            "memory_gb": lambda value: f"{value:.1f} GB",
        }
        facts = [form(self._record[key]) for key, form in shown.items() if self._record.get(key) is not None]
        return [*figures_in_words(self._record, FIGURES), *facts]

    def plain(self) -> str:
        """One line about the last record, for a pipe or a log."""
        loss, left = self._record.get("loss"), self._left()
        start = [f"step {self.step}/{self.total}", f"{100 * self._share():.1f} %"]
        losses = [] if loss is None else [f"loss {decimals(loss, 4)}"]
        return "  ".join([*start, *losses, *self._facts(), *([f"left {left}"] if left else [])])

    def block(self, width: int, ascii_only: bool) -> Text:
        """The live block: a bar, then the facts, at most `width` columns wide."""
        loss, left = self._record.get("loss"), self._left()
        where = [f"step {self.step:,} of {self.total:,}", f"{100 * self._share():.1f} %"]
        smoothed = self._sum / self._weight if self._weight else math.nan
        losses = [] if loss is None else [f"loss {decimals(smoothed, 4)} (last {decimals(loss, 4)})"]
        lines = [[*where, *([f"{left} left"] if left else [])], [*losses, *self._facts()]]
        texts = ["BAR", *("   ".join(line) for line in lines if line)]
        block = Text(no_wrap=True, overflow="crop")
        for label, text in layout([(self.doing or "training", texts)], width):
            block.append("\n" if block else "").append(label, "cyan")
            block.append_text(self._bar(width - len(label), ascii_only) if text == "BAR" else Text(text))
        return block

    def _bar(self, width: int, ascii_only: bool) -> Text:
        done, rest = ("=", "-") if ascii_only else ("\u2501", "\u2500")
        width = max(min(width, BAR_WIDTH), 0)
        filled = round(width * self._share())
        return Text.assemble((done * filled, "cyan"), (rest * (width - filled), "dim"))


class Reporter(Tracker):
    """Lines, tables and warnings of a command, and the progress of a run. As a context manager it ends the live block,
    and the cursor returns, in any case.

    `run_dir` None: no log.txt. `quiet`: only warnings on the console; the log is complete. `main` False (every rank but
    0): all methods do nothing. `stream`: standard output when not given.
    Every method raises LrftError when the disk of the run folder is full.
    """

    name: ClassVar[str] = "console"
    always: ClassVar[bool] = True

    def __init__(
        self, run_dir: Path | None, *, quiet: bool = False, main: bool = True, stream: TextIO | None = None
    ) -> None:
        self._log = LineFile(run_dir / "log.txt") if run_dir and main else None
        self._out = Outlet(stream or sys.stdout if main else None)
        self._quiet = quiet
        self._terminal = self._out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._console = Console(
            file=cast(TextIO, self._out),  # rich writes, flushes, and asks for the encoding: no more
            force_terminal=self._terminal,
            force_jupyter=False,
            width=None if self._terminal else PLAIN_WIDTH,
        )
        self._live: Live | None = None
        self._drawn = 0.0
        self._lost = False
        self._warnings: list[str] = []
        self._best: tuple[int, float] | None = None  # step and loss of the best evaluation so far
        self._progress = Progress()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the live block, and the log."""
        try:
            self._stop()
        finally:
            if self._log:
                self._log.close()

    def begin(self, total_steps: int, step: int = 0) -> None:
        """Starts the live block on a terminal. `step`: how many steps are done already (a resumed run)."""
        self._progress = Progress(total=total_steps, step=step)
        if self._terminal and not self._quiet:
            self._live = Live(get_renderable=self._block, console=self._console, auto_refresh=False)
            self._live.start(refresh=True)

    def line(self, text: str) -> None:
        """One line of text."""
        self._say(visible(text))

    def note(self, text: str) -> None:
        """Into the log only: what somebody else prints."""
        if self._log:
            for line in text.splitlines():
                self._log.add(visible(line))

    def table(self, rows: Iterable[Row]) -> None:
        """The summary at the start: `rows` of a label and its text or texts, facts three spaces apart."""
        self._table(list(rows))

    def warn(self, text: str) -> None:
        """Printed at its first time only, and again at the end."""
        if text not in self._warnings:
            self._warnings.append(text)
            self._table([("warning", text)], always=True)

    @property
    def warnings(self) -> list[str]:
        """Every warning so far."""
        return list(self._warnings)

    def doing(self, word: str) -> None:
        """Shows in the live block what happens between steps ("evaluating", "saving"): up to 10 letters."""
        LOG.info("%s, at step %d", word, self._progress.step)
        self._progress.doing = word
        self._draw()

    def log(self, kind: str, record: Mapping[str, Any], *, shown: bool = True) -> None:
        """A step: step (from 1), loss, lr, grad_norm, seconds (one step's: the time left comes from them),
        tokens_per_second and memory_gb are shown, all but `step` optional. An evaluation: step, loss, perplexity,
        best (bool), by (the metric that decides it, when that is not the loss), unfinished (true: no result yet, so it
        cannot be the best). Either may have figures {name: value}."""
        if kind == "eval":
            by_source = "".join(f"  {name} {decimals(loss, 4)}" for name, loss in record.get("sources", {}).items())
            self._say(f"eval at step {record['step']}  {self._verdict(record)}{visible(by_source)}")
            return
        self._progress.update(record)
        if shown:
            self._say(self._progress.plain(), printed=self._live is None)  # the live block stands for it
        self._draw(now=shown)

    def end(self, rows: Sequence[Row]) -> None:
        """Ends the live block; prints `rows` with the warnings of the run before the last row "next"."""
        self._stop()
        tail = [row for row in rows if row[0] == "next"]
        warnings: list[Row] = [("warnings", self._warnings)] if self._warnings else []
        self.table([*(row for row in rows if row[0] != "next"), *warnings, *tail])

    def recall(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the best evaluation from a resumed run's earlier records."""
        self._best = None
        for record in records:
            if record.get("kind") == "eval":
                self._verdict(record)

    def _verdict(self, record: Mapping[str, Any]) -> str:
        """The loss against the best so far, which it updates."""
        loss, before = record.get("loss"), self._best
        if loss is None:
            return "loss not finite"
        text = f"loss {decimals(loss, 4)}"
        by = f" by {record['by']}" if record.get("by") else ""
        if record.get("unfinished"):
            text += " (not yet a result: the method has more to do)"
        elif record.get("best"):
            self._best = (record["step"], loss)
            started = " (before training)" if record["step"] == 0 else " (first)"
            was = "" if by else f", was {decimals(before[1], 4)}" if before else ""
            text += f" (best so far{by}{was})" if before else started
        elif before:
            when = f"at step {before[0]}" if before[0] else "before training"
            text += f" (best{by} {when})" if by else f" (best {decimals(before[1], 4)} {when})"
        perplexity = record.get("perplexity")
        text += "" if perplexity is None else f"  perplexity {decimals(perplexity, 2)}"
        return "  ".join([text, *figures_in_words(record)])

    def _say(self, text: str, *, printed: bool = True) -> None:
        if printed:
            self._print([("", text)])
        self._note([("", text)])

    def _table(self, rows: Sequence[Row], *, always: bool = False) -> None:
        self._print(layout(rows, self._console.width), always=always)
        self._note(layout(rows, PLAIN_WIDTH))

    def _print(self, lines: Sequence[tuple[str, str]], *, always: bool = False) -> None:
        if always or not self._quiet:
            for label, text in lines:
                self._console.print(Text.assemble((label, "cyan"), text), soft_wrap=True)
            self._out.flush()

    def _note(self, lines: Sequence[tuple[str, str]]) -> None:
        if not self._log:
            return
        for label, text in lines:
            self._log.add((label + text).rstrip())
        if self._out.broken and not self._lost:
            self._lost = True
            self._log.add(f"console output stopped ({self._out.broken}); the run continues")

    def _block(self) -> Text:
        return self._progress.block(self._console.width, not self._out.encoding.lower().startswith("utf"))

    def _draw(self, now: bool = True) -> None:
        if self._live and (now or monotonic() - self._drawn >= REDRAW_SECONDS):
            self._live.refresh()
            self._drawn = monotonic()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live:
            self._progress.doing = ""
            live.stop()
