"""Every type of PEFT that lrft has, both ways: folders of stock PEFT are read, and stock PEFT loads what is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from on_disk import save_base
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lrft
from lrft import registry
from lrft.adapters.peft_alone import ALONE
from lrft.adapters.peft_export import PEFT_TENSORS, peft_folder
from lrft.adapters.peft_import import placed, read_any, readers
from lrft.adapters.start_from import start_from
from lrft.errors import CheckFailed, UsageError
from lrft.export.merge import merge_adapter
from lrft.inspection.inspect import inspect_adapter
from lrft.utils import files

T = ["q_proj", "down_proj"]
INVOCATION = tiny.tokens()[0, 6:8].tolist()
# A folder that stock PEFT makes, by what it shows.
MADE: dict[str, Any] = {
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=T),
    "loha-patterns": lambda: peft.LoHaConfig(
        r=3, alpha=5, target_modules=T, rank_pattern={"down_proj": 2}, alpha_pattern={"0.self_attn.q_proj": 7}
    ),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=T, rank_pattern={"down_proj": 9}),
    "lokr-both": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=T, decompose_both=True, decompose_factor=12),
    "hira": lambda: peft.HiraConfig(r=3, target_modules=T, rank_pattern={"down_proj": 2}),
    "hira-some-layers": lambda: peft.HiraConfig(r=3, target_modules=T, layers_to_transform=[1]),
    "ia3": lambda: peft.IA3Config(target_modules=T, feedforward_modules=["down_proj"]),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=T),
    "c3a": lambda: peft.C3AConfig(target_modules=T, block_size=4),
    "fourierft": lambda: peft.FourierFTConfig(target_modules=T, n_frequency=20, random_loc_seed=5, scaling=40.0),
    "vera": lambda: peft.VeraConfig(target_modules=T, r=5, projection_prng_key=3),
    "vera-drawn": lambda: peft.VeraConfig(target_modules=T, r=5, projection_prng_key=3, save_projection=False),
    "pvera": lambda: peft.PveraConfig(target_modules=T, r=5, projection_prng_key=3),
    "miss": lambda: peft.MissConfig(target_modules=T, r=4),
    "miss-mini": lambda: peft.MissConfig(target_modules=T, r=4, mini_r=2, init_weights="mini"),
    "bone": lambda: peft.MissConfig(target_modules=["q_proj", "down_proj"], r=4, init_weights="bat"),
    "gralora": lambda: peft.GraloraConfig(target_modules=T, r=4, alpha=6),
    "gralora-hybrid": lambda: peft.GraloraConfig(target_modules=T, r=4, alpha=6, hybrid_r=2),
    "delora": lambda: peft.DeloraConfig(target_modules=T, r=3, rank_pattern={"q_proj": 2}),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=T, init_r=5, lora_alpha=7, total_step=9, tinit=1, tfinal=2),
    "oft": lambda: peft.OFTConfig(target_modules=T, oft_block_size=4),
    "oft-exact": lambda: peft.OFTConfig(target_modules=T, oft_block_size=2, use_cayley_neumann=False, block_share=True),
    "oft-terms": lambda: peft.OFTConfig(target_modules=T, oft_block_size=4, num_cayley_neumann_terms=7),
    "boft": lambda: peft.BOFTConfig(target_modules=T, boft_block_size=4),
    "road": lambda: peft.RoadConfig(target_modules=T, group_size=4),
    "road-2": lambda: peft.RoadConfig(target_modules=T, group_size=8, variant="road_2"),
    "road-4": lambda: peft.RoadConfig(target_modules=T, group_size=2, variant="road_4"),
    "shira": lambda: peft.ShiraConfig(target_modules=T, r=2, random_seed=4),
    "vblora": lambda: peft.VBLoRAConfig(target_modules=T, r=3, num_vectors=9, vector_length=4),
    "waveft": lambda: peft.WaveFTConfig(target_modules=T, n_frequency=30, random_loc_seed=3),
    "waveft-entries": lambda: peft.WaveFTConfig(target_modules=T, n_frequency=30, use_idwt=False, scaling=2.0),
    "deft": lambda: peft.DeftConfig(target_modules=T, r=3, alpha=6),
    "deft-qr": lambda: peft.DeftConfig(target_modules=T, r=3, decomposition_method="qr"),
    "glora": lambda: peft.GloraConfig(target_modules=T, r=3),
    "supertuning": lambda: peft.SupertuningConfig(target_modules=T, sparsity=0.9),
    "supertuning-small": lambda: peft.SupertuningConfig(target_modules=T, sparsity=0.9, select_top=False),
    "peanut": lambda: peft.PeanutConfig(target_modules=T, r=3, scaling=0.5),
    "peanut-deep": lambda: peft.PeanutConfig(target_modules=T, r=3, depth=2, act_fn="silu"),
    "tinylora": lambda: peft.TinyLoraConfig(target_modules=T, r=3, u=5, projection_seed=7),
    "tinylora-tied": lambda: peft.TinyLoraConfig(target_modules=T, u=4, weight_tying=0.5, save_projection=False),
    "unilora": lambda: peft.UniLoraConfig(target_modules=T, r=3, theta_d_length=40, proj_seed=5),
    "unilora-places": lambda: peft.UniLoraConfig(target_modules=T, theta_d_length=50, save_indices=True),
    "unilora-blocks": lambda: peft.UniLoraConfig(target_modules=T, layers_to_transform=[1], theta_d_length=9),
    "unilora-words": lambda: peft.UniLoraConfig(target_modules=r".*0\.(mlp|self_attn)\.[dk].*", theta_d_length=9),
    "osf": lambda: peft.OSFConfig(target_modules=T, effective_rank=20),
    "osf-patterns": lambda: peft.OSFConfig(target_modules=[*T, "k_proj", "up_proj"], rank_pattern={"mlp": 0.8}),
    "psoft": lambda: peft.PsoftConfig(target_modules=T, r=6),
    "psoft-series": lambda: peft.PsoftConfig(
        target_modules=T, r=4, psoft_alpha=6, use_cayley_neumann=True, psoft_mag_a=False, ab_svd_init="pissa_init"
    ),
    "frod": lambda: peft.FrodConfig(target_modules=T, sparse_rate=0.02, projection_prng_key=4, progressbar=False),
    "frod-wide": lambda: peft.FrodConfig(target_modules=["k_proj", "down_proj"], sparse_rate=0.2, progressbar=False),
    "randlora": lambda: peft.RandLoraConfig(target_modules=T, r=4, randlora_alpha=80),
    "randlora-wide": lambda: peft.RandLoraConfig(
        target_modules=["up_proj", "down_proj", "k_proj"], r=5, randlora_alpha=80, very_sparse=True
    ),
    "alora": lambda: peft.LoraConfig(
        target_modules=T, r=3, lora_alpha=5, alora_invocation_tokens=INVOCATION, task_type="CAUSAL_LM"
    ),
    "lora-blocks": lambda: peft.LoraConfig(
        target_modules=T, r=4, use_bdlora=BdLoraConfig(target_modules_bd_a=["q_pr"], target_modules_bd_b=["down_proj"])
    ),
    "kasa": lambda: peft.LoraConfig(target_modules=T, r=3, lora_alpha=5, kasa_config=KasaConfig()),
    "lora-monteclora": lambda: peft.LoraConfig(
        target_modules=T, r=3, monteclora_config=MontecloraConfig(buffer_size=2)
    ),
    "lora-velora": lambda: peft.LoraConfig(target_modules=T, r=3, velora_config=VeloraConfig(num_groups=4)),
    "lora": lambda: peft.LoraConfig(target_modules=T, r=3, lora_alpha=5, use_rslora=True),
    "lora-dora": lambda: peft.LoraConfig(target_modules=T, r=3, lora_alpha=5, use_dora=True),
}
pytestmark = pytest.mark.filterwarnings(
    *("ignore:.*pattern keys", "ignore:Specified to not save", "ignore:Failed to load the CUDA", "ignore:Sparse inv"),
    "ignore:Found missing adapter keys.*randlora_A",
    "ignore:Setting boft_n_butterfly_factor to 1",
)
READ_ALONE = ("delora", "adalora")
"""types that are written as a LoRA"""


@pytest.fixture(autouse=True)
def no_compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's BOFT tries to compile for CUDA, and leaves what it began."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))


# PEFT's own gradient of C3A is not the slope of its loss; ours is (tests/methods/test_c3a.py has one layer alone).
OTHER_GRADIENT = ("c3a",)


def made(case: str, folder: Path, model_name: str = "llama") -> Any:
    """PEFT's model with its trained tensors disturbed; its adapter is saved in `folder`."""
    torch.manual_seed(3)
    model: Any = peft.get_peft_model(tiny.make(model_name), MADE[case]())
    tiny.disturb([p for p in model.parameters() if p.requires_grad], size=0.1)
    model.save_pretrained(folder)
    return model.eval()


def write(folder: Path, attached: Any, **options: Any) -> dict[str, Any]:
    """The folder of stock PEFT that an adapter is written as; its configuration."""
    found = peft_folder(attached, {"name": "base"}, **options)
    assert not found.refused
    folder.mkdir()
    files.write_tensors(folder / PEFT_TENSORS, found.tensors)
    files.write_json(folder / "adapter_config.json", found.config)
    return dict(found.config)


def gap(model: Any, other: Any) -> float:
    """Largest difference of their logits, over the largest change that the adapter of `other` makes."""
    ids = tiny.tokens()
    expected = tiny.logits(other, ids)
    changed = (expected - tiny.logits(tiny.make("llama"), ids)).abs().max()
    return ((tiny.logits(model, ids) - expected).abs().max() / changed).item()


@pytest.mark.parametrize("case", MADE)
def test_a_folder_of_stock_peft_is_read_and_written_again(case: str, tmp_path: Path) -> None:
    theirs = made(case, tmp_path / "theirs")
    ours = tiny.make("llama")
    attached = lrft.load_adapter(ours, tmp_path / "theirs")
    assert gap(ours, theirs) < 1e-4
    own_type = case not in READ_ALONE and not case.startswith("lora")
    config = write(tmp_path / "ours", attached, own_type=own_type)
    kind = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["peft_type"]
    assert config["peft_type"] == (kind if own_type else "LORA")
    again = peft.PeftModel.from_pretrained(tiny.make("llama"), str(tmp_path / "ours")).eval()
    assert gap(again, theirs) < 1e-4
    if own_type:
        theirs_of, ours_of = (load_file(tmp_path / name / PEFT_TENSORS) for name in ("theirs", "ours"))
        for name, tensor in theirs_of.items():
            if not name.endswith((".randlora_A", ".randlora_B")) or ".layers." not in name:  # there in each layer again
                assert ours_of[name].shape == tensor.shape, name


def in_file(attached: Any) -> dict[str, torch.Tensor]:
    """Its trained tensors as PEFT's file has them."""
    found = peft_folder(attached, {"name": "base"}, own_type=True).tensors
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def common_name(name: str, held: Any) -> str:
    """The name in the file of what PEFT's model finds in its first layer and all layers have in common."""
    endings = (key for key in held if ".layers." not in key and name.endswith(key.removeprefix("base_model")))
    return next(endings, name)


@pytest.mark.parametrize("case", [case for case in MADE if not case.startswith((*READ_ALONE, *OTHER_GRADIENT, "lora"))])
def test_gradients_and_merged_weights_are_those_of_stock_peft(case: str, tmp_path: Path) -> None:
    theirs, ours, ids = made(case, tmp_path / "theirs"), tiny.make("llama"), tiny.tokens()
    attached = lrft.load_adapter(ours, tmp_path / "theirs")
    for model in (ours, theirs):
        model(input_ids=ids, labels=ids).loss.backward()
    wanted = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    mergeable = {name: adapter for name, adapter in attached.modules.items() if adapter.mergeable}
    merged = {name: adapter.weight(attached.layers()[name].base.weight) for name, adapter in mergeable.items()}
    for p in attached.trained().values():
        p.data = torch.zeros_like(p) if p.grad is None else p.grad
    held = in_file(attached)
    for p in attached.trained().values():
        p.data = torch.zeros_like(p)
    zeros = in_file(attached)  # of tensors that the file holds plus one
    wanted = {common_name(name, held): gradient for name, gradient in wanted.items()}
    assert wanted.keys() <= held.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        difference = (held[name] - zeros[name] - gradient).abs().max()
        assert difference <= 1e-3 * gradient.abs().max() + 1e-6, name
    of_peft = theirs.merge_and_unload() if merged else None
    for name, weight in merged.items():
        torch.testing.assert_close(weight, of_peft.get_submodule(name).weight, rtol=1e-4, atol=1e-5)


# Here at zero, there at random (`init_weights` false is their default): said in the methods' files.
OTHER_START = ("c3a", "fourierft")


@pytest.mark.parametrize("case", [case for case in MADE if not case.startswith((*READ_ALONE, *OTHER_START, "lora"))])
def test_first_values_are_those_of_stock_peft(case: str, tmp_path: Path) -> None:
    """Constants are the same; what is drawn has the same spread."""
    torch.manual_seed(3)
    theirs: Any = peft.get_peft_model(tiny.make("llama"), MADE[case]())
    theirs.save_pretrained(tmp_path / "theirs")
    read = lrft.load_adapter(tiny.make("llama"), tmp_path / "theirs")
    method = {read.methods[0]["name"]: read.methods[0]["options"]}
    ranks = {name: {"rank": adapter.site.rank, "scale": adapter.site.scale} for name, adapter in read.modules.items()}
    if "scale" not in registry.methods()[read.methods[0]["name"]].provides:
        ranks = {name: {"rank": adapter.site.rank} for name, adapter in read.modules.items()}
    section = {"method": method, "rank": 8, "target_modules": list(read.modules), "overrides": ranks}
    fresh = lrft.attach(tiny.make("llama"), section)
    stored, own = in_file(read), in_file(fresh)
    assert stored.keys() == own.keys()
    for name, tensor in stored.items():
        if not tensor.is_floating_point():
            continue
        if bool((tensor == tensor.flatten()[0]).all()):
            assert torch.equal(own[name], tensor), name
        elif tensor.numel() >= 32:  # fewer do not tell their spread
            assert own[name].std().item() == pytest.approx(tensor.std().item(), rel=0.35), name


def test_every_type_that_a_method_declares_is_read_here() -> None:
    declared = {card.facts["peft_type"] for card in registry.methods().values() if card.facts.get("peft_type")}
    assert declared == {MADE[case]().peft_type.value for case in MADE}
    for name, card in registry.methods().items():
        kind = card.load().in_peft() if card.builds else None
        assert (kind.name if kind else "") == card.facts.get("peft_type", ""), name
        assert kind is None or name in dict(readers(kind.name))


def test_the_page_names_every_type_of_the_installed_peft() -> None:
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    named = re.findall(r"^\| `([A-Z0-9_]+)` \|", text, flags=re.M)
    assert sorted(named) == sorted(peft.PeftType.__members__)
    read = re.findall(r"^\| `([A-Z0-9_]+)` \| [^|]* \| yes \|", text, flags=re.M)
    declared = {card.facts["peft_type"] for card in registry.methods().values() if card.facts.get("peft_type")}
    assert set(read) == {*declared, *ALONE}
    alone = {MADE[case]().peft_type.value for case in READ_ALONE}
    as_lora = re.findall(r"^\| `([A-Z0-9_]+)` \| [^|]* \| yes \| as LORA \|", text, flags=re.M)
    assert set(as_lora) == alone


@pytest.mark.parametrize(
    ("case", "method", "rank", "as_it_is"),
    [
        ("hra", "hra", 4, True),
        ("fourierft", {"fourierft": {"frequencies": 20, "scaling": 40.0, "positions_seed": 5}}, 8, True),
        ("vera", {"vera": {"seed": 3, "save_projection": True}}, 5, True),
        ("oft", {"oft": {"oft_block_size": 4}}, 8, True),
        ("loha", "lora", 9, False),
        ("hra", "rslora", 6, False),
        ("glora", "lora", 24, False),
    ],
)
def test_a_run_starts_from_it(case: str, method: Any, rank: int, as_it_is: bool, tmp_path: Path) -> None:
    theirs = made(case, tmp_path / "theirs")
    model = tiny.make("llama")
    attached = lrft.attach(model, {"method": method, "rank": rank, "target_modules": T})
    started = start_from(attached, placed(read_any(tmp_path / "theirs"), model))
    assert started.as_it_is == as_it_is
    assert started.error < 1e-5
    assert gap(model, theirs) < 1e-4


def test_the_commands_take_types_that_do_not_tell_their_sides(tmp_path: Path) -> None:
    """IA3 tells one side of a layer, FourierFT none: they come from the base."""
    base = save_base(tmp_path / "base", "llama")
    for case in ("ia3", "fourierft", "unilora", "osf", "psoft", "frod"):
        theirs = made(case, tmp_path / case)
        expected = tiny.logits(theirs, tiny.tokens())
        merge_adapter(tmp_path / case, tmp_path / f"merged-{case}", base_model=str(base))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"merged-{case}").eval()
        torch.testing.assert_close(tiny.logits(merged, tiny.tokens()), expected, rtol=1e-4, atol=1e-4)
        looked_at = inspect_adapter(tmp_path / case, base_model=str(base))
        updates = theirs.merge_and_unload()
        for module in looked_at.modules:
            before = tiny.make("llama").get_submodule(module.name).weight
            update = updates.get_submodule(module.name).weight - before
            assert module.update.norm == pytest.approx(update.norm().item(), rel=1e-3)


def change(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("case", "keys", "said"),
    [
        ("hra", {"apply_GS": True}, "apply_GS is True, which lrft does not compute"),
        ("hra", {"rank_pattern": {"q_proj": 2}}, "rank_pattern is set, which lrft does not read for this type"),
        ("fourierft", {"n_frequency_pattern": {"q_proj": 3}}, "n_frequency_pattern is set"),
        ("hira", {"new_key": 3}, "new_key is set, a setting that lrft does not know"),
        ("hra", {"lora_bias": True}, "lora_bias: True is set"),
        ("miss", {"init_weights": "other"}, "init_weights is 'other'"),
        (
            "unilora",
            {"exclude_modules": ["k"]},
            "exclude_modules is set, which lrft does not read for a file that names",
        ),
        ("psoft", {"psoft_orth": False}, "psoft_orth is False, which lrft does not compute"),
        ("psoft", {"psoft_svd": "lowrank"}, "psoft_svd is 'lowrank'"),
        ("frod", {"save_projection": False}, "save_projection is False, which lrft does not compute"),
        ("hira", {"peft_type": "POLY"}, "type POLY, which is not supported"),
        ("hira", {"peft_type": "XLORA"}, "lrft combine makes one of them"),
        ("lora", {"arrow_config": {"top_k": 2}}, "lrft combine makes one LoRA of such"),
        ("lora", {"layer_replication": [[0, 1]]}, "replicate them in the base itself"),
    ],
)
def test_settings_that_mean_something_else_are_refused_by_name(
    case: str, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    made(case, tmp_path / "theirs")
    change(tmp_path / "theirs", **keys)
    with pytest.raises(UsageError) as caught:
        read_any(tmp_path / "theirs")
    assert said in caught.value.message
    assert str(tmp_path / "theirs") in caught.value.message


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for case, ending in (("hira-some-layers", "hira_B"), ("hra", "hra_u"), ("fourierft", "fourierft_spectrum")):
        folder = tmp_path / case
        made(case, folder)
        stored = load_file(folder / PEFT_TENSORS)
        name = next(key for key in stored if key.endswith(ending))
        save_file({**stored, name: torch.cat([stored[name]] * 2)}, folder / PEFT_TENSORS)
        with pytest.raises(CheckFailed, match=r"layers\.\d\.mlp\.down_proj"):
            lrft.load_adapter(tiny.make("llama"), folder)
        stored.pop(name)
        save_file({**stored, f"{name}_other": torch.ones(2)}, folder / PEFT_TENSORS)
        with pytest.raises(UsageError, match=f"{ending}_other"):
            lrft.load_adapter(tiny.make("llama"), folder)


def test_scaled_biases_are_refused(tmp_path: Path) -> None:
    """PEFT's IA3 scales the outputs with their bias; ours is a change of the weight."""
    config = peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)
    theirs: Any = peft.get_peft_model(tiny.make("gpt2"), config)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UsageError, match=r"changes the bias of transformer\.h\.0\.attn\.c_attn"):
        lrft.load_adapter(tiny.make("gpt2"), tmp_path / "theirs")
    attached = lrft.attach(tiny.make("gpt2"), {"method": "ia3"})
    assert "changes the bias" in peft_folder(attached, {}).refused
