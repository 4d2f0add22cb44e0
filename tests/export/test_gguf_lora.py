"""A LoRA for llama.cpp: the factors that the converter gets, what it may do to them, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import on_disk
import pytest
import torch

from lrft.adapters.peft_import import placed, read_any
from lrft.cli.main import run_command
from lrft.errors import UsageError
from lrft.export.gguf_lora import factors_of
from lrft.export.lay_out_lora import laid_out
from lrft.export.merge_places import names_in
from lrft.model.load import load_skeleton
from lrft.model.stored import Stored
from lrft.model.weights import weight_files


def factors(adapter: Path, base: Path) -> dict[str, torch.Tensor]:
    skeleton = load_skeleton(base)
    return factors_of(placed(read_any(adapter), skeleton), Stored(skeleton, names_in(weight_files(base))))


@pytest.mark.parametrize(("name", "words"), [("llama", "lora"), ("gpt2", "lora"), ("llama", "pissa")])
def test_the_factors_multiply_to_the_update_of_each_tensor_as_it_is_stored(
    name: str, words: str, tmp_path: Path
) -> None:
    base = on_disk.save_base(tmp_path / "base", name)
    attached = on_disk.save_adapter(tmp_path / "adapter", base, words, alpha=6)
    found, before = factors(tmp_path / "adapter", base), on_disk.tensors(base)
    for site, adapter in attached.modules.items():
        key = f"{site}.weight"
        update = found[f"{key}.B"] @ found[f"{key}.A"]
        assert torch.allclose(update, adapter.delta_weight(), atol=1e-5)
        stored = update.T if f"{key}.transposed" in found else update
        assert stored.shape == before[key].shape
    assert len([key for key in found if key.endswith(".A")]) == len(attached.modules)


def test_what_a_lora_of_llama_cpp_is_not_is_refused(tmp_path: Path) -> None:
    base = on_disk.save_base(tmp_path / "base")
    for number, words in enumerate(["dora", "mora"]):
        on_disk.save_adapter(tmp_path / str(number), base, words)
        with pytest.raises(UsageError, match=f"{words}: a LoRA of llama.cpp cannot represent"):
            factors(tmp_path / str(number), base)
    on_disk.save_adapter(tmp_path / "lora", base)
    saved = read_any(tmp_path / "lora")
    whole = replace(saved, info={**saved.info, "modules_to_save": ["score"]})
    with pytest.raises(UsageError, match="trained in full"):
        factors_of(whole, Stored(load_skeleton(base), names_in(weight_files(base))))


class Converter:
    """What laid_out asks of llama.cpp's object, with a change to weights that is given."""

    def __init__(self, change: Any, names: tuple[str, ...] = ("blk.3.attn_q.weight",)) -> None:
        self.change, self.names = change, names

    def filter_tensors(self, item: tuple[str, Any]) -> tuple[str, Any] | None:
        return item

    def modify_tensors(self, tensor: torch.Tensor, name: str, block: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        assert block == 3
        yield from ((new, self.change(tensor)) for new in self.names)


A, B = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16.0).reshape(8, 2) - 7
KEY = "model.layers.3.self_attn.q_proj.weight"


def test_rows_are_rearranged_as_the_weight_s_are() -> None:
    order = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    for change, transposed in ((lambda w: w[order], {}), (lambda w: w.T[order], {f"{KEY}.transposed": torch.ones(1)})):
        [(name, a, b)] = laid_out(Converter(change), {f"{KEY}.A": A, f"{KEY}.B": B, **transposed})
        assert name == "blk.3.attn_q.weight"
        assert torch.equal(b @ a, (B @ A)[order])


@pytest.mark.parametrize(
    "converter",
    [
        Converter(lambda w: w.flip(-1)),  # columns, which B has others of
        Converter(lambda w: w + 1),
        Converter(lambda w: w, ("blk.3.attn_q.weight", "blk.3.attn_k.weight")),
        Converter(lambda w: w, ()),
    ],
)
def test_what_is_more_than_another_order_of_rows_is_refused(converter: Converter) -> None:
    with pytest.raises(SystemExit, match=r"LoRA on model.layers.3.self_attn.q_proj.weight is not supported"):
        list(laid_out(converter, {f"{KEY}.A": A, f"{KEY}.B": B}))


def test_what_the_converter_says_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A converter that knows no model, in the process that it runs in."""
    base = on_disk.save_base(tmp_path / "base")
    on_disk.save_adapter(tmp_path / "adapter", base)
    (tmp_path / "convert_hf_to_gguf.py").write_text(
        "class ModelBase:\n    load_hparams = lambda *given: {}\n"
        "class ModelType:\n    TEXT = 1\n"
        "import types\ngguf = types.SimpleNamespace()\n"
        "def get_model_architecture(*given):\n    return 'XForCausalLM'\n"
        "def get_model_class(*given):\n    raise NotImplementedError\n"
    )
    words = ["export", str(tmp_path / "adapter"), "--to", "gguf-lora", "-o", str(tmp_path / "out")]
    assert run_command([*words, f"converter={tmp_path}"]) == 2
    assert "converter does not support this model: Model XForCausalLM is not supported" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))]
