"""`lrft inspect`: norms, ranks, spectra and intruder dimensions, against dense decompositions and against PEFT."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from cases import CASES, NOT_MERGEABLE, ONE_FOR_EACH_FORM_AND_BASE, attach, late
from memory import Synthetic, run, used
from on_disk import save_adapter, save_base, tensors
from peft import LoraConfig, PeftModel, PolyConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from runs import Place
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrft.adapters import storage
from lrft.adapters.adapter import Factors
from lrft.cli.main import run_command
from lrft.errors import CheckFailed, MissingError, UsageError
from lrft.export.merge import merge_adapter
from lrft.inspection import render, spectra
from lrft.inspection.inspect import Inspection, ModuleReport, inspect_adapter
from lrft.model import linear
from lrft.model.weights import weight_files
from lrft.tracking import console

SITE = "model.layers.0.self_attn.q_proj"
TALL = "model.layers.0.mlp.up_proj"  # 44 x 24: its columns span only a part of the outputs


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


def by_name(found: Inspection) -> dict[str, ModuleReport]:
    return {one.name: one for one in found.modules}


def dense_cosines(W0: np.ndarray, W: np.ndarray, top: int) -> np.ndarray:
    before, after = (np.linalg.svd(w.astype(np.float64), full_matrices=False)[0] for w in (W0, W))
    return np.abs(before.T @ after[:, :top]).max(axis=0)


# Against a dense decomposition of merged minus base


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("words", ["lora", "pissa", "dora", "mora", "hra"])
def test_as_numpy_sees_what_merge_wrote(words: str, name: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", name)
    attached = save_adapter(tmp_path / "adapter", base, words, size=0.1)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    before, after = tensors(base), tensors(tmp_path / "merged")
    found = by_name(inspect_adapter(tmp_path / "adapter", top=7, epsilon=0.9))
    assert list(found) == list(attached.modules)
    for site, one in found.items():
        turned = attached.modules[site].site.transposed
        W0, W = (linear.as_rows(kept[f"{site}.weight"], turned).double().numpy() for kept in (before, after))
        values = np.linalg.svd(W - W0, compute_uv=False)
        assert (one.d, one.k) == W.shape
        assert one.update.norm == pytest.approx(np.linalg.norm(W - W0), rel=1e-4)
        assert one.relative == pytest.approx(np.linalg.norm(W - W0) / np.linalg.norm(W0), rel=1e-4)
        kept = one.update.values
        assert kept == pytest.approx(values[: len(kept)], rel=1e-4, abs=1e-5 * values[0])
        assert one.update.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-3)
        assert one.used_rank == (values > 0.01 * values[0]).sum()
        shares = values[values > 1e-4 * values[0]] / values.sum()
        assert one.update.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=2e-2)
        for spectrum, matrix in ((one.base, W0), (one.merged, W)):
            assert spectrum.values == pytest.approx(np.linalg.svd(matrix, compute_uv=False), rel=1e-4)
            assert spectrum.norm == pytest.approx(np.linalg.norm(matrix), rel=1e-5)
        cosines = dense_cosines(W0, W, 7)
        assert one.cosines == pytest.approx(cosines, abs=1e-3)
        assert one.intruders == (cosines < 0.9).sum()
    # Reflections of the inputs leave every left singular vector where it is.
    assert (sum(one.intruders for one in found.values()) > 0) == (words != "hra")


def test_the_effective_rank_of_known_spectra() -> None:
    assert spectra.effective_rank(torch.ones(5)) == pytest.approx(5)
    assert spectra.effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert spectra.stable_rank(5**0.5, 2.0) == pytest.approx(1.25)
    assert spectra.used_rank(torch.tensor([1.0, 0.011, 0.009])) == 2


@pytest.mark.parametrize(("d", "k", "r"), [(30, 20, 3), (20, 30, 25), (5, 40, 8)])
def test_values_of_a_product_without_the_product(d: int, k: int, r: int) -> None:
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(d, r, generator=generator), torch.randn(r, k, generator=generator)
    values = spectra.values_of_product(Factors(B, A, -0.5))
    dense = np.linalg.svd(-0.5 * (B.double() @ A.double()).numpy(), compute_uv=False)
    assert values.numpy() == pytest.approx(dense[: len(values)], rel=1e-9, abs=1e-9)
    assert not dense[len(values) :].round(9).any()


# Every method


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each case of each model, attached, disturbed and saved: MODEL/CASE/, and the base in MODEL/base."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("llama", "gpt2"):
        tiny.save(tiny.make(name), folder / name / "base")
    return folder


def made(saved: Path, name: str, case: str) -> tuple[Path, Any]:
    attached = attach(tiny.make(name), case)
    late(attached, size=0.1)
    folder = saved / name / str(list(CASES).index(case))
    folder.mkdir(exist_ok=True)
    storage.save_adapter(attached, folder, base={"name": str(saved / name / "base")})
    return folder, attached


@ONE_FOR_EACH_FORM_AND_BASE
def test_the_norm_is_that_of_weight_minus_base(case: str, model_name: str, saved: Path) -> None:
    folder, attached = made(saved, model_name, case)
    if case.startswith(NOT_MERGEABLE):
        with pytest.raises(UsageError, match="not mergeable"):
            inspect_adapter(folder)
        return
    found = by_name(inspect_adapter(folder))
    assert found.keys() == attached.modules.keys()
    for site, layer in attached.layers().items():
        W0 = linear.dense(layer.base)
        with torch.no_grad():
            update = layer.adapter.weight(W0) - W0
        assert found[site].update.norm == pytest.approx(update.norm().item(), rel=1e-4), site
        assert found[site].rank == layer.adapter.site.rank
        assert found[site].depth == layer.adapter.site.depth
    if not (folder / "adapter_config.json").is_file():
        return
    (folder / "lrft.json").unlink()  # what is left is a folder of stock PEFT
    for site, one in by_name(inspect_adapter(folder)).items():
        assert one.update.norm == pytest.approx(found[site].update.norm, rel=1e-4), site
        assert one.merged.values == pytest.approx(found[site].merged.values, rel=1e-4, abs=1e-6)
        assert one.cosines == pytest.approx(found[site].cosines, abs=1e-3)


def test_an_adapter_that_does_nothing(tmp_path: Path) -> None:
    for words in ("lora", "dora", "mora", "hra", "lorma"):
        base = save_base(tmp_path / words / "base")
        save_adapter(tmp_path / words / "adapter", base, words, size=0)
        found = inspect_adapter(tmp_path / words / "adapter")
        for one in found.modules:
            assert one.update.norm <= 1e-6 * one.base.norm
            assert (one.used_rank, one.intruders) == (0, 0)
        assert render.picture(found).startswith(b"\x89PNG")


# Intruders


def planted(tmp_path: Path, site: str, direction: Tensor, size: float) -> ModuleReport:
    """The report on an adapter of rank 1 that adds `size` times the base's norm along `direction`."""
    base = save_base(tmp_path / "base")
    attached = save_adapter(tmp_path / "first", base, size=0, target_modules=[site], rank=1)
    tall = attached.modules[site]
    with torch.no_grad():
        W0 = load_file(base / "model.safetensors")[f"{site}.weight"]
        right = torch.linalg.svd(W0)[2][0]  # along the first input direction: what is large there can only grow
        tall.A.copy_(right[None])
        tall.B.copy_((size * torch.linalg.matrix_norm(W0, 2) / tall.site.scale * direction)[:, None])
    folder = tmp_path / "planted"
    folder.mkdir()
    storage.save_adapter(attached, folder, base={"name": str(base)})
    return inspect_adapter(folder).modules[0]


def left_vectors(site: str) -> Tensor:
    model = tiny.make("llama")
    return torch.linalg.svd(model.get_submodule(site).weight.detach())[0]


def test_a_large_new_direction_is_exactly_one_intruder(tmp_path: Path) -> None:
    U = left_vectors(SITE)
    spread = U[:, 12:].sum(dim=1) / 12**0.5  # a little of each of the last twelve: near none of them
    found = planted(tmp_path / "square", SITE, spread, 5.0)
    assert found.intruders == 1
    assert found.cosines[0] == pytest.approx(12**-0.5, abs=0.05)
    found = planted(tmp_path / "tall", TALL, left_vectors(TALL)[:, -1], 5.0)  # outside all that the base reaches
    assert found.intruders == 1
    assert found.cosines[0] < 0.25


def test_a_small_new_direction_is_none(tmp_path: Path) -> None:
    assert planted(tmp_path, TALL, left_vectors(TALL)[:, -1], 0.01).intruders == 0


def test_a_direction_of_the_base_made_larger_is_none(tmp_path: Path) -> None:
    found = planted(tmp_path, SITE, left_vectors(SITE)[:, 0], 5.0)
    assert found.intruders == 0
    assert found.update.stable_rank == pytest.approx(1)
    assert (found.used_rank, found.rank) == (1, 1)


def test_the_base_s_own_singular_values_may_change_as_they_like() -> None:
    W = torch.randn(12, 20, generator=torch.Generator().manual_seed(3))
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    changed = U @ torch.diag(S.flip(0) + torch.arange(12) ** 2) @ Vh
    before, after = spectra.decomposed(W).vectors, spectra.decomposed(changed).vectors
    assert spectra.cosines(before, after[:, :10]).tolist() == pytest.approx([1.0] * 10, abs=1e-4)


@pytest.mark.parametrize(("d", "k"), [(12, 20), (20, 12)])
def test_scaling_everything_changes_nothing_and_no_direction_is_made_up(d: int, k: int) -> None:
    generator = torch.Generator().manual_seed(4)
    W = torch.randn(d, 5, generator=generator) @ torch.randn(5, k, generator=generator)  # rank 5: no more directions
    more = W + torch.randn(d, 1, generator=generator) @ torch.randn(1, k, generator=generator) * 20
    base = spectra.decomposed(W)
    U, S, V = base.vectors, base.values, spectra.decomposed(more).vectors
    assert (U.shape, V.shape, S.shape) == ((d, 5), (d, 6), (12,))
    assert torch.allclose(U.T @ U, torch.eye(5, dtype=torch.float64), atol=1e-6)
    cosines = spectra.cosines(U, V)
    scaled = spectra.cosines(spectra.decomposed(1e-3 * W).vectors, spectra.decomposed(1e-3 * more).vectors)
    assert torch.allclose(cosines, scaled, atol=1e-6)
    assert spectra.cosines(U[:, :0], V).tolist() == [0.0] * 6


def test_top_and_epsilon_decide(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, size=0.3, target_modules=["q_proj"])
    counts = [
        inspect_adapter(tmp_path / "adapter", top=top, epsilon=epsilon).total.intruders
        for top, epsilon in ((10, 0.0), (1, 1.0), (3, 1.0), (100, 1.0))
    ]
    assert counts == [0, 2, 6, 48]


# Folders of stock PEFT


def peft_folder(folder: Path, name: str, base: Path, **config: Any) -> PeftModel:
    """A LoRA made, disturbed and saved by PEFT itself."""
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **config))
    tiny.disturb([p for n, p in model.named_parameters() if p.requires_grad], size=0.1)
    model.save_pretrained(folder)
    return model


PEFT_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "patterns": (
        "llama",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"down_proj": 3, r"layers\.1\.self_attn\.q_proj": 5},
            "alpha_pattern": {"^model.layers.0.mlp.up_proj": 7, "q_proj": 9},
            "use_rslora": True,
        },
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    # PEFT keeps the word of the last layer: here that of a linear one, although most are Conv1D, some of them square.
    "conv1d-and-linear": ("gpt2", {"target_modules": ["c_proj", "lm_head"], "fan_in_fan_out": True}),
    "gaussian": ("llama", {"target_modules": ["v_proj"], "init_lora_weights": "gaussian"}),
}


@pytest.mark.filterwarnings("ignore")  # PEFT's own, on tied weights and on fan_in_fan_out
@pytest.mark.parametrize("case", PEFT_CONFIGS)
def test_a_folder_of_peft_is_what_peft_says_it_is(case: str, tmp_path: Path) -> None:
    name, config = PEFT_CONFIGS[case]
    base = save_base(tmp_path / "base", name)
    model = peft_folder(tmp_path / "adapter", name, base, r=4, lora_alpha=6, **config)
    if case == "conv1d-and-linear":
        kept = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert kept["fan_in_fan_out"] is False
        drop(tmp_path / "adapter", "lm_head")  # the base stores it tied to the embedding, under that name
    found = by_name(inspect_adapter(tmp_path / "adapter"))
    layers: dict[str, Any] = {n.removeprefix("base_model.model."): m for n, m in model.named_modules()}
    assert found
    for site, one in found.items():
        stored = layers[site].get_delta_weight("default").detach()
        delta = linear.as_rows(stored, linear.is_transposed(layers[site].get_base_layer())).double()
        W0 = linear.dense(layers[site].get_base_layer()).double()
        assert (one.d, one.k, one.rank) == (*delta.shape, layers[site].r["default"]), site
        assert one.update.norm == pytest.approx(delta.norm().item(), rel=1e-5), site
        assert one.update.values == pytest.approx(np.linalg.svd(delta, compute_uv=False)[: one.rank], rel=1e-4)
        assert one.cosines == pytest.approx(dense_cosines(W0.numpy(), (W0 + delta).numpy(), 10), abs=1e-3), site


def drop(folder: Path, word: str) -> None:
    """Take the tensors whose names hold `word` out of a PEFT folder."""
    path = folder / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if word not in n}, path, {"format": "pt"})


@pytest.mark.parametrize("epsilon", [0.5, 0.95])
def test_the_intruders_are_those_of_peft(epsilon: float, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    model = peft_folder(tmp_path / "adapter", "llama", base, r=2, lora_alpha=64, target_modules=["q_proj", "up_proj"])
    said: list[str] = []
    reduce_intruder_dimension(model, top_k=6, threshold_epsilon=epsilon, logging_sink=said.append)
    counts = {
        line.split(":")[0].removeprefix("base_model.model."): int((line.split()[-1]).replace("intruders", "0"))
        for line in said
        if "ntruders" in line
    }
    found = by_name(inspect_adapter(tmp_path / "adapter", top=6, epsilon=epsilon))
    assert {name: one.intruders for name, one in found.items()} == counts
    assert sum(counts.values()) > 0


def test_dora_of_peft(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    model = peft_folder(tmp_path / "adapter", "llama", base, r=2, target_modules=["q_proj"], use_dora=True)
    found = by_name(inspect_adapter(tmp_path / "adapter"))
    before, merged = tensors(base), model.merge_and_unload().state_dict()
    for site, one in found.items():
        difference = merged[f"{site}.weight"] - before[f"{site}.weight"]
        assert one.update.norm == pytest.approx(difference.norm().item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_is_no_update_of_a_linear_layer_is_named(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    peft_folder(tmp_path / "adapter", "llama", base, r=2, target_modules=["q_proj", "embed_tokens"])
    found = inspect_adapter(tmp_path / "adapter")
    assert {one.role for one in found.modules} == {"q_proj"}
    assert any("lora_embedding_A" in name for name in found.left_out)
    assert "not inspected" in "\n".join(render.lines(found))
    drop(tmp_path / "adapter", "q_proj")
    with pytest.raises(UsageError, match="adapts no linear layer"):
        inspect_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("words", ["lora", "vera", "dora"])
def test_several_modules_at_once_give_the_same(words: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="10KB")
    save_adapter(tmp_path / "adapter", base, words)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            seen: list[tuple[int, int]] = []
            found.append(inspect_adapter(tmp_path / "adapter", progress=lambda *at, seen=seen: seen.append(at)))
            assert seen == [(at + 1, 14) for at in range(14)]
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(found[0].modules, found[1].modules, strict=True):
        assert one.name == other.name
        assert one.update.values == pytest.approx(other.update.values, rel=1e-5, abs=1e-9)
        assert one.cosines == pytest.approx(other.cosines, abs=1e-5)


# Groups, the terminal, files


def test_groups_add_up(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, size=0.2)
    found = inspect_adapter(tmp_path / "adapter")
    assert list(found.by_depth) == [0, 1]
    assert set(found.by_role) == {one.name.rsplit(".", 1)[-1] for one in found.modules}
    for groups in (found.by_role, found.by_depth):
        assert sum(group.modules for group in groups.values()) == len(found.modules)
        assert sum(group.intruders for group in groups.values()) == found.total.intruders
        assert sum(group.norm**2 for group in groups.values()) == pytest.approx(found.total.norm**2)
    before, merged = tensors(base), tmp_path / "merged"
    merge_adapter(tmp_path / "adapter", merged)
    squares = [(after - before[name]).double().pow(2).sum() for name, after in tensors(merged).items()]
    assert found.total.norm == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-4)
    sizes = [before[f"{one.name}.weight"].double().pow(2).sum() for one in found.modules]
    assert found.total.relative == pytest.approx(found.total.norm / float(sum(sizes)) ** 0.5, rel=1e-4)


def test_a_run_gets_its_files_and_its_table(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train()
    capsys.readouterr()
    assert run_command(["inspect", str(run)]) == 0
    said = capsys.readouterr().out
    kept = json.loads((run / "inspect.json").read_text())
    picture = (run / "inspect.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1000, 1100)
    assert len(kept["modules"]) == 14
    ordered = sorted(kept["modules"], key=lambda one: -one["relative"])
    assert said.index(ordered[0]["name"]) < said.index(ordered[-1]["name"])
    assert ordered[6]["name"] not in said, "of many modules the ends are shown"
    for word in ("q_proj", "by depth", "intruders", f"{run}"):
        assert word in said
    table = said[said.index("by role") :].split("\n\n")[0].split("\n")
    assert len({len(line) for line in table[1:]}) == 1, "columns are aligned"
    assert run_command(["inspect", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == kept
    assert run_command(["inspect", str(run / "last")]) == 0, "an adapter inside a run"


def test_an_adapter_alone_is_shown_and_written_only_where_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    before = sorted(tmp_path.rglob("*"))
    assert run_command(["inspect", str(tmp_path / "adapter"), "--base", str(base)]) == 0
    assert "-o FOLDER" in capsys.readouterr().out
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "cache" not in str(path)] == []
    out = tmp_path / "new" / "place"
    assert run_command(["inspect", str(tmp_path / "adapter"), "-o", str(out), "--top", "3", "--epsilon", "0.9"]) == 0
    assert {path.name for path in out.iterdir()} == {"inspect.json", "inspect.png"}
    kept = json.loads((out / "inspect.json").read_text())
    assert (kept["top"], kept["epsilon"]) == (3, 0.9)
    assert all(len(one["cosines"]) == 3 for one in kept["modules"])


def test_progress_is_told_on_the_error_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.0)
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    capsys.readouterr()
    assert run_command(["inspect", str(tmp_path / "adapter"), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == "inspecting: 1 of 2\n"
    json.loads(said.out)


def test_a_layer_outside_the_blocks_has_its_place(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    found = inspect_adapter(tmp_path / "adapter")
    assert found.by_depth == {}
    assert "by depth" not in render.lines(found)
    assert render.picture(found).startswith(b"\x89PNG")


# What is refused


def refused(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", *words]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_what_is_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path / "base")
    for path in (base, tmp_path / "nowhere", base / "config.json"):
        refused([str(path)], 2, "neither a run nor an adapter", capsys)
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    refused([str(tmp_path / "adapter"), "-o", str(base / "config.json")], 2, "is a file", capsys)
    refused([str(tmp_path / "adapter"), "--top", "0"], 2, "--top", capsys)
    refused([str(tmp_path / "adapter"), "--epsilon", "1.5"], 2, "--epsilon", capsys)


def test_a_base_that_is_not_there_or_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path / "base")
    adapter = tmp_path / "adapter"
    save_adapter(adapter, base, target_modules=["q_proj"])
    refused([str(adapter), "--base", str(tmp_path / "bsae")], 5, "there is no folder", capsys)
    other = tiny.save(tiny.llama(layers=2), tmp_path / "other")
    refused([str(adapter), "--base", str(other)], 4, "--accept-other-base", capsys)
    assert run_command(["inspect", str(adapter), "--base", str(other), "--accept-other-base"]) == 0
    capsys.readouterr()
    narrow = tiny.make("gpt2")
    refused(
        [str(adapter), "--base", str(tiny.save(narrow, tmp_path / "g")), "--accept-other-base"], 4, "no tensor", capsys
    )
    stored = load_file(other / "model.safetensors")
    save_file({**stored, f"{SITE}.weight": torch.zeros(24, 23)}, other / "model.safetensors", {"format": "pt"})
    refused([str(adapter), "--base", str(other), "--accept-other-base"], 4, "(24, 23) in the base, 24 x 24", capsys)
    shutil.rmtree(base)
    refused([str(adapter)], 5, "--base", capsys)


def test_numbers_that_are_none_and_files_that_end_early(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = tmp_path / "adapter"
    peft_folder(adapter, "llama", base, r=2, target_modules=["q_proj"])
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    stored = load_file(adapter / "adapter_model.safetensors")
    for bad in (torch.nan, torch.inf):
        name, tensor = next(iter(stored.items()))
        save_file({**stored, name: torch.full_like(tensor, bad)}, adapter / "adapter_model.safetensors")
        with pytest.raises(CheckFailed, match="not finite"):
            inspect_adapter(adapter)
    save_file({n: 1e30 * torch.ones_like(t) for n, t in stored.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckFailed, match="not finite"):
        inspect_adapter(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckFailed, match=r"adapter_model.safetensors is not a complete"):
        inspect_adapter(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(whole)
    weights = load_file(base / "model.safetensors")
    weights[f"{SITE}.weight"][3, 3] = torch.nan
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckFailed, match=f"{SITE}.weight holds values that are not finite"):
        inspect_adapter(adapter)
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckFailed, match="not a complete"):
        inspect_adapter(adapter)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"peft_type": "POLY"}, UsageError, "type POLY"),
        ({"peft_type": None}, UsageError, "Folders of PEFT can be read of the types"),
        ({"init_lora_weights": "pissa"}, UsageError, "modifies the base weights"),
        ({"arrow_config": {"a": 1}}, UsageError, "arrow_config is set"),
        ({"r": 3}, CheckFailed, "says rank 3, its tensors 2"),
        ({"rank_pattern": {"q_proj": 5}}, CheckFailed, "says rank 5"),
        ({"rank_pattern": {"(": 5}}, CheckFailed, "adapter"),
        ({"rank_pattern": [1]}, CheckFailed, "adapter"),
        ({"lora_alpha": "many"}, CheckFailed, "many"),
        ({"lora_alpha": float("nan")}, CheckFailed, "alpha nan"),
        ({"base_model_name_or_path": None}, MissingError, "does not record its base model"),
    ],
)
def test_configurations_of_peft_that_cannot_be_read(
    change: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base")
    peft_folder(tmp_path / "adapter", "llama", base, r=2, target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error) as caught:
        inspect_adapter(tmp_path / "adapter")
    assert said in "\n".join(caught.value.lines())  # type: ignore[attr-defined]


def test_other_kinds_pickles_and_half_a_pair(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    poly: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), PolyConfig(target_modules=["q_proj"]))
    poly.save_pretrained(tmp_path / "poly")
    with pytest.raises(UsageError, match="type POLY"):
        inspect_adapter(tmp_path / "poly")
    adapter = tmp_path / "adapter"
    peft_folder(adapter, "llama", base, r=2, target_modules=["q_proj"])
    drop(adapter, "layers.1.self_attn.q_proj.lora_B")
    with pytest.raises(CheckFailed, match=r"layers.1.self_attn.q_proj has only lora_A"):
        inspect_adapter(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UsageError, match="pickle"):
        inspect_adapter(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckFailed, match=r"adapter_model.safetensors is missing"):
        inspect_adapter(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckFailed, match="does not describe"):
        inspect_adapter(adapter)


def test_an_altered_adapter_of_lrft(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(CheckFailed, match="checksum"):
        inspect_adapter(tmp_path / "adapter")
    assert weight_files(base)


@pytest.mark.slow
def test_memory_is_that_of_a_few_modules(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Synthetic(tmp_path, layers=30, width=512, inner=2560)
    assert model.size > 280e6
    adapter = model.adapter("lora", target_modules=["v_proj"])
    inspect = (
        "from pathlib import Path\n"
        "from lrft.inspection.inspect import inspect_adapter\n"
        "inspect_adapter(Path(sys.argv[1]))"
    )
    assert used(run(inspect, adapter, model.out, cache="fresh")) < 120e6
    shutil.rmtree(tmp_path)
