"""What every method must keep, over every kind of base. A new method is one line in CASES."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from cases import (
    CASES,
    EVERY_BASE,
    NOT_A_LORA,
    NOT_MERGEABLE,
    ONE_FOR_EACH,
    ONE_FOR_EACH_BASE,
    ONE_FOR_EACH_FORM,
    RANK,
    attach,
    check_fast_path_equals_definition,
    check_fresh_equals_base,
    check_gradients_reach_every_trained_tensor_by_the_second_step,
    compare_checkpointed,
    composed,
    late,
)

import lrft
from lrft import recipe, registry
from lrft.adapters.adapter import Delta
from lrft.adapters.storage import save_adapter
from lrft.export.merge import merge_adapter


def test_every_method_file_has_a_case() -> None:
    named = {entry.name for words, _ in CASES.values() for entry in recipe.parse_adapter({"method": words}).method}
    assert named == set(registry.methods())


@ONE_FOR_EACH_BASE
def test_fresh_equals_base(case: str, model_name: str) -> None:
    check_fresh_equals_base(case, model_name)


@ONE_FOR_EACH
def test_fresh_lora_like_update_is_exactly_zero(case: str) -> None:
    attached = attach(tiny.make("llama"), case)
    for name, adapter in attached.modules.items():
        if isinstance(adapter, Delta) and adapter.mergeable and not composed(attached).init_changes_output:
            assert not attached.delta(name).any(), name


@EVERY_BASE
def test_fast_path_equals_definition(case: str, model_name: str) -> None:
    check_fast_path_equals_definition(case, model_name)


@ONE_FOR_EACH_BASE
def test_trained_numbers_follow_the_formula(case: str, model_name: str) -> None:
    """Trust 20."""
    attached = attach(tiny.make(model_name), case)
    for name, adapter in attached.modules.items():
        site = adapter.site
        trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
        assert trained == CASES[case][1](site.d, site.k, site.rank), name
    assert {site.rank for site in attached.sites} == {RANK, RANK + 2}
    assert {id(p) for p in attached.model.parameters() if p.requires_grad} == set(map(id, attached.trained().values()))


@ONE_FOR_EACH_BASE
def test_gradients_reach_every_trained_tensor_by_the_second_step(case: str, model_name: str) -> None:
    check_gradients_reach_every_trained_tensor_by_the_second_step(case, model_name)


@ONE_FOR_EACH_FORM
def test_disabled_and_detached_are_the_untouched_base(case: str) -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    before = tiny.logits(model, ids)
    attached = attach(model, case)
    late(attached)
    assert not torch.equal(tiny.logits(model, ids), before)
    with attached.disabled():
        assert torch.equal(tiny.logits(model, ids), before)
    assert not torch.equal(tiny.logits(model, ids), before)
    attached.detach()
    assert torch.equal(tiny.logits(model, ids), before)


@ONE_FOR_EACH
def test_the_seed_decides_the_start_and_the_global_generator_is_left_alone(case: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again = attach(tiny.make("llama"), case, seed=1).state_dict(), None
    torch.manual_seed(5)
    model = tiny.make("llama")
    torch.manual_seed(5)
    again = attach(model, case, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert one.keys() == again.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)


@ONE_FOR_EACH_FORM
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_half_precision_base_adapters_are_float32_and_outputs_keep_the_dtype(
    case: str, dtype: torch.dtype
) -> None:
    """Trust 33."""
    model, ids = tiny.make("llama").to(dtype), tiny.tokens()
    before = tiny.logits(model, ids)
    attached = attach(model, case)
    assert {p.dtype for p in attached.trained().values()} == {torch.float32}
    assert tiny.logits(model, ids).dtype == dtype
    if not composed(attached).init_changes_output:
        assert (tiny.logits(model, ids) - before).abs().max() <= 0.02 * before.abs().max()
    with torch.autocast("cpu", dtype=dtype):
        model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in attached.trained().values())


@ONE_FOR_EACH_FORM
def test_gradient_checkpointing_changes_no_gradient(case: str) -> None:
    """Trust 27."""
    compare_checkpointed(lambda: tiny.make("llama"), case)


# What must hold in another process, with another seed: saved folders are read there by lrft, by stock PEFT on stock
# transformers, and merged folders by stock transformers. One process serves all cases, because starting one is slow.
READER = """
import json, sys, torch, transformers, tiny
import lrft
from transformers import AutoModelForCausalLM
folder, ids = sys.argv[1], tiny.tokens()
torch.manual_seed(999)
report = {}
for work in json.load(open(folder + "/work.json")):
    expected = torch.load(work["logits"], weights_only=True)
    def gap(model):
        return (tiny.logits(model.eval(), ids) - expected).abs().max().item()
    def base():
        return AutoModelForCausalLM.from_pretrained(work["base"], dtype=torch.float32)
    found = {}
    model = base()
    lrft.load_adapter(model, work["adapter"])
    found["lrft"] = gap(model)
    if work["merged"]:
        found["merged"] = gap(AutoModelForCausalLM.from_pretrained(work["merged"], dtype=torch.float32))
    if work["peft"]:
        from peft import PeftModel
        found["peft"] = gap(PeftModel.from_pretrained(base(), work["adapter"]))
    report[work["name"]] = found
json.dump(report, open(folder + "/report.json", "w"))
"""


# The adapted layers of a model with a tied head are those of one without: what differs is how it is saved and merged.
TIED = ["dora", "vera"]


def asked(request: pytest.FixtureRequest, model_name: str) -> list[str]:
    """The cases on a model of those tests in this session that read what other processes said."""
    items = [item for item in request.session.items if request.fixturename in item.fixturenames]
    params = [item.callspec.params for item in items]
    return list(dict.fromkeys(one["case"] for one in params if one.get("model_name", "llama-tied") == model_name))


@pytest.fixture(scope="module")
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """ "case model" -> {"lrft", "merged", "peft" if it can be said there}: largest logit difference over there."""
    folder = tmp_path_factory.mktemp("elsewhere")
    work = []
    for model_name in tiny.MODELS:
        base = tiny.save(tiny.make(model_name), folder / f"base-{model_name}")
        for number, case in enumerate(asked(request, model_name)):
            model = tiny.make(model_name)
            attached = attach(model, case)
            late(attached, size=0.05)
            adapter = folder / f"{model_name}-{number}"
            adapter.mkdir()
            save_adapter(attached, adapter, base={"name": str(base)})
            merged = folder / f"merged-{model_name}-{number}"
            mergeable = all(own.mergeable for own in attached.modules.values())
            if mergeable:
                merge_adapter(adapter, merged)
            logits = folder / f"{model_name}-{number}.pt"
            torch.save(tiny.logits(model, tiny.tokens()), logits)
            work.append(
                {
                    "name": f"{case} {model_name}",
                    "base": str(base),
                    "adapter": str(adapter),
                    "merged": str(merged) if mergeable else None,
                    "logits": str(logits),
                    "peft": (adapter / "adapter_config.json").exists(),
                }
            )
    (folder / "work.json").write_text(json.dumps(work))
    environment = {
        "PYTHONPATH": f"{Path(lrft.__file__).parents[1]}:{Path(runs.__file__).parent}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, dict[str, float]] = json.loads((folder / "report.json").read_text())
    return report


@pytest.mark.timeout(3600)
@ONE_FOR_EACH_BASE
def test_saved_loads_elsewhere_to_the_same_logits(case: str, model_name: str, elsewhere: dict[str, Any]) -> None:
    assert elsewhere[f"{case} {model_name}"]["lrft"] <= 1e-6


@pytest.mark.timeout(3600)
@ONE_FOR_EACH_BASE
def test_merged_equals_adapter(case: str, model_name: str, elsewhere: dict[str, Any]) -> None:
    found = elsewhere[f"{case} {model_name}"]
    if case.startswith(NOT_MERGEABLE):
        assert "merged" not in found
    else:
        assert found["merged"] <= 1e-4


@pytest.mark.timeout(3600)
@ONE_FOR_EACH_BASE
def test_stock_peft_gives_the_same_logits(case: str, model_name: str, elsewhere: dict[str, Any]) -> None:
    found = elsewhere[f"{case} {model_name}"]
    if case.startswith(NOT_A_LORA) or case == "slope":
        own_type = any(
            registry.methods()[entry.name].facts.get("peft_type")
            for entry in recipe.parse_adapter({"method": CASES[case][0]}).method
        )
        assert "peft" not in found or own_type, "no type of stock PEFT: the folder must not pretend"
        assert found.get("peft", 0.0) <= 1e-4
    else:
        assert found["peft"] <= 1e-4


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", TIED)
def test_over_tied_weights_saved_and_merged_are_the_adapter(case: str, elsewhere: dict[str, Any]) -> None:
    found = elsewhere[f"{case} llama-tied"]
    assert found["lrft"] <= 1e-6
    assert found["merged"] <= 1e-4
