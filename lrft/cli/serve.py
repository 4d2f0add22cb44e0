"""`lrft serve`: an HTTP server with OpenAI's API."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lrft.cli.answering import chosen_adapter
from lrft.cli.arguments import Base, TrustRemoteCode, loading
from lrft.cli.listening import address, until_stopped
from lrft.cli.serve_engine import OWN, serve_by
from lrft.errors import UsageError

KEY = "LRFT_API_KEY"
OWN_OPTIONS = ("max_new_tokens", "batch_size", "max_waiting")


def serve(
    context: typer.Context,
    targets: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs or adapters of one base, or one model.")],
    host: Annotated[str, typer.Option(help="Address to listen on. The default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are answered together.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are answered 429.")] = 64,
    engine: Annotated[str, typer.Option(help="lrft, or another server to start and check: vllm, transformers.")] = OWN,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve OpenAI's API: the base as `base`, and each run by its name. A key is taken from LRFT_API_KEY.

    Example: lrft serve runs/first runs/second
    """
    if engine != OWN:
        refuse_own_options(context, engine)
        serve_by(engine, targets, host, port, os.environ.get(KEY) or None, base, trust_remote_code)
        return
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


def refuse_own_options(context: typer.Context, engine: str) -> None:
    """Raises UsageError for an option that another server does not have."""
    for name in OWN_OPTIONS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            word = f"--{name.replace('_', '-')}"
            raise UsageError(f"{word} is of lrft's own server; {engine} has settings of its own")
