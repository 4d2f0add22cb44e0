"""Configurations of other tools become recipes that are accepted, with every key accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lrft import recipe as recipes
from lrft.cli.main import run_command
from lrft.errors import UsageError
from lrft.foreign.entries import To
from lrft.foreign.tools import TOOLS
from lrft.moving.convert import Moved, move

# A small configuration of each tool: its file's name, its text, and what the recipe must say.
SMALL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "axolotl": (
        "config.yml",
        """
base_model: org/model
adapter: qlora
load_in_4bit: true
lora_r: 8
lora_alpha: 32
lora_target_linear: true
peft_use_rslora: true
datasets:
  - {path: org/rows, type: alpaca, split: some}
  - {path: mine.jsonl, type: chat_template, field_messages: turns}
val_set_size: 0.1
sequence_len: 1024
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 4
evals_per_epoch: 2
optimizer: paged_adamw_8bit
learning_rate: 2e-4
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
wandb_project: trial
lora_modules_to_save: [embed_tokens]
""",
        {
            "model.name": "org/model",
            "model.quantization": "nf4",
            "adapter.method": ["rslora"],
            "adapter.rank": 8,
            "adapter.alpha": 32.0,
            "adapter.modules_to_save": ["embed_tokens"],
            "data.train.0.path": "hub:org/rows",
            "data.train.0.split": "some",
            "data.train.1.path": "mine.jsonl",
            "data.train.1.columns": {"turns": "messages"},
            "data.validation": 0.1,
            "data.max_length": 1024,
            "training.global_batch_size": 16,
            "training.micro_batch_size": 2,
            "training.learning_rate": 2e-4,
            "training.lr_scheduler.min_lr_ratio": 0.1,
            "training.warmup_ratio": 0.0,
            "training.optimizer": "paged-adamw",
            "evaluation.every": 0.125,
            "logging.report_to": ["wandb"],
        },
    ),
    "llama-factory": (
        "dpo.json",
        json.dumps(
            {
                **{"model_name_or_path": "org/model", "stage": "dpo", "finetuning_type": "lora", "lora_target": "all"},
                **{"dataset": "pairs", "cutoff_len": 512, "pref_beta": 0.2, "pref_loss": "ipo", "val_size": 0.1},
                **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_train_epochs": 2.0},
                **{"eval_strategy": "steps", "eval_steps": 50, "deepspeed": "ds_z3_config.json", "plot_loss": True},
                **{"template": "llama3", "loraplus_lr_ratio": 8.0, "save_strategy": "epoch"},
            }
        ),
        {
            "training.objective": "dpo",
            "adapter.method": ["lora", "lora+"],
            "adapter.rank": 8,
            "data.train.0.path": "data/pairs.jsonl",
            "training.global_batch_size": 4,
            "training.learning_rate": 5e-5,
            "training.lr_scheduler.name": "linear",
            "evaluation.every": 50,
            "checkpoint.every": 0.5,
            "distributed.strategy": "fsdp",
        },
    ),
    "ms-swift": (
        "train.sh",
        """# a comment with --learning_rate 1
nproc_per_node=2
export CUDA_VISIBLE_DEVICES=0,1
NPROC_PER_NODE=$nproc_per_node \\
swift sft \\
    --model org/model \\
    --tuner_type lora \\
    --dataset 'org/a#500' 'org/b:part' \\
    --target_modules all-linear \\
    --gradient_accumulation_steps $(expr 16 / $nproc_per_node) \\
    --system "You are 'kind'." \\
    --output_dir runs/$nproc_per_node \\
    --warmup_ratio 0.05
""",
        {
            "adapter.alpha": 32.0,
            "adapter.dropout": 0.05,
            "data.train.0.path": "hub:org/a",
            "data.train.0.limit": 500,
            "data.train.1.path": "hub:org/b/part",
            "data.validation": "none",
            "training.global_batch_size": 16,
            "training.micro_batch_size": 1,
            "training.weight_decay": 0.1,
            "training.gradient_checkpointing": "full",
            "output_dir": "runs/2",
        },
    ),
    "torchtune": (
        "8B_qlora.yaml",
        """
output_dir: /tmp/out
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: /tmp/m/tokenizer.model, max_seq_len: 256}
model:
  _component_: torchtune.models.llama3.qlora_llama3_8b
  lora_attn_modules: ['q_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 4
  lora_alpha: 8
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: "${folder}/m"}
folder: /tmp
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset, packed: False}
batch_size: 2
gradient_accumulation_steps: 8
optimizer: {_component_: torch.optim.AdamW, lr: 3e-4, weight_decay: 0.01}
lr_scheduler: {_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup, num_warmup_steps: 100}
loss: {_component_: torchtune.modules.loss.LinearCrossEntropyLoss}
epochs: 1
dtype: bf16
""",
        {
            "model.name": "/tmp/m",
            "model.quantization": "nf4",
            "adapter.target_modules": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "data.train.0.path": "hub:yahma/alpaca-cleaned",
            "data.max_length": 256,
            "training.learning_rate": 3e-4,
            "training.warmup_steps": 100,
            "training.global_batch_size": 16,
            "training.precision": "bf16",
            "training.max_grad_norm": None,
        },
    ),
    "trl": (
        "run.sh",
        "accelerate launch --num_processes 4 trl/dpo.py --model_name_or_path org/model --dataset_name org/pairs "
        "--use_peft --lora_r 32 --lora_target_modules q_proj v_proj --beta=0.3 --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 2 --learning_rate 5.0e-6 --max_steps 100 --output_dir out --eval_strategy no",
        {
            "training.objective": "dpo",
            "adapter.method": ["lora"],
            "adapter.rank": 32,
            "adapter.alpha": 32.0,
            "adapter.target_modules": ["q_proj", "v_proj"],
            "training.global_batch_size": 16,
            "training.max_steps": 100,
            "training.epochs": None,
            "evaluation.every": "none",
        },
    ),
    "litgpt": (
        "lora.yaml",
        """
checkpoint_dir: checkpoints/org/model
out_dir: out/lora
precision: bf16-true
quantize: bnb.nf4
devices: 2
lora_r: 16
lora_query: true
lora_key: false
lora_value: true
data: {class_path: litgpt.data.JSON, init_args: {json_path: rows.json, mask_prompt: true, val_split_fraction: 0.1}}
train: {global_batch_size: 8, micro_batch_size: 2, lr_warmup_steps: 10, epochs: 2, max_seq_length: 512}
optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.0002, betas: [0.9, 0.95]}}
""",
        {
            "model.name": "org/model",
            "model.quantization": "nf4",
            "adapter.target_modules": ["q_proj", "v_proj"],
            "data.train.0.path": "rows.json",
            "data.train_on": "assistant",
            "data.validation": 0.1,
            "training.global_batch_size": 8,
            "training.micro_batch_size": 2,
            "training.warmup_steps": 10,
            "training.optimizer": "adamw",
        },
    ),
    "mlx-lm": (
        "lora_config.yaml",
        """
model: org/model
fine_tune_type: dora
data: rows/
num_layers: -1
iters: 600
batch_size: 2
grad_accumulation_steps: 3
steps_per_eval: 150
learning_rate: 1e-5
lora_parameters: {keys: ["self_attn.q_proj"], rank: 4, scale: 20.0, dropout: 0.1}
adapter_path: adapters
""",
        {
            "adapter.method": ["dora"],
            "adapter.scale": 20.0,
            "adapter.layers": "all",
            "adapter.target_modules": ["self_attn.q_proj"],
            "data.train.0.path": "rows/train.jsonl",
            "data.train_on": "all",
            "training.max_steps": 200,
            "training.global_batch_size": 6,
            "training.lr_scheduler.name": "constant",
            "evaluation.every": 50,
        },
    ),
    "unsloth": (
        "tune.py",
        """
import os
os.system("touch SIDE-EFFECT")
rank = 8
model, tokenizer = FastLanguageModel.from_pretrained(
    "unsloth/model-bnb-4bit", max_seq_length = 1024, dtype = None, load_in_4bit = True)
model = FastLanguageModel.get_peft_model(model, r = rank, lora_alpha = rank * 2, target_modules = ["q_proj"],
    use_gradient_checkpointing = "unsloth", use_rslora = False, loftq_config = None, random_state = 1)
dataset = load_dataset("org/rows", split = "train")
trainer = SFTTrainer(model = model, train_dataset = dataset, args = SFTConfig(per_device_train_batch_size = 2,
    gradient_accumulation_steps = 4, max_steps = 60, learning_rate = 2e-4, optim = "adamw_8bit", seed = 3407,
    bf16 = is_bfloat16_supported(), dataset_num_proc = os.cpu_count(), output_dir = "outputs", report_to = "none"))
model, tokenizer = FastLanguageModel.from_pretrained("saved")
""",
        {
            "model.name": "unsloth/model",
            "model.quantization": "nf4",
            "adapter.rank": 8,
            "adapter.alpha": 16.0,
            "data.train.0.path": "hub:org/rows",
            "data.max_length": 1024,
            "training.global_batch_size": 8,
            "training.max_steps": 60,
            "training.seed": 3407,
            "training.optimizer": "adamw-8bit",
            "training.gradient_checkpointing": "full",
        },
    ),
    "peft": (
        "adapter_config.json",
        json.dumps(
            {
                **{
                    "peft_type": "LORA",
                    "base_model_name_or_path": "org/model",
                    "r": 4,
                    "lora_alpha": 8,
                    "bias": "none",
                },
                **{"target_modules": ["q_proj"], "rank_pattern": {"layers.0.q_proj": 2}, "use_dora": False},
                **{"init_lora_weights": "pissa", "lora_dropout": 0.1, "task_type": "CAUSAL_LM", "inference_mode": True},
                **{"layers_to_transform": [0, 1], "modules_to_save": ["lm_head"]},
            }
        ),
        {
            "adapter.method": ["pissa"],
            "adapter.rank": 4,
            "adapter.layers": (0, 1),
            "adapter.modules_to_save": ["lm_head"],
            "adapter.dropout": 0.0,
        },
    ),
}
EVERY = pytest.mark.parametrize("name", SMALL)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def value(recipe: recipes.Recipe, key: str) -> Any:
    """A value of a recipe by its dotted key; of names with options, the names."""
    found: Any = recipe
    for part in key.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    if isinstance(found, recipes.Named):
        return found.name
    if isinstance(found, tuple) and found and isinstance(found[0], recipes.Named):
        return [entry.name for entry in found]
    return list(found) if isinstance(found, tuple) and all(isinstance(item, str) for item in found) else found


def accepted(moved: Moved, folder: Path) -> recipes.Recipe:
    return recipes.load(written(folder, "recipe.yaml", moved.text))


@EVERY
def test_a_configuration_is_recognised_and_says_the_same_as_a_recipe(name: str, tmp_path: Path) -> None:
    file, text, wanted = SMALL[name]
    (tmp_path / "data").mkdir()
    written(tmp_path / "data", "dataset_info.json", '{"pairs": {"file_name": "pairs.jsonl"}}')
    moved = move(written(tmp_path, file, text))
    recipe = accepted(moved, tmp_path)
    found = {key: value(recipe, key) for key in wanted}
    found = {key: str(item).removeprefix(f"{tmp_path}/") if "path" in key else item for key, item in found.items()}
    assert moved.tool is TOOLS[name]
    assert found == wanted
    assert not (tmp_path / "SIDE-EFFECT").exists()
    assert not Path("SIDE-EFFECT").exists()


def test_options_go_behind_their_names(tmp_path: Path) -> None:
    for name, key, wanted in (
        ("axolotl", "training.optimizer", {"bits": 8}),
        ("axolotl", "logging.report_to.0", {"project": "trial"}),
        ("llama-factory", "training.objective", {"beta": 0.2, "loss": "ipo"}),
        ("llama-factory", "adapter.method.1", {"ratio": 8.0}),
        ("ms-swift", "training.optimizer", {"betas": (0.9, 0.95)}),
        ("litgpt", "training.optimizer", {"betas": (0.9, 0.95)}),
    ):
        recipe = accepted(move(written(tmp_path, *SMALL[name][:2])), tmp_path)
        found: Any = recipe
        for part in key.split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        assert wanted.items() <= {k: tuple(v) if isinstance(v, list) else v for k, v in found.options.items()}.items()


def test_what_is_left_out_is_told_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, text = SMALL["axolotl"][:2]
    source = written(tmp_path, name, f"{text}loraplus_lr_embedding: 0.000001\n")
    path = tmp_path / "recipe.yaml"
    assert run_command(["init", str(path), "--from", str(source)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "20 of 21 keys have a place in the recipe" in said
    assert "loraplus_lr_embedding: embeddings have the learning rate of the adapter" in said
    assert "#   loraplus_lr_embedding: 1e-06: embeddings have" in path.read_text(encoding="utf-8")
    assert run_command(["check", "--static", str(path)]) == 0
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=lrft.schema.json\n")


def test_what_the_file_does_not_say_is_asked_for_and_can_be_given(tmp_path: Path) -> None:
    source = written(tmp_path, *SMALL["peft"][:2])
    moved = move(source)
    assert moved.open == ("data.train",)
    assert "train:  # the configuration does not say it: replace this" in moved.text
    filled = move(source, model="my/base", data="my.jsonl")
    recipe = accepted(filled, tmp_path)
    assert (filled.open, recipe.model.name, recipe.data.train[0].path) == ((), "my/base", "my.jsonl")


def keys_of(tool: ModuleType) -> st.SearchStrategy[dict[str, Any]]:
    """Some keys of a tool, with values that fit, and values that do not."""
    words = st.sampled_from(
        [
            "lora",
            "qlora",
            "full",
            "dpo",
            "orpo",
            "sft",
            "cosine",
            "linear",
            "adamw_torch",
            "pissa",
            "all",
            "q_proj,v_proj",
            "none",
            "steps",
            "epoch",
            "no",
            "bf16",
            "fp4",
            "org/name",
            "data.jsonl",
            "wandb",
            "${x}",
            "a: b # c",
            "\x1b[0m",
        ]
    )
    plain = st.one_of(st.booleans(), st.integers(-2, 70), st.sampled_from([0.0, 0.05, 0.5, 1.5, 1e-4]), words)
    nested = st.one_of(st.lists(plain, max_size=2), st.dictionaries(words, plain, max_size=2))
    names = [name for name, entry in tool.KEYS.items() if isinstance(entry, To)]
    return st.dictionaries(st.sampled_from(names), st.one_of(plain, plain, plain, nested), min_size=3, max_size=14)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, item in flat.items():
        *above, last = key.split(".")
        inner = tree
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                return {}
        inner[last] = item
    return tree


def says_something(item: Any) -> bool:
    return any(map(says_something, item.values())) if isinstance(item, dict) else item not in (None, "", [])


@EVERY
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(data=st.data())
def test_whatever_keys_say_the_recipe_is_accepted_and_each_key_accounted_for(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    tree = nested(data.draw(keys_of(TOOLS[name])))
    source = written(tmp_path, "any.yaml", yaml.safe_dump(tree))
    try:
        moved = move(source, name)
    except UsageError:
        assert not tree
        return
    accepted(moved, tmp_path)
    told = [line.key for line in (*moved.carried, *moved.needless, *moved.missing)]
    assert len(told) == len(set(told))
    assert all(line.text for line in (*moved.needless, *moved.missing))
    kept = yaml.safe_load(source.read_text(encoding="utf-8"))
    assert {key.split(".")[0] for key in told} == {key for key, item in kept.items() if says_something(item)}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", b"a: [", "a.yaml:1:"),
        ("a.yaml", b"", "holds no keys"),
        ("a.yaml", b"- 1\n- 2\n", "holds no keys"),
        ("a.yaml", b"\xff\xfe\x00", "is not text"),
        ("a.json", b"{", "is not JSON"),
        ("a.yaml", b"colour: red\nsize: 3\n", "belong to none of the known tools clearly"),
        ("a.sh", b"echo hello\n", "holds no command with arguments"),
        ("a.py", b"def f(:\n", "a.py:1: this is not Python"),
        ("a.py", b"print('hello')\n", "calls neither Unsloth"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as refused:
        move(tmp_path / name)
    assert said in refused.value.message


def test_a_tool_is_named_where_keys_do_not_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path, "a.yaml", "learning_rate: 1e-4\nmodel_name_or_path: org/m\noutput_dir: out\n")
    recipe = str(tmp_path / "recipe.yaml")
    assert run_command(["init", recipe, "--from", str(source)]) == 2
    assert "--tool axolotl | llama-factory" in capsys.readouterr().err
    assert run_command(["init", recipe, "--from", str(source), "--tool", "lama-factory"]) == 2
    assert "Did you mean llama-factory?" in capsys.readouterr().err
    assert run_command(["init", recipe, "--from", str(source), "--tool", "llama-factory"]) == 0
    assert run_command(["init", recipe, "--tool", "trl"]) == 2
