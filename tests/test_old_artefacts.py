"""What an earlier state of lrft has written stays readable: adapters of each form, and a run that was broken off.

tests/old/ was written by commit cd7a185: adapters of rank 2 on a Llama of one layer and width 8, with the logits that
they gave there, and a run of 4 steps without what came after its checkpoint of step 2, with the adapter that it had
at its end. It is never written again; a change of a format adds a folder beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

import lrft
from lrft import recipe
from lrft.adapters.storage import read_adapter
from lrft.cli.main import run_command
from lrft.model.load import load_model
from lrft.training.run import train
from lrft.training.state import Options

OLD = Path(__file__).parent / "old"
BASE = OLD / "adapters" / "base"
PLAIN = ("lora", "dora", "mora", "vera", "pissa")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def logits() -> dict[str, torch.Tensor]:
    return load_file(OLD / "adapters" / "logits.safetensors")


@pytest.mark.parametrize("name", [*PLAIN, "nf4"])
def test_an_adapter_gives_the_logits_that_it_gave(name: str, logits: dict[str, torch.Tensor]) -> None:
    model = load_model(BASE, dtype=torch.float32, quantization="nf4" if name == "nf4" else "none")
    before = tiny.logits(model, logits["tokens"])
    lrft.load_adapter(model, OLD / "adapters" / name)
    assert torch.allclose(tiny.logits(model, logits["tokens"]), logits[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, logits[name], rtol=1e-4, atol=1e-5), "otherwise nothing was loaded"


@pytest.mark.parametrize("name", PLAIN)
def test_an_adapter_is_merged(name: str, tmp_path: Path, logits: dict[str, torch.Tensor]) -> None:
    lrft.merge(OLD / "adapters" / name, tmp_path / "merged", base_model=str(BASE))
    merged = load_model(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(tiny.logits(merged, logits["tokens"]), logits[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OLD / "run", tmp_path / "old", symlinks=True)
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old" / "run"


def test_a_run_goes_on(run: Path) -> None:
    train(recipe.load(Path("recipe.yaml")), Options(quiet=True, resume="last", source=Path("recipe.yaml")))
    expected = load_file("whole.safetensors")
    found = load_file(run / "last" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected)
    cut = load_file(run / "checkpoints" / "step-000002" / "adapter" / "adapter_model.safetensors")
    assert not any(torch.allclose(cut[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected)


def test_a_run_is_shown_and_merged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", "run"]) == 0
    assert "method: [dora" in capsys.readouterr().out
    assert run_command(["report", "run"]) == 0
    assert run_command(["merge", "run", "--no-verify"]) == 0
    assert (run / "merged" / "model.safetensors").is_file()
    assert len(read_adapter(run / "last").tensors) > 0
