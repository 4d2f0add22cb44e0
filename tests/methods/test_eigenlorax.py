"""EigenLoRAx: the bases against the given adapters, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import lrft
from lrft.errors import RecipeError

PREFIX = "base_model.model."


def attach(folder: Path | str, components: int = 5, random: int = 2, **more: Any) -> Any:
    options = {"adapters": str(folder), "components": components, "random": random}
    return lrft.attach(tiny.make("llama").double(), {"method": {"eigenlorax": options}, "rank": 3, **more})


@pytest.fixture
def given(tmp_path: Path) -> Path:
    shutil.copytree(tiny.loras(), tmp_path / "given")
    return tmp_path / "given"


def test_the_bases_are_principal_directions_and_random_ones_beside_them() -> None:
    attached, files = attach(tiny.loras()), sorted(Path(tiny.loras()).rglob("*.safetensors"))
    assert len(files) == 2
    for name, own in attached.modules.items():
        for word, basis in (("A", own.A_out.T), ("B", own.B_out)):
            found = [load_file(file)[f"{PREFIX}{name}.lora_{word}.weight"].double() for file in files]
            X = torch.cat([one.T if word == "A" else one for one in found], dim=1)
            X = X - X.mean(dim=1, keepdim=True)
            best = torch.linalg.eigh(X @ X.T).eigenvectors[:, -5:]
            assert torch.allclose(basis[:, :5] @ basis[:, :5].T, best @ best.T, atol=1e-6), name
            assert torch.allclose(basis.T @ basis, torch.eye(7, dtype=torch.float64), atol=1e-10), name


def test_the_update_is_the_chain_within_the_bases() -> None:
    attached = attach(tiny.loras())
    assert not any(attached.delta(name).any() for name in attached.modules)
    tiny.disturb(list(attached.trained().values()))
    for name, layer in attached.layers().items():
        own = layer.adapter
        dW = own.B_out @ own.B_in @ own.A_in @ own.A_out
        assert torch.allclose(attached.delta(name), dW, atol=1e-12)
        assert torch.linalg.matrix_rank(dW) == 3
        assert (dW - own.B_out @ own.B_out.T @ dW @ own.A_out.T @ own.A_out).abs().max() < 1e-10
        x = torch.randn(4, own.site.k, dtype=torch.float64)
        assert torch.allclose(layer(x), layer.base(x) + x @ dW.T, atol=1e-10)
    assert {name.rpartition(".")[2] for name in attached.trained()} == {"A_in", "B_in"}


def test_a_given_adapter_lies_within_the_bases_once_they_hold_all_directions() -> None:
    """Six columns of mean zero or not: five directions about the mean, and the mean is lost unless it lies in them."""
    attached = attach(tiny.loras(), components=6, random=0)
    file = next(Path(tiny.loras()).rglob("*.safetensors"))
    for name, own in attached.modules.items():
        B = load_file(file)[f"{PREFIX}{name}.lora_B.weight"].double()
        centred = B - torch.cat(
            [load_file(f)[f"{PREFIX}{name}.lora_B.weight"].double() for f in Path(tiny.loras()).rglob("*.safetensors")],
            1,
        ).mean(dim=1, keepdim=True)
        assert torch.allclose(own.B_out @ own.B_out.T @ centred, centred, atol=1e-5)


def test_what_does_not_fit_is_refused_with_its_file(given: Path) -> None:
    for folder, sentence in (
        ("", "needs LoRAs of the same base: name their folder"),
        (given / "nothing", "finds no adapter_model.safetensors in or below"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            attach(folder)
    with pytest.raises(RecipeError, match=r"6 directions are given for model\.layers\.0\.self_attn\.q_proj: lower"):
        attach(given, components=7)
    with pytest.raises(RecipeError, match="a 12 x 24 layer has 12 directions: lower components or random, 14"):
        attach(given, components=6, random=8)
    one = given / "two" / "adapter_model.safetensors"
    tensors = load_file(one)
    lacking = f"{PREFIX}model.layers.1.self_attn.v_proj.lora_B.weight"
    save_file({name: t for name, t in tensors.items() if name != lacking}, one)
    with pytest.raises(RecipeError, match=r"two/adapter_model.safetensors has no tensor for .*v_proj.lora_B.weight"):
        attach(given)
    save_file({**tensors, lacking: torch.zeros(13, 3)}, one)
    with pytest.raises(RecipeError, match=r"has \(13, 3\) for .*another base, or other target_modules"):
        attach(given)


def test_other_bases_and_broken_files_are_refused(given: Path) -> None:
    config = given / "one" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "another"}))
    with pytest.raises(RecipeError, match=r"adapters of several bases below .*: another, tiny"):
        attach(given)
    config.write_text("{")
    with pytest.raises(RecipeError, match=r"cannot read .*one/adapter_model\.safetensors and its"):
        attach(given)
    config.unlink()
    with pytest.raises(RecipeError, match=r"cannot read .*No such file"):
        attach(given)
    shutil.copy(given / "two" / "adapter_config.json", config)
    (given / "one" / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecipeError, match=r"cannot read .*one/adapter_model\.safetensors"):
        attach(given)
