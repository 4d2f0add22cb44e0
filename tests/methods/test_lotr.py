"""LoTR: one Tucker tensor per shape, entry by entry; what is shared, and what belongs to a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from safetensors.torch import load_file
from torch import nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_shared, count_trained, factor_of
from lrft.adapters.storage import save_adapter
from lrft.errors import RecipeError

F64 = torch.float64


def attach(model: nn.Module | None = None, rank: int = 3, **more: Any) -> Any:
    return lrft.attach(model or tiny.make("llama").double(), {"method": "lotr", "rank": rank, **more})


def test_the_updates_of_a_shape_are_one_tucker_tensor() -> None:
    attached = attach(alpha=1.5)
    tiny.disturb(list(attached.trained().values()), size=1.0)
    groups: dict[str, list[str]] = {}
    for name, adapter in attached.modules.items():
        groups.setdefault(f"{adapter.site.d}x{adapter.site.k}", []).append(name)
    assert set(groups) == set(attached.shared.keys()) == {"24x24", "12x24", "44x24", "24x44"}
    assert len(groups["24x24"]) == 4, "query and output of both blocks"
    for shape, names in groups.items():
        own = attached.shared[shape]
        core = torch.stack([attached.modules[name].G.detach() for name in names])
        expected = 0.5 * torch.einsum("ia,lab,bj->lij", own.L.detach(), core, own.R.detach())
        stacked = torch.stack([attached.delta(name) for name in names])
        assert torch.allclose(stacked, expected, atol=1e-12)
        assert torch.linalg.matrix_rank(stacked.transpose(0, 1).flatten(1)) == 3, "along the outputs"
        assert torch.linalg.matrix_rank(stacked.flatten(0, 1)) == 3, "along the inputs"


def test_numbers_trained_once_per_shape() -> None:
    """RoBERTa-base, query and value of 12 blocks at rank 2: 3168."""
    composition = compose.compose([("lotr", {})])
    sites = [Site(f"{i}.{word}", 768, 768, 2) for i in range(12) for word in ("query", "value")]
    assert count_trained(sites, composition) == 3168
    attached = attach()
    shapes = {(site.d, site.k) for site in attached.sites}
    expected = sum(3 * (d + k) for d, k in shapes) + 9 * len(attached.sites)
    assert sum(p.numel() for p in attached.trained().values()) == expected
    assert count_trained(attached.sites, composition) == expected


def test_a_core_is_a_layers_own_and_an_outer_factor_is_everybodys() -> None:
    attached = attach()
    tiny.disturb(list(attached.trained().values()))

    def changed(p: nn.Parameter) -> set[str]:
        before = {name: attached.delta(name) for name in attached.modules}
        with torch.no_grad():
            p.add_(0.1)
        return {name for name, dW in before.items() if not torch.equal(attached.delta(name), dW)}

    first = next(iter(attached.modules))
    assert changed(attached.modules[first].G) == {first}
    for factor in (attached.shared["24x24"].L, attached.shared["24x24"].R):
        assert changed(factor) == {site.name for site in attached.sites if (site.d, site.k) == (24, 24)}


def test_start_values() -> None:
    sites = [Site("x", 300, 400, 20), Site("y", 300, 400, 30)]
    for init, of_L, of_R in (("unit", 1.0, 1.0), ("norm", 300**-0.5, 400**-0.5)):
        composition = compose.compose([("lotr", {"init": init})])
        shared = build_shared(sites, composition)
        assert set(shared.keys()) == {"300x400"}
        assert shared["300x400"].L.shape == (300, 30)
        assert shared["300x400"].R.shape == (30, 400)
        assert shared["300x400"].L.std().item() == pytest.approx(of_L, rel=0.03)
        assert shared["300x400"].R.std().item() == pytest.approx(of_R, rel=0.03)
        assert not composition.method.build(sites[0]).G.any()
    assert factor_of(composition, 4, "auto", None) == 0.25
    assert factor_of(composition, 4, 6.0, None) == 1.5


def test_a_lower_rank_takes_the_first_columns_and_rows() -> None:
    attached = attach(rank=3, overrides={"0.self_attn.q_proj": {"rank": 5}})
    tiny.disturb(list(attached.trained().values()), size=1.0)
    own = attached.shared["24x24"]
    assert own.L.shape == (24, 5)
    for name, adapter in attached.modules.items():
        if (adapter.site.d, adapter.site.k) == (24, 24):
            r = 5 if "0.self_attn.q_proj" in name else 3
            assert adapter.G.shape == (r, r)
            assert torch.allclose(attached.delta(name), own.L[:, :r] @ adapter.G @ own.R[:r] / r, atol=1e-12)


def test_gradients_of_the_outer_factors_are_sums_over_layers() -> None:
    """Against autograd through dense weights that are made from one L and R."""
    attached = attach(tiny.make("llama").double().train())
    tiny.disturb(list(attached.trained().values()), size=0.3)
    model, ids = attached.model, tiny.tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    found = {name: p.grad.clone() for name, p in attached.trained().items()}

    leaves = {name: p.detach().clone().requires_grad_() for name, p in attached.trained().items()}
    plain = tiny.make("llama").double().train()
    weights = {}
    for name, adapter in attached.modules.items():
        shape = f"{adapter.site.d}x{adapter.site.k}"
        L, R = (leaves[f"adapters_shared.{shape}.{word}"] for word in "LR")
        weights[f"{name}.weight"] = plain.get_submodule(name).weight.detach() + L @ leaves[f"{name}.G"] @ R / 3
    torch.func.functional_call(plain, weights, kwargs={"input_ids": ids, "labels": ids}).loss.backward()
    assert found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert torch.allclose(found[name], leaf.grad, rtol=1e-8, atol=1e-12), name


def test_files_hold_the_outer_factors_once_and_peft_gets_whole_loras(tmp_path: Path) -> None:
    attached = attach(tiny.make("llama"))
    tiny.disturb(list(attached.trained().values()))
    save_adapter(attached, tmp_path, base={"name": "tiny"})
    own = load_file(tmp_path / "lrft.safetensors")
    shapes = ("24x24", "12x24", "44x24", "24x44")
    common = {f"adapters_shared.{shape}.{word}" for shape in shapes for word in "LR"}
    assert own.keys() == common | {f"{name}.G" for name in attached.modules}
    lora = load_file(tmp_path / "adapter_model.safetensors")
    for name, adapter in attached.modules.items():
        A, B = (lora[f"base_model.model.{name}.lora_{word}.weight"] for word in "AB")
        assert A.shape == (3, adapter.site.k)
        assert torch.allclose(adapter.site.scale * B @ A, attached.delta(name), atol=1e-6)


def test_what_keeps_an_update_as_it_is_now_is_refused() -> None:
    """Its outer factors would be trained on, and with them what was to stand still (`Adapter.refuse_copies`)."""
    model, ids = tiny.make("llama"), tiny.tokens()
    before = tiny.logits(model, ids)
    with pytest.raises(RecipeError, match="relora requires a zero init that can be redrawn"):
        lrft.attach(model, {"method": ["lotr", "relora"], "rank": 2})
    assert torch.equal(tiny.logits(model, ids), before)


def test_a_rank_above_the_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="0: a 50 x 3 layer has no rank above 3: lower rank 4"):
        lrft.attach(nn.Sequential(nn.Linear(3, 50)), {"method": "lotr", "rank": 4})


def test_a_run_trains_and_a_resume_is_exact(place: Place) -> None:
    keys = ("adapter.method=lotr", "adapter.dropout=0.1", "checkpoint.every=3", "checkpoint.keep=9")
    whole = place.train(*keys)
    part = runs.cut(whole, 3, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    losses = [record["loss"] for record in runs.records(whole)]
    assert losses[-1] < losses[0]
