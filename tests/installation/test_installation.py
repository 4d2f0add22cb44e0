"""What `lrft doctor` finds: packages that do not fit, locks of interrupted compilations, folders."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lrft.cli import doctor
from lrft.cli.main import run_command
from lrft.distributed import compile_lock
from lrft.installation import packages

PACKAGES = {
    "lrft": ("1.0", ["torch>=2.6", 'gguf>=0.10; extra == "gguf"', 'peft>=0.18; extra == "dev"'], ["gguf", "dev"]),
    "torch": ("2.5.1", [], []),
    "transformers": (
        "5.23.0",
        ["tokenizers<0.22", 'torch>=9; extra == "torch"', "numpy>=1; python_version<'3'"],
        ["torch"],
    ),
    "tokenizers": ("0.23.3", [], []),
    "gguf": ("0.11", [], []),
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with `PACKAGES`, and nothing else."""
    for name, (version, requires, extras) in PACKAGES.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Provides-Extra: {extra}" for extra in extras)]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.path", [str(tmp_path)])


@pytest.mark.usefixtures("installed")
def test_the_pair_that_does_not_fit_is_named() -> None:
    assert [need.sentence() for need in packages.pairs()] == [
        "lrft needs torch>=2.6; 2.5.1 is installed",
        "transformers needs tokenizers<0.22; 0.23.3 is installed",
    ]
    assert packages.extras() == {"gguf": True, "dev": False}


def test_the_environment_of_the_tests_fits() -> None:
    assert [need.sentence() for need in packages.pairs()] == []


def test_a_lock_is_stale_when_nothing_compiles_as_long(tmp_path: Path) -> None:
    for name, age in (("a", 10.0), ("b", compile_lock.SECONDS + 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        os.utime(tmp_path / name / "lock", (time.time() - age,) * 2)
    (tmp_path / "lock").mkdir()
    assert compile_lock.left_behind(tmp_path) == [tmp_path / "b" / "lock"]
    assert compile_lock.left_behind(tmp_path / "none") == []


def test_doctor_exits_with_one_when_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_of_mine")
    assert run_command(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["problems"], told["hub_token"]) == ([], True)
    assert told["packages"]["torch"] == packages.version("torch")
    assert "hf_a_secret" not in json.dumps(told)
    (tmp_path / "lock").touch()
    os.utime(tmp_path / "lock", (0, 0))
    assert run_command(["doctor"]) == 1
    assert f"rm {tmp_path}/lock" in " ".join(capsys.readouterr().out.split())


def test_a_cache_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    there = {"LRFT_CACHE": {"path": str(tmp_path / "new" / "folder"), "free_bytes": 1}}
    assert doctor.problems({"folders": there}, [], []) == []
    (tmp_path / "new").touch()
    assert doctor.problems({"folders": there}, [], []) == [
        f"{tmp_path}/new/folder cannot be written to: name another folder by LRFT_CACHE"
    ]
