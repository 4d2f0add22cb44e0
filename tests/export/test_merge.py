"""Merged folders: what changes, what does not, how it is rounded, what is refused, what the check afterwards sees."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
import torch
from on_disk import save_adapter, save_base, tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

import lrft
from lrft.adapters import storage
from lrft.errors import CheckFailed, MissingError, UsageError, exit_code
from lrft.export import merge_shards
from lrft.export.merge import merge_adapter
from lrft.export.merge_places import names_in
from lrft.model.weights import fingerprint, weight_files
from lrft.runs.probe import NEUTRAL, PROBE, probe
from lrft.verification.merge import TOLERANCE, stored_dtype, verify_merge

INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


def stock(folder: Path) -> PreTrainedModel:
    """The folder as plain transformers reads it, in float32."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def test_a_sharded_base_keeps_its_shards_names_and_every_other_byte(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="10KB")
    attached = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "down_proj"], layers=[1])
    seen: list[tuple[int, int]] = []
    result = lrft.merge(tmp_path / "adapter", tmp_path / "out", progress=lambda *at: seen.append(at))
    shards = [path.name for path in weight_files(base)]
    total = len(names_in(weight_files(base)))
    assert len(shards) > 3
    assert [path.name for path in weight_files(tmp_path / "out")] == shards
    assert seen == [(i + 1, total) for i in range(total)]
    assert (tmp_path / "out" / INDEX).read_bytes() == (base / INDEX).read_bytes()
    for shard in shards:
        with safe_open(base / shard, "pt") as before, safe_open(tmp_path / "out" / shard, "pt") as after:
            assert before.keys() == after.keys()
            assert before.metadata() == after.metadata()
    before, after = tensors(base), tensors(tmp_path / "out")
    changed = {n for n in before if not torch.equal(before[n].view(torch.uint8), after[n].view(torch.uint8))}
    assert changed == {f"{name}.weight" for name in attached.modules}
    assert result.sites == 2
    ids = tiny.tokens()
    assert torch.allclose(tiny.logits(stock(tmp_path / "out"), ids), tiny.logits(attached.model, ids), atol=1e-5)


def test_untouched_shards_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="10KB")
    save_adapter(tmp_path / "adapter", base, target_modules=["model.layers.0.mlp.up_proj"])
    merge_adapter(tmp_path / "adapter", tmp_path / "out")
    same = [p.name for p in weight_files(base) if p.read_bytes() == (tmp_path / "out" / p.name).read_bytes()]
    assert len(same) == len(weight_files(base)) - 1


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_tied_model_stays_tied(name: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", name)
    attached = save_adapter(tmp_path / "adapter", base)
    merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert tensors(tmp_path / "out").keys() == tensors(base).keys()
    merged = stock(tmp_path / "out")
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    ids = tiny.tokens()
    assert torch.allclose(tiny.logits(merged, ids), tiny.logits(attached.model, ids), atol=1e-5)


def test_gpt2_saved_from_inside_its_outer_module(tmp_path: Path) -> None:
    """Old hub checkpoints name "h.0.attn.c_attn.weight" what the model calls "transformer.h.0.attn.c_attn"."""
    base = save_base(tmp_path / "base", "gpt2")
    inner = {name.removeprefix("transformer."): t for name, t in load_file(base / "model.safetensors").items()}
    save_file(inner, base / "model.safetensors", {"format": "pt"})
    attached = save_adapter(tmp_path / "adapter", base, target_modules=["c_attn", "c_proj"])
    assert next(iter(attached.modules)) == "transformer.h.0.attn.c_attn"
    merge_adapter(tmp_path / "adapter", tmp_path / "out")
    after = tensors(tmp_path / "out")
    assert after.keys() == inner.keys()
    for name in ("h.0.attn.c_attn", "h.1.mlp.c_proj", "h.1.attn.c_proj"):  # the last one is square
        expected = inner[f"{name}.weight"] + attached.delta(f"transformer.{name}").T
        assert torch.allclose(after[f"{name}.weight"], expected, atol=1e-6), name
    ids = tiny.tokens()
    assert torch.allclose(tiny.logits(stock(tmp_path / "out"), ids), tiny.logits(attached.model, ids), atol=1e-5)


def test_weights_under_other_names_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    stored = load_file(base / "model.safetensors")
    save_file({f"strange_{n.replace('.', '_')}": t for n, t in stored.items()}, base / "model.safetensors")
    with pytest.raises(CheckFailed, match=r"have no tensor for model.layers.0.self_attn.q_proj"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", accept_other_base=True)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("words", ["lora", "dora", "mora"])
def test_rounded_once_and_the_loss_said(stored: torch.dtype, dtype: str | None, words: str, tmp_path: Path) -> None:
    """Trust 30."""
    base = save_base(tmp_path / "base", dtype=stored)
    attached = save_adapter(tmp_path / "adapter", base, words, size=0.003)
    result = merge_adapter(tmp_path / "adapter", tmp_path / "out", dtype=dtype)
    before, after = tensors(base), tensors(tmp_path / "out")
    kept = getattr(torch, dtype) if dtype else stored
    update, lost, shares = 0.0, 0.0, {}
    for name in attached.modules:
        W = before[f"{name}.weight"].float()
        with torch.no_grad():
            exact = attached.modules[name].weight(W)
        assert rounded_once(after[f"{name}.weight"], exact, kept), name
        of_update, of_lost = (exact - W).double().norm() ** 2, (exact - exact.to(kept).float()).double().norm() ** 2
        update, lost = update + of_update.item(), lost + of_lost.item()
        shares[name] = math.sqrt(of_lost / of_update)
    for name, tensor in before.items():
        if name.removesuffix(".weight") not in attached.modules:
            assert torch.equal(after[name], tensor.to(kept)), name
    assert {tensor.dtype for tensor in after.values()} == {kept}
    assert result.update_norm == pytest.approx(math.sqrt(update), rel=1e-5)
    assert result.lost_share == pytest.approx(math.sqrt(lost / update), rel=1e-4)
    assert result.worst_share == pytest.approx(max(shares.values()), rel=1e-4)
    assert shares[result.worst_site] == pytest.approx(max(shares.values()), rel=1e-4)
    assert (result.lost_share == 0) == (kept == torch.float32)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(kept).removeprefix("torch.")
    assert stock(tmp_path / "out").dtype == torch.float32


def test_the_index_tells_the_size_of_another_dtype(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="10KB")
    save_adapter(tmp_path / "adapter", base)
    merge_adapter(tmp_path / "adapter", tmp_path / "out", dtype="bfloat16")
    sizes = [json.loads((folder / INDEX).read_text())["metadata"]["total_size"] for folder in (base, tmp_path / "out")]
    assert sizes[1] * 2 == sizes[0] == sum(t.numel() * 4 for t in tensors(base).values())


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        save_file({**stored, name: stored[name] + 1e5}, base / "model.safetensors", {"format": "pt"})
        folder = tmp_path / f"adapter-{name}"
        save_adapter(folder, base)
        with pytest.raises(CheckFailed, match=rf"{name.removesuffix('.weight')}.* do not fit into float16"):
            merge_adapter(folder, tmp_path / "out", dtype="float16")
        assert not (tmp_path / "out").exists()


def test_a_quantised_matrix_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    stored, name = load_file(base / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    save_file({**stored, name: stored[name].to(torch.int8)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckFailed, match=r"up_proj is stored as torch.int8"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", accept_other_base=True)


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, size=0.0)
    with pytest.raises(CheckFailed, match="update is zero everywhere"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused_with_both_hashes_unless_accepted(tmp_path: Path) -> None:
    """Trust 31."""
    base = save_base(tmp_path / "base")
    attached = save_adapter(tmp_path / "adapter", base)
    stored, name = load_file(base / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_bytes((base / "config.json").read_bytes())
    stored[name][0, 0] += 1e-3
    save_file(stored, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckFailed) as caught:
        merge_adapter(tmp_path / "adapter", tmp_path / "out", base_model=str(tmp_path / "other"))
    for folder in (base, tmp_path / "other"):
        assert fingerprint(folder)[:16] in caught.value.message
    assert "--accept-other-base" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()
    result = merge_adapter(
        tmp_path / "adapter", tmp_path / "out", base_model=str(tmp_path / "other"), accept_other_base=True
    )
    assert result.base == tmp_path / "other"
    expected = stored[name] + attached.delta(name.removesuffix(".weight"))
    assert torch.allclose(tensors(tmp_path / "out")[name], expected, atol=1e-7)


def test_the_same_weights_elsewhere_and_sharded_are_the_same_base(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    elsewhere = save_base(tmp_path / "elsewhere", max_shard_size="10KB")
    assert merge_adapter(tmp_path / "adapter", tmp_path / "out", base_model=str(elsewhere)).sites == 14


def test_another_shape_is_refused_even_when_accepted(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    stored, name = load_file(base / "model.safetensors"), "model.layers.1.self_attn.k_proj.weight"
    save_file({**stored, name: stored[name].T.contiguous()}, base / "model.safetensors")
    with pytest.raises(CheckFailed, match=r"k_proj is \(24, 12\) in the base, 12 x 24 in the adapter"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", accept_other_base=True)


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UsageError, match="exists and is not empty"):
            merge_adapter(tmp_path / "adapter", tmp_path / name)
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    merge_adapter(tmp_path / "adapter", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="10KB")
    save_adapter(tmp_path / "adapter", base)
    before = sorted(path.name for path in tmp_path.iterdir())

    def interrupt(done: int, total: int) -> None:
        assert (tmp_path / f".out.unfinished-{os.getpid()}").is_dir()
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", progress=interrupt)
    last = weight_files(base)[-1]
    good = last.read_bytes()
    last.write_bytes(good[:-1])
    with pytest.raises(CheckFailed, match=last.name):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", accept_other_base=True)
    last.write_bytes(good)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    merge_adapter(tmp_path / "adapter", tmp_path / "out")


def test_a_base_of_pickles_is_refused_unopened(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(MissingError, match="only as pickles"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", accept_other_base=True)


def test_a_damaged_adapter_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckFailed, match=r"adapter_model.safetensors"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_stands_beside_the_weights_comes_along_and_the_trained_tokenizer_wins(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    for name in ("tokenizer.json", "notes.txt", "README.md", "pytorch_model.bin"):
        (base / name).write_text("the base's")
    (base / "onnx").mkdir()
    (tmp_path / "adapter" / "tokenizer.json").write_text("trained")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("template")
    merge_adapter(tmp_path / "adapter", tmp_path / "out")
    found = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(found) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "notes.txt",
        "chat_template.jinja", "README.md",
    }  # fmt: skip
    assert found["tokenizer.json"].read_text() == "trained"
    card = found["README.md"].read_text()
    assert card.startswith("---\nbase_model: base\n")
    assert "lora, rank 2, 14 linear layers" in card
    assert str(tmp_path) not in card, "a card is published: no local paths"


# The check afterwards


def merged_with_tokenizer(tmp_path: Path, **more: Any) -> Path:
    """A base with a tokenizer of its own, an adapter without one, and the merge of both."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizers.chatml()
    base = tmp_path / "base"
    model = tiny.llama(vocabulary=len(tokenizer))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0 if p.ndim == 2 else 1.0)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    save_adapter(tmp_path / "adapter", base, **more)
    merge_adapter(tmp_path / "adapter", tmp_path / "out")
    return tmp_path / "out"


def test_the_check_passes_on_neutral_sentences_when_no_run_is_at_hand(tmp_path: Path) -> None:
    out = merged_with_tokenizer(tmp_path)
    found = verify_merge(out, tmp_path / "adapter", base_folder=tmp_path / "base")
    assert found.rows == len(NEUTRAL)
    assert found.tokens > 50
    assert found.relative < 1e-5
    assert found.same_first == 1.0
    assert found.changed > 100 * found.largest
    assert found.tolerance == 1e-4


def test_the_check_uses_the_runs_own_rows_when_there_are_some(tmp_path: Path) -> None:
    out = merged_with_tokenizer(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (tmp_path / "adapter").rename(run / "adapter")
    save_file({f"{i}": torch.arange(3, 5 + i, dtype=torch.int32) for i in range(12)}, run / PROBE)
    rows = probe(run / "adapter", tmp_path / "base")
    assert [len(row) for row in rows] == list(range(2, 14)), "in the order of their numbers: 2 before 10"
    assert verify_merge(out, run / "adapter", base_folder=tmp_path / "base").rows == 12


def change(out: Path, name: str, by: float) -> None:
    stored = load_file(out / "model.safetensors")
    stored[name] = stored[name] + by * torch.randn(stored[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(stored, out / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["layers.1.mlp.down_proj", "embed_tokens", "norm"])
def test_the_check_fails_when_a_merged_tensor_is_another(name: str, tmp_path: Path) -> None:
    out = merged_with_tokenizer(tmp_path)
    change(out, f"model.{name}.weight", 1e-2)
    with pytest.raises(CheckFailed, match="merged and adapter differ by") as caught:
        verify_merge(out, tmp_path / "adapter", base_folder=tmp_path / "base")
    assert exit_code(caught.value) == 4
    assert out.is_dir()
    assert str(out) in (caught.value.hint or "")
    verify_merge(out, tmp_path / "adapter", base_folder=tmp_path / "base", tolerance=1.0)


def test_the_check_fails_when_the_adapter_changes_nothing(tmp_path: Path) -> None:
    out = merged_with_tokenizer(tmp_path)
    idle = tmp_path / "idle"
    save_adapter(idle, tmp_path / "base", size=0.0)
    with pytest.raises(CheckFailed, match="the adapter has no effect") as caught:
        verify_merge(out, idle, base_folder=tmp_path / "base")
    assert exit_code(caught.value) == 4


def test_the_check_fails_when_the_update_is_lost_within_the_tolerance(tmp_path: Path) -> None:
    """A small update is smaller than a bfloat16 merge's tolerance: the base itself would pass as the merge."""
    merged_with_tokenizer(tmp_path, size=0.003)
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    found = verify_merge(tmp_path / "out", adapter, base_folder=base)
    assert found.changed / found.largest_logit < TOLERANCE["bfloat16"]
    with pytest.raises(CheckFailed, match="merging lost the update"):
        verify_merge(base, adapter, base_folder=base, tolerance=TOLERANCE["bfloat16"])


def test_the_check_fails_on_values_that_are_no_numbers(tmp_path: Path) -> None:
    out = merged_with_tokenizer(tmp_path)
    change(out, "model.norm.weight", math.nan)
    with pytest.raises(CheckFailed, match="differ by nan"):
        verify_merge(out, tmp_path / "adapter", base_folder=tmp_path / "base", tolerance=1e9)


def test_the_narrowest_dtype_decides_the_tolerance(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    assert stored_dtype(base) == "float32"
    stored = load_file(base / "model.safetensors")
    for dtype, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        stored["model.norm.weight"] = stored["model.norm.weight"].to(dtype)
        save_file(stored, base / "model.safetensors", {"format": "pt"})
        assert stored_dtype(base) == name


# Piece by piece


def wide_base(folder: Path, dtype: torch.dtype) -> Path:
    """Layers of more than one piece under `small_pieces`, wide enough for the matrix kernels of real ones."""
    config = LlamaConfig(
        hidden_size=192, intermediate_size=320, num_hidden_layers=1, num_attention_heads=4, vocab_size=tiny.VOCABULARY
    )
    torch.manual_seed(0)
    return tiny.save(AutoModelForCausalLM.from_config(config).to(dtype).eval(), folder)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several pieces for each tensor of `wide_base` and three threads to take them."""
    monkeypatch.setattr(merge_shards, "PIECE", 5000)
    monkeypatch.setattr(merge_shards, "COPIED", 1001)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3, "merging gives the threads back that it took"
    torch.set_num_threads(threads)


def rounded_once(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether it is `exact`, rounded once: some processors multiply a part of a matrix in another order."""
    half = 0.5 * torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).tiny
    return found.dtype == dtype and bool(((found.float() - exact).abs() <= half + 2e-7 * exact.abs().max()).all())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("words", ["lora", "dora"])
def test_in_pieces_it_is_the_whole_weight(
    stored: torch.dtype, dtype: str | None, words: str, small_pieces: None, tmp_path: Path
) -> None:
    base = wide_base(tmp_path / "base", stored)
    attached = save_adapter(tmp_path / "adapter", base, words, size=0.01, target_modules=["q_proj", "gate_proj"])
    result = merge_adapter(tmp_path / "adapter", tmp_path / "out", dtype=dtype)
    before, after = tensors(base), tensors(tmp_path / "out")
    kept = getattr(torch, dtype) if dtype else stored
    update, lost = 0.0, 0.0
    for name, tensor in before.items():
        adapter = attached.modules.get(name.removesuffix(".weight"))
        with torch.no_grad():
            exact = adapter.weight(tensor.float()) if adapter else tensor.float()
        assert rounded_once(after[name], exact, kept), name
        update += (exact - tensor.float()).double().norm().item() ** 2
        lost += (exact - exact.to(kept).float()).double().norm().item() ** 2 if adapter else 0.0
    assert result.update_norm == pytest.approx(math.sqrt(update), rel=1e-5)
    assert result.lost_norm == pytest.approx(math.sqrt(lost), rel=1e-4)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_pieces_of_a_transposed_matrix(dtype: str | None, small_pieces: None, tmp_path: Path) -> None:
    base = tmp_path / "base"
    torch.manual_seed(0)
    config = GPT2Config(n_embd=192, n_layer=1, n_head=4, n_positions=16, vocab_size=tiny.VOCABULARY)
    tiny.save(AutoModelForCausalLM.from_config(config).eval(), base)
    attached = save_adapter(tmp_path / "adapter", base, size=0.01)
    merge_adapter(tmp_path / "adapter", tmp_path / "out", dtype=dtype)
    before, after = tensors(base), tensors(tmp_path / "out")
    kept = getattr(torch, dtype) if dtype else torch.float32
    for name, adapter in attached.modules.items():
        with torch.no_grad():
            exact = adapter.weight(before[f"{name}.weight"].T).T
        assert rounded_once(after[f"{name}.weight"], exact, kept), name


def test_an_error_in_any_thread_ends_the_merge_and_leaves_nothing(small_pieces: None, tmp_path: Path) -> None:
    base = wide_base(tmp_path / "base", torch.float32)
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    stored = load_file(base / "model.safetensors")
    threads = threading.active_count()
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"):
        large = stored[f"{name}.weight"].clone()
        large[-1, -1] = 1e5
        save_file({**stored, f"{name}.weight": large}, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckFailed, match=rf"{name}.* do not fit into float16"):
            merge_adapter(tmp_path / "adapter", tmp_path / "out", dtype="float16", accept_other_base=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
        assert threading.active_count() == threads


def test_jobs_are_done_once_each_and_the_first_error_stops_them() -> None:
    done: list[int] = []
    merge_shards.together((partial(done.append, i) for i in range(1000)), workers=4)
    assert sorted(done) == list(range(1000))

    def failing(i: int) -> None:
        if i == 10:
            raise CheckFailed("ten")
        done.append(i)

    done.clear()
    with pytest.raises(CheckFailed, match="ten"):
        merge_shards.together((partial(failing, i) for i in range(10**9)), workers=4)
    assert len(done) < 10**6
    with pytest.raises(CheckFailed, match="ten"):  # an error of the iterator itself
        merge_shards.together((failing(i) or partial(failing, i + 11) for i in range(20)), workers=2)


@pytest.mark.parametrize(("length", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (100, 7), (3, 1)])
def test_spans_cover_everything_once(length: int, most: int) -> None:
    found = list(merge_shards.spans(length, most))
    assert [i for first, last in found for i in range(first, last)] == list(range(length))
    sizes = [last - first for first, last in found]
    assert max(sizes, default=0) <= most
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def test_a_model_that_also_sees_is_adapted_in_its_language_part_and_merged(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": tiny.VOCABULARY}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text | heads, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    base = tiny.save(model, tmp_path / "base")
    attached = lrft.attach(model, {"rank": 2})
    assert len(attached.modules) == 7
    assert all(".language_model." in name for name in attached.modules)
    tiny.disturb(list(attached.trained().values()))
    (tmp_path / "adapter").mkdir()
    storage.save_adapter(attached, tmp_path / "adapter", base={"name": str(base)})
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(tiny.logits(again, tiny.tokens()), tiny.logits(model, tiny.tokens()), atol=1e-4)
