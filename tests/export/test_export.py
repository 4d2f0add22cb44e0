"""`lrft export`: each exporter's folder is what its tool loads, and bad calls are answered with the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peft import PeftModel
from runs import Place
from transformers import AutoModelForCausalLM

from lrft import attach, registry
from lrft.adapters.storage import load_adapter, read_adapter, save_adapter
from lrft.cli.main import run_command
from lrft.model.load import load_model
from lrft.model.weights import fingerprint
from lrft.runs.probe import probe
from lrft.utils import files
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
    assert {"merged", "peft", "lora"} <= registry.declared("exporters").keys()


def test_the_peft_folder_is_loaded_by_stock_peft(place: Place) -> None:
    assert run_command(["export", str(place.root / "lora"), "--to", "peft"]) == 0
    out = place.root / "lora" / "export" / "peft"
    assert not {"lrft.json", "lrft.safetensors"} & {path.name for path in out.iterdir()}
    assert (out / "tokenizer.json").is_file()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.root / "base"), out)
    rows = probe(place.root / "lora" / "best", place.root / "base")
    assert distance(logits(model.base_model.model, rows), expected(place, "lora")) < 1e-5


def test_a_method_that_is_a_lora_can_be_written_as_peft_s_own_type(place: Place, tmp_path: Path) -> None:
    attached = attach(load_model(place.root / "base", dtype=torch.float32), {"method": "vera", "rank": 3})
    tiny.disturb(list(attached.trained().values()))
    (tmp_path / "vera").mkdir()
    info = {"name": str(place.root / "base"), "revision": None, "fingerprint": fingerprint(place.root / "base")}
    save_adapter(attached, tmp_path / "vera", base=info)
    rows = probe(place.root / "lora" / "best", place.root / "base")
    wanted = logits(attached.model, rows)
    for options, kind in (([], "LORA"), (["own_type=true"], "VERA")):
        out = tmp_path / kind
        assert run_command(["export", str(tmp_path / "vera"), *options, "--to", "peft", "-o", str(out)]) == 0
        assert files.read_json(out / "adapter_config.json")["peft_type"] == kind
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.root / "base"), out)
        assert distance(logits(model.base_model.model, rows), wanted) < 1e-4


def test_the_merged_folder_is_loaded_by_transformers_and_was_compared(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place.root / "merged model"
    assert run_command(["export", str(place.root / "mora"), "dtype=float32", "--to", "merged", "-o", str(out)]) == 0
    assert "same first token 100.00%" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(out)
    rows = probe(place.root / "mora" / "best", place.root / "base")
    assert distance(logits(model, rows), expected(place, "mora")) < 1e-4


def test_any_update_becomes_a_lora_of_stock_peft_as_near_as_its_rank_allows(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, out = read_adapter(place.root / "mora" / "best"), tmp_path / "lora"
    run, base = str(place.root / "mora"), place.root / "base"
    assert run_command(["export", run, "--to", "lora", "energy=1", "-o", str(tmp_path / "all")]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "all")
    rows = probe(place.root / "mora" / "best", base)
    assert distance(logits(model.base_model.model, rows), expected(place, "mora")) < 1e-4

    assert run_command(["export", run, "--to", "lora", "rank=2", "tolerance=5", "-o", str(out)]) == 0
    assert "of what the adapter changes" in capsys.readouterr().out
    errors, tensors = files.read_json(out / "conversion.json"), files.read_tensors(out / "adapter_model.safetensors")
    for site in saved.sites:
        exact = saved.build(site).delta_weight().detach().double().numpy()
        A, B = (tensors[f"base_model.model.{site.name}.lora_{part}.weight"].double().numpy() for part in "AB")
        S = np.linalg.svd(exact, compute_uv=False)
        best = np.sqrt((S[2:] ** 2).sum() / (S**2).sum())
        assert np.linalg.norm(exact - B @ A) / np.linalg.norm(exact) == pytest.approx(best, rel=1e-4)
        assert errors[site.name] == {"rank": 2, "relative error": pytest.approx(best, rel=1e-4)}
    assert run_command(["export", run, "--to", "lora", "rank=1", "tolerance=0.01", "-o", str(tmp_path / "one")]) == 4
    assert "Use a higher rank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("mora", ["--to", "peft"], "mora: stock PEFT cannot represent this adapter"),
        ("lora", ["--to", "pefd"], "Did you mean peft?"),
        ("lora", ["--to", "merged", "dtipe=float32"], "Did you mean dtype=...?"),
        ("lora", ["--to", "merged", "dtype=int8"], "dtype: input should be 'float32', 'bfloat16' or 'float16'"),
        ("lora", ["--to", "peft", "x=1"], "own_type"),
        ("mora", ["--to", "peft", "own_type=true"], "mora: stock PEFT cannot represent this method"),
        ("lora", ["--to", "lora", "rank=2", "energy=0.9"], "rank and energy exclude each other"),
        ("lora", ["--to", "lora", "rank=0"], "rank must be at least 1 (got 0)"),
        ("lora", ["--to", "lora", "energy=2"], "energy must be above 0 and at most 1 (got 2"),
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
