"""`lrft serve`: an HTTP server with OpenAI's API."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Annotated

import typer

from lrft.cli.answering import chosen_adapter
from lrft.cli.arguments import Base, TrustRemoteCode, loading

KEY = "LRFT_API_KEY"


def serve(
    targets: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs or adapters of one base, or one model.")],
    host: Annotated[str, typer.Option(help="Address to listen on. The default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are answered together.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are answered 429.")] = 64,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve OpenAI's API: the base as `base`, and each run by its name. A key is taken from LRFT_API_KEY.

    Example: lrft serve runs/first runs/second
    """
    with loading():
        from lrft.serving.http_server import Limits, Server
        from lrft.serving.shelf import load_shelf, named_by_folder
        from lrft.tracking.console import Reporter

    for target in targets:
        chosen_adapter(target)
    shelf = load_shelf(named_by_folder(targets), base, trust_remote_code)
    key = os.environ.get(KEY) or None
    limits = Limits(max_new_tokens=max_new_tokens, batch_size=batch_size, waiting=max_waiting)
    server = Server(shelf, host=host, port=port, key=key, limits=limits)
    with Reporter(None) as reporter:
        reporter.table(
            [
                ("models", list(shelf)),
                ("serving", [f"http://{address(server.server_address)}/v1", "Ctrl-C ends it"]),
                ("try it", [f"http://{address(server.server_address)}/"]),
            ]
        )
        for name, trained in shelf.items():
            if trained.asking.reading.writes_tools and server.forms[name] is None:
                reporter.warn(f"{name}: calls of tools are given as text: its template's form of them is not known")
        if not server.local and key is None:
            reporter.warn(f"{host} can be reached from other machines, and {KEY} is not set: anyone may ask")
        until_stopped(server.serve_forever)
        reporter.line("finishing what is being answered")
        server.close()


def address(found: object) -> str:
    host, port, *_ = found if isinstance(found, tuple) else ("", "")
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def until_stopped(run: Callable[[], None]) -> None:
    """Call `run` until Ctrl-C or SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with suppress(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGTERM, before)
