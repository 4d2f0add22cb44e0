"""Tensors that all adapters have in common: trained (lotr), frozen and saved, or drawn again (vera, randlora)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import runs
import stored
import tiny
import torch
import two_processes
from runs import Place
from safetensors.torch import load_file
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import OffsetFromInit
from lrft.adapters.attach import count_trained
from lrft.adapters.attached import SHARED
from lrft.adapters.part import Making, Part, Run
from lrft.adapters.restarts import Folded
from lrft.adapters.storage import read_adapter
from lrft.errors import CheckFailed, UsageError
from lrft.utils import files

TRAINED, SAVED, DRAWN = "lotr", {"vera": {"save_projection": True}}, "randlora"
KINDS = pytest.mark.parametrize("words", [TRAINED, SAVED, DRAWN, "vera"], ids=["trained", "saved", "drawn", "vera"])
Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"


def attach(words: Any, model: nn.Module | None = None, **more: Any) -> Any:
    return lrft.attach(model or tiny.make("llama"), {"method": words, "rank": 3, **more})


@KINDS
def test_they_are_in_the_model_once_and_named_once(words: Any) -> None:
    attached = attach(words)
    inside = [module for module in attached.model.modules() if module is attached.shared]
    assert len(inside) == 1
    assert all(adapter.shared is attached.shared for adapter in attached.modules.values())
    own = [p for adapter in attached.modules.values() for p in adapter.parameters()]
    common = list(attached.shared.parameters())
    assert not set(map(id, own)) & set(map(id, common))
    named = attached.tensors()
    assert len(named) == len(own) + len(common)
    assert {name for name in named if name.startswith(f"{SHARED}.")} == {
        f"{SHARED}.{name}" for name, _ in attached.shared.named_parameters()
    }
    assert {id(p) for p in attached.model.parameters() if p.requires_grad} == set(map(id, attached.trained().values()))
    total = sum(p.numel() for p in attached.trained().values())
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    assert count_trained(attached.sites, composition) == total
    owners = attached.owners()
    assert owners.keys() == attached.trained().keys()
    assert {name for name, owner in owners.items() if owner == SHARED} == {
        name for name in attached.trained() if name.startswith(f"{SHARED}.")
    }


@KINDS
def test_detaching_leaves_the_model_as_it_was_and_it_can_be_adapted_again(words: Any) -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    before, names = tiny.logits(model, ids), [name for name, _ in model.named_modules()]
    for _ in range(2):
        attached = attach(words, model)
        tiny.disturb(list(attached.trained().values()))
        assert not torch.equal(tiny.logits(model, ids), before)
        with pytest.raises(UsageError, match="already has adapters"):
            attach(words, model)
        attached.detach()
        attached.detach()  # twice is once
        assert [name for name, _ in model.named_modules()] == names
        assert torch.equal(tiny.logits(model, ids), before)


@KINDS
def test_a_container_that_calls_what_it_holds_can_be_the_model(words: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    attached = attach(words, model)
    tiny.disturb(list(attached.trained().values()))
    assert model(torch.ones(2, 6)).shape == (2, 6)
    assert [name for name, _ in model.named_children()] == ["0", "1", "2"]


@KINDS
def test_they_follow_the_model_in_dtype_and_mode(words: Any) -> None:
    attached = attach(words, tiny.make("llama").double())
    assert {t.dtype for t in (*attached.shared.parameters(), *attached.shared.buffers())} == {torch.float64}
    assert not attached.shared.training
    attached.model.train()
    assert attached.shared.training


@KINDS
def test_state_goes_out_and_comes_back_strictly(words: Any) -> None:
    attached = attach(words)
    tiny.disturb(list(attached.trained().values()))
    state = attached.state_dict()
    model, ids = attached.model, tiny.tokens()
    expected = tiny.logits(model, ids)
    tiny.disturb(list(attached.trained().values()), seed=3)
    assert not torch.equal(tiny.logits(model, ids), expected)
    attached.load_state_dict(state)
    assert torch.equal(tiny.logits(model, ids), expected)
    with pytest.raises(ValueError, match=f"not expected \\['{SHARED}.stranger'\\]"):
        attached.load_state_dict({**state, f"{SHARED}.stranger": torch.ones(1)})
    for name in (name for name in state if name.startswith(SHARED)):
        with pytest.raises(ValueError, match=f"missing \\['{name}'\\]"):
            attached.load_state_dict({k: v for k, v in state.items() if k != name})
        with pytest.raises(ValueError, match=f"{name}: shape"):
            attached.load_state_dict({**state, name: state[name][:-1]})


@KINDS
def test_a_folder_read_without_a_model_builds_sites_around_one_module(words: Any, tmp_path: Path) -> None:
    attached = stored.save(tmp_path, words)
    saved = read_adapter(tmp_path)
    assert saved.build(saved.sites[0]).shared is saved.build(saved.sites[1]).shared is saved.shared
    for site in saved.sites:
        adapter: Any = saved.build(site)
        assert torch.equal(adapter.delta_weight(), attached.delta(site.name)), site.name


@pytest.mark.parametrize("words", [TRAINED, SAVED])
def test_any_flipped_bit_and_any_cut_is_found_and_named(words: Any, tmp_path: Path) -> None:
    stored.save(tmp_path, words, target_modules="q_proj")
    path, good = tmp_path / "lrft.safetensors", (tmp_path / "lrft.safetensors").read_bytes()
    assert SHARED.encode() in good
    damaged = [good[: len(good) * part // 8] for part in range(8)]
    for at in (0, 9, len(good) // 3, len(good) // 2, len(good) - 3):
        damaged.append(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(CheckFailed, match=path.name):
            read_adapter(tmp_path)
    path.write_bytes(good)
    read_adapter(tmp_path)


def other(change: Any) -> Any:
    """The shared tensors changed, the others as they are."""
    return lambda t: {k: change(v) if k.startswith(SHARED) else v for k, v in t.items()}


@pytest.mark.parametrize("words", [TRAINED, SAVED])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.startswith(SHARED)}, f"{SHARED}: tensors missing"),
        (lambda t: {k: v for k, v in t.items() if not k.endswith((".L", ".A"))}, f"{SHARED}: tensors missing"),
        (lambda t: {**t, f"{SHARED}.stranger": torch.ones(1)}, f"{SHARED}: .*not expected \\['stranger'\\]"),
        (other(lambda v: v * float("nan")), f"{SHARED}.*not finite"),
        (other(lambda v: v[:-1].contiguous()), f"{SHARED}.*: shape"),
    ],
)
def test_shared_tensors_that_do_not_fit_are_named(words: Any, change: Any, sentence: str, tmp_path: Path) -> None:
    stored.save(tmp_path, words)
    stored.replace_tensors(tmp_path, lambda t: t)
    read_adapter(tmp_path)
    stored.replace_tensors(tmp_path, change)
    with pytest.raises(CheckFailed, match=sentence) as caught:
        read_adapter(tmp_path)
    assert "lrft.safetensors" in caught.value.message
    model, ids = tiny.make("llama"), tiny.tokens()
    before = tiny.logits(model, ids)
    with pytest.raises(CheckFailed):
        lrft.load_adapter(model, tmp_path)
    assert torch.equal(tiny.logits(model, ids), before), "nothing was attached"


@pytest.mark.parametrize("words", ["lora", "mora", "vera", DRAWN])
def test_shared_tensors_where_none_are_saved_are_refused(words: str, tmp_path: Path) -> None:
    stored.save(tmp_path, words)
    stored.replace_tensors(tmp_path, lambda t: {**t, f"{SHARED}.A": torch.ones(3, 44)})
    with pytest.raises(CheckFailed, match=f"{SHARED}: .*not expected"):
        read_adapter(tmp_path)


def test_tensors_of_one_memory_are_written_each_for_itself(tmp_path: Path) -> None:
    long = torch.arange(12.0).view(3, 4)
    given = {"a": long, "b": long[:2], "c": long[:, :2], "d": long[1:], "e": long.T, "f": torch.ones(2), "g": long}
    files.write_tensors(tmp_path / "x.safetensors", given)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_a_copy_of_an_adapter_uses_the_same_module() -> None:
    attached = attach("vera")
    adapter = attached.modules[Q0]
    again = copy.deepcopy(adapter)
    assert again.shared is attached.shared
    assert again.d is not adapter.d


def test_an_anchor_and_restarts_hold_no_copies_and_refuse_what_would_move_under_them() -> None:
    for words in ("vera", DRAWN):
        adapter = attach(words).modules[Q0]
        offset_from_init, folded = OffsetFromInit(adapter), Folded(adapter, 2)
        assert offset_from_init.start.shared is folded.links[0].shared is adapter.shared
        assert not offset_from_init.delta_weight().any()
        tiny.disturb([adapter.Gamma, adapter.Lambda] if words == DRAWN else [adapter.b])
        assert torch.allclose(offset_from_init.delta_weight(), adapter.delta_weight(), atol=1e-6)
    trained = attach(TRAINED).modules[Q0]
    for make in (OffsetFromInit, lambda inner: Folded(inner, 1)):
        with pytest.raises(ValueError, match="shares with other layers"):
            make(trained)


def test_adapters_around_adapters_know_them_too() -> None:
    for words in (["lotr", "dora"], ["vera", "relora", "dora"], ["randlora", "relora"]):
        attached = attach(words)
        for adapter in attached.modules.values():
            inside = [module for module in adapter.modules() if hasattr(module, "shared")]
            assert len(inside) > 1
            assert all(module.shared is attached.shared for module in inside)
            read = {id(p) for p in adapter.read_from()}
            assert read == {id(p) for p in (*adapter.parameters(), *attached.shared.parameters())}


def test_dora_measures_again_when_only_a_shared_tensor_was_written_to() -> None:
    attached = attach(["lotr", "dora"], tiny.make("llama").double())
    tiny.disturb(list(attached.trained().values()), size=0.5)
    layer, x = attached.layers()[Q0], torch.randn(3, 24, dtype=torch.float64)
    for _ in range(2):
        W = layer.adapter.weight(layer.base.weight)
        assert torch.allclose(layer(x), x @ W.T, atol=1e-10)
        with torch.no_grad():
            attached.shared["24x24"].R.mul_(3)


def test_two_models_have_nothing_in_common() -> None:
    first, second = attach(TRAINED), attach(TRAINED)
    kept = second.state_dict()
    tiny.disturb(list(first.trained().values()))
    assert all(torch.equal(kept[name], tensor) for name, tensor in second.state_dict().items())


class Asked(Part):
    """Notes what a part is told of the tensors in common, as optimiser and as the one who sets rates."""

    name = "asked"
    slots = ("optimizer",)

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        self.rated: set[str] = set()

    def make_optimizer(self, groups: list[dict[str, Any]], making: Making) -> torch.optim.Optimizer:
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        for group, noted in zip(groups, self.groups, strict=True):
            noted["names"] = [name for name, _ in group["params"]]
        return torch.optim.AdamW(groups, betas=making.betas, eps=making.eps)

    def rate(self, run: Run, site: str) -> float:
        self.rated.add(site)
        return 1.0


def test_an_optimiser_of_a_part_is_told_of_them_as_of_a_site_of_the_largest_rank(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked()
    runs.add_parts(monkeypatch, asked)
    place.train("adapter.method=lotr", "adapter.overrides={q_proj: {rank: 7}}", "training.max_steps=2")
    common = [group for group in asked.groups if group["site"] == SHARED]
    assert [group["rank"] for group in common] == [7]
    assert all(name.startswith(f"{SHARED}.") for name in common[0]["names"])
    assert len(common[0]["names"]) == 8
    assert SHARED in asked.rated


def test_the_optimisers_state_has_each_once_by_name(place: Place) -> None:
    run = place.train("adapter.method=lotr", "training.max_steps=2")
    names = {name.rpartition(":")[2] for name in runs.tensors(run) if "optimizer" in name}
    common = {name for name in names if name.startswith(f"{SHARED}.")}
    shapes = ("24x24", "12x24", "44x24", "24x44")
    assert common == {
        f"{SHARED}.{shape}.{word}/{entry}"
        for shape in shapes
        for word in "LR"
        for entry in ("exp_avg", "exp_avg_sq", "step")
    }


def test_they_may_wait_one_step_but_not_two(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(run: Run) -> None:
        run.adapters[Q0].shared["24x24"].R.grad.zero_()

    runs.add_parts(monkeypatch, runs.At("after_backward", 0, hold))
    with pytest.raises(CheckFailed, match=f"{SHARED}.24x24.R did not move in 2 steps"):
        place.train("adapter.method=lotr")


@pytest.mark.parametrize("kind", ["light", "full"])
def test_a_run_with_gradient_checkpointing_is_the_same_run(place: Place, kind: str) -> None:
    keys = ("adapter.method=lotr", "adapter.rank=3", "training.optimizer={adamw: {eps: 1e-3}}")
    plain = runs.tensors(place.train(*keys, out="plain"))
    again = runs.tensors(place.train(*keys, f"training.gradient_checkpointing={kind}", out="again"))
    assert runs.distance(plain, again, "lrft.safetensors") < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("words", [TRAINED, "vera", DRAWN, "{vera: {save_projection: true}}"])
def test_two_processes_train_what_one_trains(place: Place, words: str) -> None:
    runs.write_rows(place.root / "train.jsonl", runs.rows(9))
    keys = (*two_processes.KEYS, f"adapter.method={words}", "adapter.overrides={q_proj: {rank: 5}}")
    one = runs.tensors(place.train(*keys, out="one"))
    two = two_processes.launch(place, "two", *keys)
    assert runs.distance(one, runs.tensors(two), "lrft.safetensors") < 1e-5
    cut = runs.cut(two, 2, place.root / "cut")
    two_processes.launch(place, "cut", *keys, resume="last")
    assert runs.differing(runs.tensors(cut), runs.tensors(two)) == []


def compiled(layer: Any, x: Tensor) -> Tensor:
    found: Tensor = torch.compile(layer, backend="aot_eager")(x)
    return found


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own parts
@KINDS
def test_a_compiled_layer_gives_the_same(words: Any) -> None:
    attached = attach(words)
    tiny.disturb(list(attached.trained().values()), size=0.05)
    layer, x = attached.layers()[Q1], torch.randn(3, 24)
    assert torch.allclose(compiled(layer, x), layer(x), atol=1e-5)
