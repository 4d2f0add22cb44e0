"""k-quants: the program that makes them, found, missing, failing; and what it makes, checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf_families
import pytest

from lrft.cli.main import run_command
from lrft.errors import LrftError, MissingError
from lrft.export.gguf import Gguf
from lrft.export.quantize_gguf import PROGRAM, find_quantizer, quantize


def program(folder: Path, script: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / PROGRAM
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_missing_program_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "convert_hf_to_gguf.py").write_text("")
    assert find_quantizer("q8_0") is None
    Gguf(converter=str(tmp_path)).ready()
    with pytest.raises(MissingError, match=f"dtype=q4_k_m requires llama.cpp's program {PROGRAM}"):
        Gguf(dtype="q4_k_m", converter=str(tmp_path)).ready()
    found = program(tmp_path, "")
    assert find_quantizer("q4_k_m") == found


def test_the_quantised_file_takes_the_place_of_the_other_or_the_last_words_are_said(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("before")
    with pytest.raises(LrftError, match=f"{PROGRAM} failed: no such type"):
        quantize(program(tmp_path / "bin", "echo reading; echo no such type >&2; exit 1"), file, "q4_k_m")
    with pytest.raises(LrftError, match=f"{PROGRAM} failed: exit code 0"):
        quantize(program(tmp_path / "bin", "exit 0"), file, "q4_k_m")
    assert file.read_text() == "before"
    quantize(program(tmp_path / "bin", 'echo "$(cat $1) $3" > $2'), file, "q4_k_m")
    assert file.read_text() == "before Q4_K_M\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.gguf"]


@pytest.mark.all
@pytest.mark.parametrize("dtype", ["q6_k", "q4_k_m"])
def test_what_llama_cpp_quantised_is_near_the_adapter(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} of llama.cpp is not on the PATH")
    place = gguf_families.converter()
    tokenizer = gguf_families.base(tmp_path / "base", "phi3")
    adapter = gguf_families.adapter(tmp_path / "adapter", tmp_path / "base", tokenizer)
    words = ["export", str(adapter), "--to", "gguf", f"dtype={dtype}", f"converter={place}"]
    assert run_command([*words, "-o", str(tmp_path / "out")]) == 0
    assert f"model.gguf, {dtype}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]
