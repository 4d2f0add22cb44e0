"""An engine as a process of its own: started, waited for until it answers, and ended."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lrft.errors import LrftError, UsageError
from lrft.serving.engines import Offer

LOOK_SECONDS = 0.5
END_SECONDS = 30.0  # that it may take to end by itself
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listening everywhere -> where to ask


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises UsageError when it is taken: another server would answer our questions."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            return int(found.getsockname()[1])
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be used: {error}", "Choose another port with --port.") from error


@contextmanager
def started(offer: Offer, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The engine, which speaks to the terminal itself; it ends with the context."""
    words = [*offer.command, "--host", host, "--port", str(port)]
    # In a session of its own: a terminal's Ctrl-C comes here, and from here to it once.
    process = subprocess.Popen(words, env=os.environ | dict(offer.environment), start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], address: tuple[str, int]) -> None:
    """Until the engine answers on /health, however long it loads. Raises LrftError when it ends instead."""
    while not healthy(address):
        code = process.poll()
        if code is not None:
            raise LrftError(f"the engine ended with exit code {code} before it answered", "Its own words are above.")
        time.sleep(LOOK_SECONDS)


def healthy(address: tuple[str, int]) -> bool:
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
