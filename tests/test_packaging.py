"""What is built: a wheel that works without the checkout, an sdist that builds the same, files for containers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import lrft
from lrft.version import __version__, built_from

ROOT = Path(lrft.__file__).parents[1]
KEPT = ("lrft", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({out!r}))"


def built(kind: str, source: Path, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, out=str(out))], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.mark.all
def test_the_wheel_works_without_the_checkout_and_the_sdist_builds_it_again(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    for name in KEPT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=source, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True)
    version = f"{__version__}+g{commit.stdout[:7]}"
    archive = built("sdist", source, out)
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    names = []
    for folder in (source, tmp_path / "unpacked" / f"lrft-{version}"):
        wheel = built("wheel", folder, out)
        assert wheel.name == f"lrft-{version}-py3-none-any.whl"
        names.append(sorted(zipfile.ZipFile(wheel).namelist()))
    assert names[0] == names[1]
    assert {name.split("/")[0] for name in names[0]} == {"lrft", f"lrft-{version}.dist-info"}
    assert {"lrft/py.typed", "lrft/quickstart/recipe.yaml", "lrft/methods/lora.py"} <= set(names[0])
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    home = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for words, said in (
        (["--version"], f"lrft {version}\n"),
        (["quickstart", "start", "--files"], "start/recipe.yaml"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "lrft", *words], cwd=tmp_path, env=home, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_a_checkout_names_no_commit_that_its_files_may_not_have() -> None:
    assert built_from() == __version__


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.cuda"])
def test_container_files_name_instructions_and_files_that_exist(name: str) -> None:
    text = re.sub(r"\\\n", " ", (ROOT / name).read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= {
        *("FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "ENTRYPOINT", "CMD")
    }
    assert [line.split()[0] for line in lines if line.startswith(("USER", "ENTRYPOINT", "CMD"))] == [
        *("USER", "ENTRYPOINT", "CMD")
    ]
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            assert all((ROOT / word).exists() for word in line.split()[1:-1]), line
        if line.startswith("RUN"):
            subprocess.run(["sh", "-n", "-c", line.removeprefix("RUN")], check=True)
