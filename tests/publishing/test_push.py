"""`lrft push` against a server that speaks the hub's API: what arrives, its card, and that nothing private leaves."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from runs import Place
from safetensors.torch import save_file

from lrft.adapters.storage import read_adapter
from lrft.cli.main import run_command
from lrft.errors import CheckFailed
from lrft.publishing.push_card import tidy
from lrft.publishing.scan import refuse_private


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name: their files and whether they are private."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.refuse = 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def reply(self, body: Any, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.reply({"error": "no such thing"}, 404)

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length) if length else self.chunked()
        path = self.path.partition("?")[0]
        if self.server.refuse:
            self.reply({"error": "not allowed"}, self.server.refuse)
        elif path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repos.setdefault(name, {})
            self.server.visibility[name] = asked.get("visibility", "public")
            self.reply({"url": f"{self.server.address}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(sent)["files"]
            kept = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            self.reply({"files": kept})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply({"commitUrl": f"{self.server.address}/{name}/commit/1", "commitOid": "1" * 40})
        else:
            self.reply({"error": path}, 404)

    def chunked(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place.make(tmp_path_factory.mktemp("push"))
    (made.root / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    made.train("training.max_steps=2", "evaluation.every=1", out="run")
    assert run_command(["eval", str(made.root / "run"), "--data", str(made.root / "train.jsonl"), "--no-generate"]) == 0
    return made


def test_an_adapter_arrives_private_whole_and_with_a_card(
    place: Place, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["push", str(place.root / "run"), "--to", "me/lights", "--base-name", "org/tiny"]
    assert run_command([*words, "--dry-run"]) == 0
    assert hub.repos == {}
    assert {"library_name: peft", "# lights"} <= set(capsys.readouterr().out.splitlines())  # the card, line by line
    assert run_command(words) == 0
    assert f"{hub.address}/me/lights" in capsys.readouterr().out
    arrived = hub.repos["me/lights"]
    assert hub.visibility == {"me/lights": "private"}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "lrft.json", "tokenizer.json"} <= set(
        arrived
    )
    everything = b"".join(arrived.values())
    for private in (str(place.root), os.environ["HF_TOKEN"], str(Path.home()) + "/", str(Path.cwd())):
        assert private.encode() not in everything
    for name, content in arrived.items():
        (tmp_path / name).write_bytes(content)
    saved, original = read_adapter(tmp_path), read_adapter(place.root / "run" / "best")
    assert saved.info["base"]["name"] == "org/tiny"
    assert all(torch.equal(t, original.state_dict()[name]) for name, t in saved.state_dict().items())

    card = arrived["README.md"].decode()
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---", card, re.S)[1])
    assert front["base_model"] == "org/tiny"
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "peft"
    measured = json.loads((place.root / "run" / "run.json").read_text())["result"]["best validation loss"]
    assert f"{measured:.4f}" in card
    for said in ("train.jsonl (train): 10 of 10 rows", "on 5 held-out rows", "lrft eval", "PEFT", "vLLM", "lrft chat"):
        assert said in card
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.S)[1])
    assert recipe["adapter"]["rank"] == 4
    assert recipe["data"]["train"][0]["path"] == "train.jsonl"


def test_a_merged_model_is_published_from_its_run(place: Place, hub: Hub) -> None:
    assert run_command(["merge", str(place.root / "run")]) == 0
    assert run_command(["push", str(place.root / "run" / "merged"), "--to", "me/merged", "--public"]) == 0
    arrived = hub.repos["me/merged"]
    assert hub.visibility["me/merged"] == "public"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(arrived)
    assert str(place.root).encode() not in b"".join(arrived.values())
    assert "vllm serve me/merged" in arrived["README.md"].decode()


@pytest.mark.parametrize(
    ("target", "words", "code", "message"),
    [
        ("run", ["--to", "lights"], 2, "--to must be OWNER/NAME (got lights)"),
        ("base", ["--to", "me/x"], 2, "lies in no run"),
        ("nowhere", ["--to", "me/x"], 2, "is not a folder"),
        ("run", ["--to", "me/x"], 5, "hf auth login"),
    ],
)
def test_what_cannot_be_published_is_answered(
    place: Place, hub: Hub, target: str, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse = 403
    assert run_command(["push", str(place.root / target), *words]) == code
    assert message in capsys.readouterr().err
    assert not list((place.root / "run").rglob(".push-*"))


def test_secrets_and_local_paths_are_found_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('{"url": "https://x.org/home/page", "path": "train.jsonl"}')
    (tmp_path / "tokenizer.json").write_text('{"vocab": {"/home/user": 1, "password": 2}}')
    environment = {"MY_TOKEN": "short", "EDITOR": "url", "MY_PASSWORD": "password"}
    refuse_private(tmp_path, {"/data/mine": "the path of the run"}, environment)
    (tmp_path / "path.txt").write_text("made in /data/mine/run")
    (tmp_path / "home.md").write_text("see /home/somebody/file")
    (tmp_path / "value.json").write_text('{"a": "abcdefgh-12345"}')
    (tmp_path / "key.jinja").write_text("hf_" + "a1" * 17)
    save_file({"a": torch.zeros(1)}, tmp_path / "t.safetensors", {"from": "/root/models"})
    with pytest.raises(CheckFailed) as caught:
        refuse_private(tmp_path, {"/data/mine": "the path of the run"}, {"MY_API_KEY": "abcdefgh-12345"})
    said = caught.value.message
    for line in (
        "path.txt: the path of the run",
        "home.md: the path /home/somebody",
        "value.json: the value of MY_API_KEY",
        "key.jinja: the key of a service",
        "t.safetensors: the path /root/models",
    ):
        assert line in said
    assert "good.json" not in said
    assert "abcdefgh" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/train.jsonl", "train.jsonl"),
        ("~/models/x", "x"),
        ("${LRFT_CACHE:-~/.cache}/quick/m.gguf", "m.gguf"),
        ("10 rows: ../my data/a.jsonl", "10 rows: a.jsonl"),
        ("org/name", "org/name"),
        ("hub:org/name", "hub:org/name"),
        ("https://x.org/a/b", "https://x.org/a/b"),
        ("cosine", "cosine"),
    ],
)
def test_a_card_says_names_and_not_places(text: str, shown: str) -> None:
    assert tidy(text) == shown
