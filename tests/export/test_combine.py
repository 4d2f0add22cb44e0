"""Adapters combined into one: against stock PEFT's `add_weighted_adapter`, and against sums of dense updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import on_disk
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import lrft
from lrft.adapters.combine import SPARSE, WAYS
from lrft.adapters.storage import read_adapter
from lrft.cli import combine as cli
from lrft.cli.main import run_command
from lrft.export.combine import combine_adapters
from lrft.export.merge import merge_adapter

TARGETS = ["q_proj", "down_proj"]
WEIGHTS = (0.7, -0.4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_disk.save_base(tmp_path_factory.mktemp("combine") / "base")


@pytest.fixture(scope="module")
def peft_folders(base: Path) -> list[Path]:
    """Two LoRAs of PEFT of the same rank and other factors."""
    folders = []
    for seed, alpha in enumerate((5, 8)):
        torch.manual_seed(seed)
        config = LoraConfig(r=3, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(base.parent / f"{seed}")
        folders.append(base.parent / f"{seed}")
    return folders


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=tiny.tokens(2, 9)).logits
    return found


def combined(base: Path, folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    return lrft.load_adapter(model, folder)


@pytest.mark.parametrize(
    ("how", "theirs"),
    [
        ("cat", "cat"),
        ("svd", "svd"),
        ("linear", "linear"),
        ("ties", "ties_svd"),
        ("magnitude-prune", "magnitude_prune_svd"),
    ],
)
@pytest.mark.parametrize("weights", [(0.7, 0.4), WEIGHTS])
def test_as_peft_combines(
    base: Path, peft_folders: list[Path], tmp_path: Path, how: str, theirs: str, weights: tuple[float, float]
) -> None:
    combine_adapters(
        peft_folders, tmp_path / "out", how=how, weights=weights, rank=4, density=0.3, base_model=str(base)
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), peft_folders[0], adapter_name="a")
    model.load_adapter(peft_folders[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], list(weights), "both", theirs, svd_rank=4, density=0.3)
    model.set_adapter("both")
    wanted = logits(model)
    torch.testing.assert_close(logits(combined(base, tmp_path / "out").model), wanted, rtol=1e-4, atol=1e-5)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    torch.testing.assert_close(logits(stock), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "words"), [("cat", ("lora", "rslora")), ("svd", ("mora", "dora")), ("svd", ("hra", "lora"))]
)
def test_the_sum_of_dense_updates(base: Path, tmp_path: Path, how: str, words: tuple[str, str]) -> None:
    parts = [
        on_disk.save_adapter(tmp_path / word, base, word, rank=4, target_modules=TARGETS[: 2 - number])
        for number, word in enumerate(words)
    ]
    found = combine_adapters([tmp_path / w for w in words], tmp_path / "out", how=how, weights=WEIGHTS, rank=24)
    attached = combined(base, tmp_path / "out")
    assert found.modules == len(parts[0].modules) > len(parts[1].modules)
    for name in attached.modules:
        wanted = sum(w * part.delta(name) for w, part in zip(WEIGHTS, parts, strict=True) if name in part.modules)
        torch.testing.assert_close(attached.delta(name), wanted, rtol=1e-4, atol=1e-5)
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(stock), logits(attached.model), rtol=1e-3, atol=1e-4)


def test_dare_keeps_a_share_and_scales_it(base: Path, peft_folders: list[Path], tmp_path: Path) -> None:
    alone = combined(base, peft_folders[0])
    folders = []
    for seed in (0, 0, 1):
        out = tmp_path / f"dare-{len(folders)}"
        combine_adapters(
            peft_folders, out, how="dare", weights=(1.0, 0.0), rank=24, density=0.25, seed=seed, base_model=str(base)
        )
        folders.append(combined(base, out))
    kept = 0.0
    for name in alone.modules:
        whole, part = alone.delta(name), folders[0].delta(name)
        zero = part.abs() < 1e-4 * whole.abs().max()
        torch.testing.assert_close(part[~zero], 4 * whole[~zero], rtol=1e-3, atol=1e-5)
        kept += (~zero).float().mean().item() / len(alone.modules)
        assert torch.equal(part, folders[1].delta(name))
        assert not torch.equal(part, folders[2].delta(name))
    assert kept == pytest.approx(0.25, abs=0.03)


def test_weights_by_default(base: Path, peft_folders: list[Path], tmp_path: Path) -> None:
    combine_adapters(peft_folders, tmp_path / "cat", how="cat", base_model=str(base))
    combine_adapters(peft_folders, tmp_path / "ties", how="ties", rank=24, density=1.0, base_model=str(base))
    both = [combined(base, folder) for folder in peft_folders]
    mean, elected = combined(base, tmp_path / "cat"), combined(base, tmp_path / "ties")
    for name in mean.modules:
        a, b = (part.delta(name) for part in both)
        torch.testing.assert_close(mean.delta(name), (a + b) / 2, rtol=1e-4, atol=1e-6)
        same = a.sign() == b.sign()
        torch.testing.assert_close(elected.delta(name)[same], ((a + b) / 2)[same], rtol=1e-3, atol=1e-5)


def test_the_folder_says_what_it_is_of(base: Path, peft_folders: list[Path], tmp_path: Path) -> None:
    combine_adapters(peft_folders, tmp_path / "out", how="svd", rank=2, base_model=str(base))
    facts = json.loads((tmp_path / "out" / "combined.json").read_text())
    assert facts["how"] == "svd"
    assert [entry["weight"] for entry in facts["adapters"]] == [0.5, 0.5]
    assert all(0 < error < 1 for error in facts["errors"].values())
    assert {site.rank for site in read_adapter(tmp_path / "out").sites} == {2}


def test_the_commands_words_are_those_of_the_formulas() -> None:
    assert tuple(WAYS) == cli.WAYS
    assert SPARSE == cli.SPARSE


def test_the_command(base: Path, peft_folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, peft_folders)
    assert run_command(["combine", a, b, "-o", str(tmp_path / "out"), "--base", str(base)]) == 0
    shown = capsys.readouterr().out
    assert "4 modules, rank 6" in shown
    assert "exact" in shown
    on_disk.save_adapter(tmp_path / "mora", base, "mora", rank=4, target_modules=TARGETS)
    other = on_disk.save_base(tmp_path / "other", dtype=torch.float64)
    on_disk.save_adapter(tmp_path / "apart", other, target_modules=TARGETS)
    for words, said, code in [
        ([a, "-o", "x"], "takes two or more adapters, got 1", 2),
        ([a, b, "-o", "x", "--weights", "1"], "--weights has 1 number for 2 adapters", 2),
        ([a, b, "-o", "x", "--weights", "1;2"], "such as 0.7,0.3", 2),
        ([a, b, "-o", "x", "--how", "sum"], "--how must be one of cat, svd", 2),
        ([a, b, "-o", "x", "--rank", "3"], "--rank has no effect with --how cat", 2),
        ([a, b, "-o", "x", "--density", "0.3"], "--density has no effect", 2),
        ([a, b, "-o", "x", "--how", "dare", "--density", "2"], "--density must be above 0", 2),
        ([a, b, "-o", str(tmp_path / "out"), "--base", str(base)], "exists", 2),
        ([a, str(tmp_path / "mora"), "-o", str(tmp_path / "x")], "is no product of two thin factors: use svd", 2),
        ([a, str(tmp_path / "apart"), "-o", str(tmp_path / "x"), "--base", str(base)], "fingerprint", None),
        ([a, str(tmp_path / "nothing"), "-o", str(tmp_path / "x")], "neither a run nor an adapter folder", 2),
    ]:
        found = run_command(["combine", *words, *([] if "--base" in words else ["--base", str(base)])])
        assert found == code if code else found != 0
        assert said in " ".join(capsys.readouterr().err.split()), words
        assert not (tmp_path / "x").exists()
