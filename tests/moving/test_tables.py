"""The tables of other tools' keys: each line leads to a key that exists, by a conversion that exists."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from lrft import recipe, registry
from lrft.foreign import lora, trainer, values
from lrft.foreign.entries import SAYS, Missing, Needless, To, place
from lrft.foreign.tools import TOOLS
from lrft.moving.conversions import CONVERSIONS
from lrft.moving.convert import entry_of
from lrft.recipe import foreign_keys
from lrft.recipe.json_schema import _all_keys
from lrft.recipe.schema import CHOICE_OPTIONS

# Owners of options: the names of their registry, or of a choice of the schema.
OPTIONS = {
    "training.objective": {knob.name for card in registry.declared("objectives").values() for knob in card.knobs},
    "training.optimizer": {"beta1", "beta2", "betas", "eps"},
    "training.lr_scheduler": {"options", *(o for allowed in CHOICE_OPTIONS["lr_scheduler"].values() for o in allowed)},
    "data.train": {*recipe.DataEntry.model_fields, "configuration"},
    "model.quantization": {"type", "method"},
}
# What several keys of another tool decide together: lrft.moving.finish makes keys of these.
JOINED = {
    *("batch.per_device", "batch.accumulation", "batch.devices", "batch.nodes", "batch.global", "batch.passes"),
    *(f"{section}.{how}" for section in ("evaluation", "checkpoint") for how in ("per_epoch", "strategy")),
}
KEYS = set(_all_keys(recipe.json_schema()))
EVERY = pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)


def exists(key: str) -> bool:
    owner, _, option = key.rpartition(".")
    if key in JOINED or option in OPTIONS.get(owner, ()):
        return True
    if key.startswith("logging.report_to."):
        tracker = key.split(".")[2]
        return option in {knob.name for knob in registry.declared("trackers")[tracker].knobs}
    return key in KEYS


@EVERY
def test_each_line_leads_somewhere(tool: ModuleType) -> None:
    for theirs, entry in tool.KEYS.items():
        if isinstance(entry, To):
            assert exists(entry.key), theirs
            assert entry.how in CONVERSIONS, theirs
            assert place(entry).split(",")[0].split(":")[0].split(" ")[0] in KEYS, theirs
        else:
            assert isinstance(entry, Needless | Missing)
            assert entry.reason, theirs
    assert set(tool.DEFAULTS) <= set(tool.KEYS)
    assert [sign for sign in tool.SIGNS if "that lrft knows" in getattr(entry_of(sign, tool), "reason", "")] == []


def test_no_conversion_and_no_word_is_left_over() -> None:
    entries = [entry for tool in TOOLS.values() for entry in tool.KEYS.values() if isinstance(entry, To)]
    assert {entry.how for entry in entries} == set(CONVERSIONS)
    assert {entry.key for entry in entries} >= {key for key in SAYS if key.startswith(("batch.", "evaluation."))}


def test_errors_take_their_names_from_the_tables_and_list_others_only() -> None:
    agreed = {name: [] for name, _ in foreign_keys._entries()}
    for name, entry in foreign_keys._entries():
        agreed[name].append(place(entry) if isinstance(entry, To) else "")
    twice = [name for name in foreign_keys.OTHERS if name in agreed and len(set(agreed[name])) == 1]
    assert twice == []
    assert foreign_keys.keys()["lora_r"] == "adapter.rank"
    assert "plot_loss" in foreign_keys.reasons()


def test_values_that_are_translated_are_explained_in_errors_too() -> None:
    for key, table in (("training.optimizer", values.OPTIMIZERS), ("training.lr_scheduler", values.SCHEDULES)):
        for word, choice in table.items():
            name = choice if isinstance(choice, str) else next(iter(choice))
            assert name in foreign_keys.VALUES[key][word]
    known = {"objectives": values.LOSSES.values(), "optimizers": values.OPTIMIZERS.values()}
    for kind, choices in known.items():
        for choice in choices:
            name, options = (choice, {}) if isinstance(choice, str) else next(iter(choice.items()))
            registry.declared(kind)[name].validate(options)
    assert {name for name in values.STARTS.values() if name} <= set(registry.methods())
    assert set(values.TRACKERS.values()) <= set(registry.declared("trackers"))
    assert set(values.SCHEDULES.values()) <= set(CHOICE_OPTIONS["lr_scheduler"])


def fields(package: str, file: str, name: str) -> set[str]:
    """Annotated fields of a class of an installed package, from its source."""
    source = Path(str(find_spec(package).origin)).parent / file
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_every_field_of_a_lora_config_of_peft_is_known() -> None:
    assert fields("peft", "tuners/lora/config.py", "LoraConfig") - {"task_type"} <= set(lora.KEYS)


def test_keys_of_training_arguments_are_those_of_transformers() -> None:
    # Names of earlier versions, and what trl and unsloth take beside them.
    earlier = {
        *("evaluation_strategy", "overwrite_output_dir", "save_safetensors", "logging_dir", "group_by_length"),
        *(
            "length_column_name",
            "fsdp_transformer_layer_cls_to_wrap",
            "warmup_ratio",
            "local_rank",
            "hub_model_revision",
        ),
    }
    assert set(trainer.KEYS) - fields("transformers", "training_args.py", "TrainingArguments") <= earlier
