"""`lrft plan`: counts against the real model, memory against measured peaks, and nothing loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import classifiers
import embedders
import pytest
import runs
import tiny
import torch
from cases import CASES, ONE_FOR_EACH_FORM
from runs import Place
from scaling_tables import tables
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

import lrft
from lrft.adapters import compose
from lrft.adapters.attach import attach_sites, prune_base
from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.loading.from_recipe import load_data, load_recipe_tokenizer, prepare_data
from lrft.model.head import Head
from lrft.model.load import load_model
from lrft.planning import activation_memory, plan, speed
from lrft.planning import render as plan_render
from lrft.planning.plan import Plan, chosen, make_plan
from lrft.training import step
from lrft.training.forward_backward import forward_backward
from lrft.utils import files
from lrft.utils.text import byte_size

ROOT = Path(lrft.__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("plan"))


@pytest.mark.parametrize(("name", "objective"), [("modernbert", "classification"), ("bert", "embedding")])
def test_a_head_is_counted_as_it_will_be_trained(
    name: str, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the labels of the data; the modules say all that is trained."""
    monkeypatch.setattr(speed, "MEASURED_SECONDS", 0.01)
    place = (classifiers if objective == "classification" else embedders).place(tmp_path, name)
    made = planned(place)
    labels = classifiers.LABELS if objective == "classification" else ()
    head = Head("sequence" if labels else "embedding", labels, pad_id=2)
    attached = lrft.attach(load_model(tmp_path / "base", dtype=torch.float32, head=head), {"method": "lora", "rank": 4})
    assert made.trained == sum(p.numel() for p in attached.trained().values())
    vectors = sum(p.numel() for m in attached.modules_to_save.values() for p in m.parameters() if p.ndim == 1)
    listed = sum(module["trained"] for module in made.modules)
    assert made.trained - vectors <= listed <= made.trained
    assert all(m["module"] not in ("base", "trained") for m in made.modules)


def planned(place: Place, *keys: str, devices: int = 1, nodes: int = 1) -> Plan:
    recipe = place.recipe(*keys)
    _, prepared = load_data(recipe, place.root / "base")
    return make_plan(recipe, place.root / "base", prepared, devices, nodes=nodes)


@ONE_FOR_EACH_FORM
def test_counts_are_those_of_the_real_model(case: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every method can be built and passed through without content."""
    monkeypatch.setattr(speed, "MEASURED_SECONDS", 0.01)
    words = CASES[case][0]
    made = planned(place, f"adapter.method={json.dumps(words)}")
    model: Any = load_model(place.root / "base", dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    section = place.recipe(f"adapter.method={json.dumps(words)}").adapter
    prune_base(model, compose.compose_section(section))
    whole = made.memory["one device"]
    assert made.parameters == parameters
    assert whole.weights == 4 * sum(p.numel() for p in model.parameters())
    assert whole.gradients == 4 * made.trained
    assert whole.activations > 0
    assert sum(m["trained"] for m in made.modules) <= made.trained
    if compose.compose_section(section).calibrates:
        return  # ranks follow from data, which a plan does not look at
    attached = lrft.attach(model, {"method": words, "rank": 4})
    assert made.trained == sum(p.numel() for p in attached.trained().values())
    assert whole.adapter == sum(p.numel() * p.element_size() for p in attached.tensors().values())


def test_the_optimiser_is_counted_by_what_it_keeps(place: Place) -> None:
    for method in ("lora", "galore", "fira", "frugal", "flora", {"galore": {"projection": "dct"}}):
        keys = (f"adapter.method={json.dumps(method)}", "training.max_steps=1")
        made = planned(place, *keys)
        run = place.train(*keys, out=f"state-{json.dumps(method)[2:8].strip()}-{len(json.dumps(method))}")
        state = {n: t for n, t in runs.tensors(run).items() if n.startswith("optimizer.safetensors")}
        kept = sum(t.numel() * t.element_size() for t in state.values() if t.ndim)
        assert made.memory["one device"].optimizer == pytest.approx(kept, rel=0.4 if method == "frugal" else 0.02), (
            method
        )


def test_gradients_that_are_taken_as_they_arrive_are_not_counted(place: Place) -> None:
    keys = ("adapter.target_modules=[q_proj]", "training.max_grad_norm=none", "training.micro_batch_size=4")
    plain = planned(place, *keys, "adapter.method=galore").memory["one device"].gradients
    layerwise = planned(place, *keys, "adapter.method=[{galore: {layerwise: true}}]").memory["one device"].gradients
    projected = (
        planned(place, *keys, "adapter.method=[{flora: {accumulation: projected}}]").memory["one device"].gradients
    )
    d = k = tiny.WIDTH
    assert (plain, layerwise, projected) == (2 * 4 * d * k, 0, 2 * 4 * d * 4)


def test_steps_tokens_and_the_largest_pass_are_those_of_the_run(place: Place) -> None:
    made = planned(place)
    records = runs.records(place.train(out="counted"))
    assert made.steps == len(records) == runs.STEPS
    assert made.tokens == records[-1]["tokens"]
    recipe = place.recipe()
    rows = prepare_data(recipe, place.root / "base", load_recipe_tokenizer(recipe, place.root / "base")).train
    two = sorted(rows.lengths.tolist())[-2:]
    assert max(two) < made.largest <= sum(two)
    assert planned(place, "data.packing=false").largest >= made.largest


@pytest.mark.parametrize(
    "method",
    [
        {"adversarial-model-perturbation": {"steps": 2}},
        {"adversarial-model-perturbation": {"eps": 0.0}},
        "gradient-regularization",
        {"booster": {"harmful": runs.other_rows()}},
        {"bilora": {"share": 0.5}},
        "ba-lora",
        {"ba-lora": {"consistency": 0.0}},
    ],
    ids=["amp", "amp-off", "gradient-regularization", "booster", "bilora", "ba-lora", "ba-lora-alone"],
)
def test_operations_are_those_of_every_pass_that_a_step_makes(
    method: Any, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (
        f"adapter.method={json.dumps(method)}",
        "training.micro_batch_size=1",  # no padding
        "training.gradient_checkpointing=none",
        "training.max_steps=2",
    )
    made = planned(place, *keys)
    tokens, inside = {True: 0, False: 0}, [False]
    forward = LlamaModel.forward

    def counting(model: Any, **given: Any) -> Any:
        tokens[torch.is_grad_enabled()] += inside[0] * given["input_ids"].numel()
        return forward(model, **given)

    def of_a_step(*given: Any) -> Any:
        inside[0] = True
        found = forward_backward(*given)
        inside[0] = False
        return found

    monkeypatch.setattr(LlamaModel, "forward", counting)
    monkeypatch.setattr(step, "forward_backward", of_a_step)
    place.train(*keys, out="passes", fresh=True)
    matrix = sum(m["layers"] * m["d"] * m["k"] for m in made.modules)
    assert made.flops == pytest.approx(tokens[True] * (4 * matrix + 2 * made.trained) + tokens[False] * 2 * matrix)


def test_gradients_are_summed_and_blocks_gathered_for_every_pass(place: Place) -> None:
    alone, more = (
        planned(place, f"adapter.method={json.dumps(method)}", devices=2).communication
        for method in ("lora", {"adversarial-model-perturbation": {"steps": 2}})
    )
    assert {name: more[name] / alone[name] for name in more} == {name: pytest.approx(3) for name in ("ddp", "fsdp")}


def test_what_autograd_keeps_is_what_it_keeps_with_real_tensors() -> None:
    """The same count on a real model; attention apart, which a plan takes as fused."""
    for method in ("lora", "dora", "mora", "hra"):
        model = tiny.make("llama").train()
        lrft.attach(model, {"method": method, "rank": 4})
        real = activation_memory.kept_by(model, activation_memory.Batch([40])).size
        with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            fake_model = tiny.MODELS["llama"]().requires_grad_(False).train()
            composition = compose.compose([(method, {})])
            sites = lrft.attach(tiny.make("llama"), {"method": method, "rank": 4}).sites
            attach_sites(fake_model, sites, composition, seed=0, fresh=False)
            fake = activation_memory.kept_by(fake_model, activation_memory.Batch([40])).size
        assert fake == pytest.approx(real, rel=0.02), method


def test_devices_divide_the_blocks_of_the_base(place: Place) -> None:
    made = planned(place, devices=4)
    assert list(made.memory) == ["ddp", "zero2", "fsdp"], "one device's passes would be larger"
    ddp, sharded = made.memory["ddp"], made.memory["fsdp"]
    model: Any = load_model(place.root / "base", dtype=torch.float32)
    within = sum(4 * p.numel() for name, p in model.named_parameters() if ".layers." in name)
    blocks = model.config.num_hidden_layers
    gathered = min(within, within // 4 + 2 * within // blocks)
    assert sharded == dataclasses.replace(ddp, weights=ddp.weights - within + gathered)
    summed = 2 * 0.75 * ddp.gradients
    passes = 1  # four rows, one for each device
    assert made.communication["ddp"] == pytest.approx(summed)
    assert made.communication["fsdp"] == pytest.approx(summed + 2 * passes * 0.75 * within)
    assert made.rings["fsdp"][0].times == 2 * passes * blocks
    few = planned(place, "adapter.layers=[0]", devices=4)
    assert few.rings["fsdp"][0] == made.rings["fsdp"][0], "blocks without adapters are gathered as well"


@pytest.mark.parametrize(
    ("keys", "nodes", "strategy"),
    [
        ((), 2, "ddp"),
        (("distributed.strategy=ddp",), 2, "ddp"),
        (("distributed.strategy=fsdp",), 2, "fsdp"),
        (("distributed.strategy=fsdp", "distributed.shard_over=all"), 2, "fsdp over all"),
        (("distributed.strategy=fsdp", "distributed.shard_over=all"), 1, "fsdp"),
        (("distributed.strategy=fsdp",), 4, "fsdp"),
        (("distributed.strategy=zero2",), 2, "zero2"),
    ],
)
def test_the_strategy_is_the_one_that_the_recipe_chooses(
    place: Place, keys: tuple[str, ...], nodes: int, strategy: str
) -> None:
    made = planned(place, *keys, devices=4, nodes=nodes)
    assert made.strategy == strategy
    larger = {name: dataclasses.replace(made.memory[name], weights=n * 10**9) for n, name in enumerate(made.memory, 1)}
    made = dataclasses.replace(made, memory=larger)
    said = dict(plan_render.table_rows(made, place.recipe(*keys)))
    assert f"`lrft train` runs {strategy} (distributed.strategy: " in said["4 devices"][-1]
    assert ("shard_over: all" in said["4 devices"][-1]) == (strategy == "fsdp over all")
    assert byte_size(larger[strategy].total) in said["memory"][-1], "the parts are those of the choice"
    assert byte_size(larger[strategy].weights) in plan_render.parts_line(made)
    over = {"fsdp": f"{4 if nodes == 4 else 4 // nodes} devices", "fsdp over all": "4 devices"}.get(strategy, "")
    (weights,) = [line for line in said["memory"] if line.startswith("weights")]
    assert weights.endswith(over or "frozen")


def test_auto_divides_a_base_that_leaves_a_gpu_too_little() -> None:
    recipe: Any = SimpleNamespace(distributed=SimpleNamespace(strategy="auto", shard_over="node"))
    names = ["ddp", "fsdp", "fsdp over all"]
    limit = int(0.7 * 80e9)
    assert not torch.cuda.is_available(), "else the memory is that GPU's"
    assert chosen(recipe, limit, names)[0] == "ddp"
    assert chosen(recipe, limit + 1, names) == (
        "fsdp",
        "distributed.strategy: auto, as the base takes more than 70% of a GPU's 80 GB",
    )
    assert chosen(recipe, limit + 1, ["one device"])[0] == "one device"


def test_dividing_what_has_no_blocks_is_refused_as_in_a_run(place: Place) -> None:
    with pytest.raises(RecipeError, match=r"argument \d+ distributed.strategy: transformers declares no blocks"):
        chosen(place.recipe("distributed.strategy=fsdp"), 1, ["ddp"])


def test_the_command_shows_it_and_gives_json(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(place.root / "recipe.yaml")
    assert run_command(["plan", recipe, "--devices", "2"]) == 0
    said = capsys.readouterr().out
    for word in ("q_proj", "activations", "together", "ddp", "TFLOP", "steps"):
        assert word in said
    assert run_command(["plan", recipe, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["memory"]["one device"]["total"] > facts["memory"]["one device"]["weights"]
    assert run_command(["plan", recipe, "--devices", "0"]) == 2
    assert run_command(["plan", recipe, "adapter.rank=0"]) == 2


def test_nodes_multiply_devices_and_slow_what_is_sent(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, said = str(place.root / "recipe.yaml"), {}
    for nodes in ("1", "2"):
        assert run_command(["plan", recipe, "--devices", "4", "--nodes", nodes, "--json"]) == 0
        said[nodes] = json.loads(capsys.readouterr().out)
    assert (said["2"]["devices"], said["2"]["nodes"]) == (8, 2)
    assert list(said["1"]["memory"]) == ["ddp", "zero2", "fsdp"]
    assert said["2"]["memory"]["fsdp"]["weights"] == said["1"]["memory"]["fsdp"]["weights"]
    names = ("ddp", "zero2", "fsdp", "fsdp over all")
    for name in names:
        assert said["2"]["exchange"][name] > said["1"]["exchange"].get(name, 0)
        least, most = said["2"]["efficiency"][name]
        assert 0 < least <= most <= 1
        assert (least == most) == (name == "zero2"), "DeepSpeed computes nothing while it exchanges"
    assert said["2"]["exchange"]["fsdp over all"] > said["2"]["exchange"]["fsdp"]
    assert run_command(["plan", recipe, "--devices", "4", "--nodes", "2"]) == 0
    text = capsys.readouterr().out
    assert "2 x 4" in text
    assert "50 GB/s between" in text
    assert all(f"{name} " in text for name in names)
    for devices in (4, 8):
        assert f"blocks divided over {devices} devices" in " ".join(text.split())
    assert run_command(["plan", recipe, "--nodes", "0"]) == 2


@pytest.mark.slow
def test_the_page_on_scale_has_what_the_plan_says(place: Place) -> None:
    """A Llama 3.1 8B by its config alone: the parts that do not depend on the rows."""
    width, inner, blocks, heads = tables.SHAPES["8B"]
    root = place.root / "eight"
    shutil.copytree(place.root / "base", root)
    config = json.loads((root / "config.json").read_text()) | {
        **{"vocab_size": 128256, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks},
        **{"num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": width // heads},
    }
    (root / "config.json").write_text(json.dumps(config))
    keys = (f"model={root}", "training.precision=bf16", "adapter.rank=16", "training.micro_batch_size=1")
    arguments = ["--devices=8", "--nodes=8", "--json", "training.global_batch_size=64"]
    made = json.loads(process("plan", str(place.root / "recipe.yaml"), *keys, *arguments))
    page = tables.cases("8B", files.read_json(ROOT / "docs" / "scale.json")["8B"], "bf16", 64)
    for name, case in page.items():
        for part in ("weights", "adapter", "gradients", "optimizer"):
            assert made["memory"][name][part] == getattr(case.memory, part), (name, part)
        assert made["communication"][name] == case.sends
        assert made["exchange"][name] == case.communication


# --- measured ---

RECIPES = {
    "lora": (),
    "lora-light": ("training.gradient_checkpointing=light",),
    "lora-full": ("training.gradient_checkpointing=full",),
    "dora": ("adapter.method=dora",),
    "mora": ("adapter.method=mora",),
    "full": ("adapter.method=full",),
    "padded": ("data.packing=false",),
    "nf4": ("model.quantization=nf4",),
    "int8": ("model.quantization=int8",),
}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model whose activations are more than the process itself."""
    place = Place.make(tmp_path_factory.mktemp("larger"), train_rows=1)
    config = json.loads((place.root / "base" / "config.json").read_text())
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            **{key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
    )
    model.save_pretrained(place.root / "base")
    said = {"role": "assistant", "content": "forty two time " * 60}
    rows = [{"messages": [{"role": "user", "content": "hello world " * 3}, said]}] * 8
    runs.write_rows(place.root / "train.jsonl", rows)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "lora-full" else [pytest.mark.all]) for name in RECIPES],
)
def test_the_forecast_is_within_15_percent_of_the_measured_peak(larger: Place, name: str) -> None:
    keys = (
        *(
            "training.global_batch_size=8",
            "training.micro_batch_size=8",
            "training.max_steps=2",
            "training.epochs=null",
        ),
        *("data.validation=none", f"output_dir={larger.root / name}", *RECIPES[name]),
    )
    recipe = str(larger.root / "recipe.yaml")
    forecast = json.loads(process("plan", recipe, "--json", *keys))["memory"]["one device"]["total"]
    process("train", recipe, "--fresh", *keys)
    lines = (larger.root / name / "metrics.jsonl").read_text().splitlines()
    assert forecast == pytest.approx(max(json.loads(line)["memory_gb"] for line in lines) * 1e9, rel=0.15)


def process(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "lrft", *arguments], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_time_is_more_than_steps(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("evaluation.every=2", "evaluation.at_start=true", "evaluation.samples=2", "checkpoint.every=3")
    made = planned(place, *keys)
    parts = made.time
    assert made.evaluations == 4
    assert made.seconds == pytest.approx(parts.start + parts.steps + parts.evaluation + parts.answers + parts.saving)
    assert parts.before == 0
    assert min(parts.start, parts.steps, parts.evaluation, parts.answers, parts.saving) > 0
    without = planned(place)
    assert (without.evaluations, without.time.evaluation, without.time.answers) == (0, 0, 0)
    assert parts.saving == pytest.approx(4 * without.time.saving), "steps 2, 3, 4 and 6; the last one alone"
    longer = planned(place, *keys, "evaluation.max_new_tokens=256").time
    assert longer.answers / parts.answers == pytest.approx(2, rel=0.9)


def test_what_the_reference_costs_is_in_the_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass without gradients is two operations for each token and weight."""
    monkeypatch.setattr(plan, "speed_here", lambda dtype: 1e9)
    asks = {"prompt": [{"role": "user", "content": "2 + 2?"}]}
    rows = [asks | {"chosen": "four", "rejected": "five" + " or six" * n} for n in range(8)]
    runs.write_rows(place.root / "pairs.jsonl", rows)
    keys = (f"data.train={place.root / 'pairs.jsonl'}", "data.validation=2", "evaluation.every=2", "data.cache=false")
    plain, cached, each = (
        planned(place, *keys, f"training.objective={words}")
        for words in ("simpo", "dpo", "{dpo: {reference: each-step, loss: bco_pair}}")
    )
    matrix = sum(m["layers"] * m["d"] * m["k"] for m in plain.modules if m["module"] != "lm_head")
    matrix += sum(m["d"] * m["k"] for m in plain.modules if m["module"] == "lm_head")
    recipe = place.recipe(*keys, "training.objective=dpo")
    prepared = prepare_data(recipe, place.root / "base", load_recipe_tokenizer(recipe, place.root / "base"))
    tokens = int(prepared.train.lengths.sum()), int(prepared.validation.lengths.sum())
    assert plain.time.before == each.time.before == 0
    assert cached.time.before == pytest.approx(2 * matrix * sum(tokens) / 0.75e9)
    assert (cached.flops, cached.time.evaluation) == (plain.flops, plain.time.evaluation)
    assert each.flops - plain.flops == pytest.approx(3 * 2 * matrix * plain.tokens)
    assert each.time.evaluation == pytest.approx(4 * plain.time.evaluation)
    lines = plan_render.time_lines(cached)
    assert sum("to ask the base about all rows once" in line for line in lines) == 1
    assert cached.seconds == pytest.approx(sum(dataclasses.asdict(cached.time).values()))
