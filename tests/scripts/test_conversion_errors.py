"""The measurement of what a conversion loses, on a tiny run, against `lrft convert`."""

from __future__ import annotations

import json
from pathlib import Path

import conversion_errors
import pytest
from runs import Place

from lrft.cli.main import run_command
from lrft.export.lora import Lora


def test_its_errors_are_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    kept = {"rank 2": Lora(rank=2), "rank 24": Lora(rank=24), "energy 0.9": Lora(energy=0.9)}
    monkeypatch.setattr(conversion_errors, "KEPT", kept)
    run = Place.make(tmp_path).train("adapter.method=mora", "adapter.rank=4")
    found = conversion_errors.errors((run / "last").resolve())
    assert found["rank 24"]["largest"] < 1e-4 > found["rank 24"]["logits"]
    assert found["energy 0.9"]["largest"] ** 2 <= 0.1 < found["rank 2"]["largest"] ** 2
    capsys.readouterr()
    words = ["--energy", "0.9", "--tolerance", "9", "-o", str(tmp_path / "lora"), "--json"]
    assert run_command(["convert", str((run / "last").resolve()), *words]) == 0
    layers = json.loads((tmp_path / "lora" / "conversion.json").read_text())
    assert found["energy 0.9"]["layers"] == len(layers)
    assert found["energy 0.9"]["largest"] == round(max(each["relative error"] for each in layers.values()), 5)
    assert found["energy 0.9"]["ranks"][1] == max(each["rank"] for each in layers.values())
    share = f"mean logit difference {found['energy 0.9']['logits']:.2%} of the change"
    assert share in capsys.readouterr().out
