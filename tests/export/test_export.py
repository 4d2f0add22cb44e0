"""`lrft export`: each exporter's folder is what its tool loads, and bad calls are answered with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from runs import Place
from transformers import AutoModelForCausalLM

from lrft import registry
from lrft.adapters.storage import load_adapter
from lrft.cli.main import run_command
from lrft.model.load import load_model
from lrft.runs.probe import probe
from lrft.verification.merge import logits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place.make(tmp_path_factory.mktemp("export"))
    made.train("training.max_steps=3", out="lora")
    made.train("training.max_steps=3", "adapter.method=mora", out="mora")
    return made


def expected(place: Place, run: str) -> list[torch.Tensor]:
    model = load_model(place.root / "base", dtype=torch.float32)
    load_adapter(model, place.root / run / "best")
    return logits(model, probe(place.root / run / "best", place.root / "base"))


def distance(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    return max((f - w).abs().max().item() for f, w in zip(found, wanted, strict=True))


def test_each_exporter_of_the_folder_is_known_by_name() -> None:
    assert {"merged", "peft"} <= registry.declared("exporters").keys()


def test_the_peft_folder_is_loaded_by_stock_peft(place: Place) -> None:
    assert run_command(["export", str(place.root / "lora"), "--to", "peft"]) == 0
    out = place.root / "lora" / "export" / "peft"
    assert not {"lrft.json", "lrft.safetensors"} & {path.name for path in out.iterdir()}
    assert (out / "tokenizer.json").is_file()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.root / "base"), out)
    rows = probe(place.root / "lora" / "best", place.root / "base")
    assert distance(logits(model.base_model.model, rows), expected(place, "lora")) < 1e-5


def test_the_merged_folder_is_loaded_by_transformers_and_was_compared(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place.root / "merged model"
    assert run_command(["export", str(place.root / "mora"), "dtype=float32", "--to", "merged", "-o", str(out)]) == 0
    assert "same first token 100.00%" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(out)
    rows = probe(place.root / "mora" / "best", place.root / "base")
    assert distance(logits(model, rows), expected(place, "mora")) < 1e-4


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("mora", ["--to", "peft"], "mora: stock PEFT's LoRA cannot represent this adapter"),
        ("lora", ["--to", "pefd"], "Did you mean peft?"),
        ("lora", ["--to", "merged", "dtipe=float32"], "Did you mean dtype=...?"),
        ("lora", ["--to", "merged", "dtype=int8"], "dtype: input should be 'float32', 'bfloat16' or 'float16'"),
        ("lora", ["--to", "peft", "x=1"], "It takes no options."),
    ],
)
def test_a_wrong_call_is_answered(
    place: Place, run: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in (place.root / run).iterdir())
    assert run_command(["export", str(place.root / run), *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in (place.root / run).iterdir()) == before


def test_an_existing_folder_is_left_alone(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    assert run_command(["export", str(place.root / "lora"), "--to", "peft", "-o", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
