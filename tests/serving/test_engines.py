"""Other servers over our folders: what they are started with, and whether they answer as the adapter."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import answering
import pytest
import tiny
from serving_here import serving

import lrft
from lrft.adapters.peft_import import read_any
from lrft.adapters.storage import save_adapter
from lrft.cli.main import run_command
from lrft.errors import CheckFailed, LrftError, MissingError, UsageError
from lrft.loading.base import base_of
from lrft.serving.engine_check import Question, check, judge, questions_of
from lrft.serving.engines import ENGINES, lora_at
from lrft.serving.shelf import load_shelf

# A server that says of each question what it was told to, and ends after the last one.
SCRIPT = """
import json, sys, os
from http.server import BaseHTTPRequestHandler, HTTPServer
words = sys.argv[1:]
told = json.load(open(os.environ["TOLD"]))
json.dump([words, os.environ.get("VLLM_API_KEY")], open(os.environ["TOLD"] + ".words", "w"))
if not told:
    sys.exit(3)
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *given): pass
    def answer(self, body):
        sent = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)
    def do_GET(self): self.answer({})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = told[asked["model"]].pop(asked["messages"][-1]["content"])
        self.answer({"choices": [{"message": {"content": said}}]})
port = int(words[words.index("--port") + 1])
server = HTTPServer(("127.0.0.1", port), Handler)
while any(told.values()):
    server.handle_request()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering.make(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def asked(root: Path) -> dict[str, list[Question]]:
    shelf = load_shelf({"one": str(root / "one")})
    return questions_of(shelf, {"one": root / "one"})


def offered(engine: str, root: Path, *names: str, key: str | None = None) -> Any:
    named = {name: str(root / name) for name in names}
    return ENGINES[engine].offer(named, base_of(read_any(root / names[0]), None), key)


def test_our_own_server_answers_as_the_adapter_and_one_that_ignores_it_is_found_out(
    root: Path, asked: dict[str, list[Question]]
) -> None:
    assert sum(question.telling for question in asked["one"]) >= 3
    shelf = load_shelf({"one": str(root / "one")})
    with serving(shelf) as server:
        found = check(server.server_address[:2], asked, {"one": "one"}, None)["one"]
    assert found.as_trained == found.telling == sum(question.telling for question in asked["one"])
    with (
        serving({"one": replace(shelf["one"], answerer=shelf["base"].answerer)}) as server,
        pytest.raises(CheckFailed, match="one: the engine's answers are the base's: the engine ignores the adapter"),
    ):
        check(server.server_address[:2], asked, {"one": "one"}, None)
    with serving(shelf) as server, pytest.raises(LrftError, match="gave no answer as other"):
        check(server.server_address[:2], asked, {"one": "other"}, None)


def test_most_of_the_telling_answers_decide() -> None:
    asked = [Question(str(n), True, "a b c d", "a b x y") for n in range(3)] + [Question("same", True, "z", "z")]
    found = judge(["a b c e", "a b c d", "a b x y", "anything"], asked, "one")
    assert (found.asked, found.telling, found.as_trained) == (4, 3, 2)
    with pytest.raises(CheckFailed, match=r"are not the adapter's \(1 of 3"):
        judge(["a b c d", "a b x y", "else", "z"], asked, "one")
    assert judge(["z"], asked[3:], "one").telling == 0


def test_vllm_is_given_the_loras_of_peft_with_their_template_and_a_key(root: Path) -> None:
    offer = offered("vllm", root, "one", key="secret")
    words, folder = list(offer.command), root / "one"
    assert words[:6] == [
        sys.executable,
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        str(root / "base"),
        "--served-model-name",
    ]
    said = " ".join(words[6:])
    assert f"--enable-lora --max-loras 1 --max-lora-rank 8 --lora-modules one={folder}" in said
    assert f"--tokenizer {folder} --chat-template {folder / 'chat_template.jinja'}" in said
    assert "secret" not in said
    assert offer.environment == {"VLLM_API_KEY": "secret"}
    with pytest.raises(UsageError, match="two is no LoRA, which is all that vLLM serves over a base"):
        offered("vllm", root, "two")


@pytest.mark.parametrize("change", [{"use_dora": True}, {"peft_type": "OFT"}, {"rank_pattern": {"q_proj": 600}}])
def test_what_vllm_would_not_load_is_refused(change: dict[str, Any], root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "one", tmp_path / "one")
    path = tmp_path / "one" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=r"vLLM serves (over a base|LoRAs up to rank 512; this one has 600)"):
        ENGINES["vllm"].offer({"one": str(tmp_path / "one")}, root / "base", None)


def test_a_folder_of_another_type_of_peft_is_no_lora(tmp_path: Path) -> None:
    for method, words in (("hra", "hra is no LoRA"), ("lora", "")):
        (tmp_path / method).mkdir()
        attached = lrft.attach(tiny.make("llama"), {"method": method, "rank": 2})
        save_adapter(attached, tmp_path / method, base={"name": "base"})
        assert (tmp_path / method / "adapter_config.json").is_file()
        with pytest.raises(UsageError, match=words) if words else nullcontext():
            assert lora_at(str(tmp_path / method)) == tmp_path / method


def test_transformers_is_given_one_model_folder(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no .*one/merged"):
        offered("transformers", root, "one")
    with pytest.raises(UsageError, match="one model at a time"):
        offered("transformers", root, "one", "two")
    with pytest.raises(UsageError, match="asks for no key"):
        offered("transformers", root, "one", key="secret")
    offer = ENGINES["transformers"].offer({"base": str(root / "base")}, None, None)
    assert offer.command[-2:] == ("serve", str(root / "base"))
    assert offer.names == {"base": str(root / "base")}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--engine", "vlm"], 2, "Did you mean vllm?"),
        (["--engine", "vllm"], 5, "pip install vllm"),
        (["--engine", "vllm", "--batch-size", "8"], 2, "--batch-size is of lrft's own server"),
    ],
)
def test_mistakes_are_said(
    words: list[str], code: int, said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["serve", str(root / "one"), *words]) == code
    assert said in capsys.readouterr().err


def test_an_engine_is_started_checked_and_ended(
    root: Path,
    asked: dict[str, list[Question]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a program in vLLM's place that is told what to say: vLLM is not installed for tests."""
    place = tmp_path / "vllm" / "entrypoints" / "cli"
    place.mkdir(parents=True)
    (place / "main.py").write_text(SCRIPT)
    (tmp_path / "vllm" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TOLD", str(tmp_path / "told.json"))
    monkeypatch.setenv("LRFT_API_KEY", "secret")
    words = ["serve", str(root / "one"), "--engine", "vllm", "--port", "0"]
    for told, code, said in (
        ({question.text: question.trained for question in asked["one"]}, 0, "answered as the adapter does"),
        ({question.text: question.base for question in asked["one"]}, 4, "the engine ignores the adapter"),
        ({}, 1, "the engine ended with exit code 3 before it answered"),
    ):
        (tmp_path / "told.json").write_text(json.dumps({"one": told} if told else {}))
        assert run_command(words) == code
        output = capsys.readouterr()
        assert said in " ".join((output.out + output.err).split())
        given, key = json.loads((tmp_path / "told.json.words").read_text())
        assert given[:2] == ["serve", str(root / "base")]
        assert key == "secret"


@pytest.mark.all
def test_transformers_own_server_answers_as_the_adapter(
    root: Path, asked: dict[str, list[Question]], tmp_path: Path
) -> None:
    pytest.importorskip("fastapi", reason="NOT TESTED WITH TRANSFORMERS SERVE: pip install 'transformers[serving]'")
    from lrft.serving.engine_process import free_port, started, wait_until_ready

    engine = ENGINES["transformers"]
    try:
        engine.ready()
    except MissingError as error:
        pytest.skip(error.message)
    merged, port = tmp_path / "merged", free_port("127.0.0.1", 0)
    assert run_command(["merge", str(root / "one"), "-o", str(merged)]) == 0
    for folder, right in ((merged, True), (root / "base", False)):
        offer = engine.offer({"one": str(folder)}, None, None)
        with started(offer, "127.0.0.1", port) as process:
            wait_until_ready(process, ("127.0.0.1", port))
            if right:
                found = check(("127.0.0.1", port), asked, offer.names, None)["one"]
                assert found.as_trained == found.telling >= 3
            else:
                with pytest.raises(CheckFailed, match="one: the engine's answers are"):
                    check(("127.0.0.1", port), asked, offer.names, None)
