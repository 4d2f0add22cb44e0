"""`lrft serve --engine`: the server of another project over a run's folder, and whether it answers as the run."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.cli.arguments import loading
from lrft.cli.listening import address, until_stopped
from lrft.errors import LrftError, UsageError, nearest

if TYPE_CHECKING:
    from lrft.serving.engine_check import Question, Verdict

OWN = "lrft"


def serve_by(
    name: str, targets: Sequence[str], host: str, port: int, key: str | None, base: str | None, trusted: bool
) -> None:
    """Start the engine, compare its answers with ours, and serve until Ctrl-C. Raises CheckFailed when they are not the
    adapter's, and what is missing or wrong before anything is loaded."""
    with loading():
        from lrft.adapters.peft_import import read_any
        from lrft.loading.base import base_of
        from lrft.serving import engine_check, engine_process
        from lrft.serving.engines import ENGINES
        from lrft.serving.shelf import adapter_at, named_by_folder
        from lrft.tracking.console import Reporter

    if name not in ENGINES:
        close = nearest(name, [OWN, *ENGINES])
        hint = f"Did you mean {close[0]}?" if close else None
        raise UsageError(f"--engine must be one of {', '.join([OWN, *ENGINES])} (got {name})", hint)
    engine, named = ENGINES[name], named_by_folder(targets)
    engine.ready()
    folders = {one: folder for one, target in named.items() if (folder := adapter_at(target)) is not None}
    if not folders and len(named) > 1:
        raise UsageError("a plain model is served alone")
    source = base_of(read_any(next(iter(folders.values()))), base) if folders else None
    offer = engine.offer(named, source, key)
    port = engine_process.free_port(host, port)
    asked = prepared(named, folders, base, trusted) if folders else {}
    place = (engine_process.ANY.get(host, host), port)
    with Reporter(None) as reporter, engine_process.started(offer, host, port) as process:

        def begin() -> None:
            engine_process.wait_until_ready(process, place)
            verdicts = engine_check.check(place, asked, offer.names, key)
            reporter.table(
                [
                    ("models", list(offer.names.values())),
                    ("serving", [f"http://{address((host, port))}/v1", f"by {name}; Ctrl-C ends it"]),
                    *[("checked", [said(one, verdict)]) for one, verdict in verdicts.items()],
                ]
            )
            for one, verdict in verdicts.items():
                if not verdict.telling:
                    reporter.warn(f"{one} answers all {verdict.asked} questions as the base does: nothing is known")
            if process.wait():
                raise LrftError(f"the engine ended with exit code {process.returncode}", "Its own words are above.")

        until_stopped(begin)


def prepared(
    named: dict[str, str], folders: dict[str, Path], base: str | None, trusted: bool
) -> dict[str, list[Question]]:
    """Questions with our answers. The model is gone again from memory."""
    import torch

    from lrft.serving.engine_check import questions_of
    from lrft.serving.shelf import load_shelf

    asked = questions_of(load_shelf(named, base, trusted), folders)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return asked


def said(name: str, verdict: Verdict) -> str:
    return (
        f"{name}: {verdict.as_trained} of the {verdict.telling} questions that adapter and base answer differently "
        f"answered as the adapter does"
    )
