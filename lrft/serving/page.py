"""The page at `/` of the server: one file of this folder, and what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources


@cache
def page() -> bytes:
    return resources.files(__package__).joinpath("page.html").read_bytes()


@cache
def policy() -> str:
    """The content security policy: the script and the style that are in the page, requests to this server, and nothing
    else; in no frame."""
    text = page().decode()
    hashes = {tag: _hash(text, tag) for tag in ("script", "style")}
    allowed = [f"{tag}-src '{found}'" for tag, found in hashes.items()]
    rules = ["default-src 'none'", *allowed, "connect-src 'self'", "img-src data:", "base-uri 'none'"]
    return "; ".join([*rules, "form-action 'none'", "frame-ancestors 'none'"])


def _hash(text: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
