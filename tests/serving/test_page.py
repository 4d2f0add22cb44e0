"""The page of `lrft serve`: what it may do, and, where there is a browser, what a person sees."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import shutil
from pathlib import Path
from typing import Any

import answering
import pytest
from serving_here import serving

from lrft.serving.http_server import Limits
from lrft.serving.shelf import load_shelf, named_by_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering.make(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def shelf(root: Path) -> Any:
    return load_shelf(named_by_folder([str(root / "one"), str(root / "two")]))


def test_it_is_given_without_the_key_and_may_run_what_is_in_it_and_ask_this_server_alone(shelf: Any) -> None:
    with serving(shelf, key="sesame") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        connection.request("GET", "/")
        reply = connection.getresponse()
        text, headers = reply.read().decode(), reply.headers
        connection.close()
    assert (reply.status, headers.get_content_type()) == (200, "text/html")
    rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules.pop("connect-src") == "'self'"
    assert rules.pop("img-src") == "data:"
    assert set(rules) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(rules.values()) == {"'none'"}
    assert not re.search(r"https?://|(?:src|href)=(?!\"data:,)| on\w+=|innerHTML|style=", text)


@pytest.mark.all
def test_a_person_compares_answers_in_chromium(root: Path, shelf: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="NOT TESTED IN A BROWSER: pip install playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("NOT TESTED IN A BROWSER: no chromium here, apt-get install chromium")
    limits = Limits(max_new_tokens=64)
    with serving(shelf, key="sesame", limits=limits) as server, playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.get_by_text("wrong or no API key").wait_for()
        page.get_by_label("Key").fill("sesame")
        page.get_by_label("Longest answer").fill("8")
        page.get_by_label("two").wait_for()
        page.get_by_label("base").uncheck()
        asked, written = "hello <b>world</b>", {}
        page.get_by_label("Your message").fill(asked)
        page.get_by_role("button", name="Send").click()
        page.locator("#stop:disabled").wait_for()
        for name in ("one", "two"):
            column = page.get_by_role("article", name=name)
            assert column.locator(".user").text_content() == asked
            written[name] = column.locator(".assistant").text_content()
            assert written[name] == answering.stock(root, name, answering.turns(asked))
        assert page.get_by_role("article").count() == 2
        page.get_by_label("Your message").fill("1?")
        page.get_by_label("Your message").press("Control+Enter")
        page.locator("#stop:disabled").wait_for()
        second = page.get_by_role("article", name="one").locator(".assistant").nth(1).text_content()
        assert second == answering.stock(root, "one", answering.turns(asked, written["one"], "1?"))
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.get_by_label("Longest answer").fill("65")
        page.get_by_label("Your message").fill("1?")
        page.get_by_role("button", name="Send").click()
        page.get_by_text("No answer: at most 64 tokens can be asked for (got 65)").first.wait_for()
        page.get_by_role("button", name="New conversation").click()
        assert page.get_by_role("article").count() == 0
        assert errors == []
        browser.close()
