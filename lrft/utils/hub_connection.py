"""Whether the hub answers at all."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

PROBE_SECONDS = 5.0


def unreachable() -> str | None:
    """Why the hub cannot be reached, or None. One TCP connection, to the proxy where one is configured.

    huggingface_hub itself would try five times with growing pauses before it gives up.
    """
    from huggingface_hub import constants

    target = urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        socket.create_connection((target.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        return f"{target.hostname}: {error.strerror or error}"
    return None
