"""Recipes: what is read, what is refused and with which words, what is written back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lrft import recipe
from lrft.errors import Problem, RecipeError, UsageError
from lrft.recipe import messages, schema
from lrft.recipe.nodes import DEFAULT, Source, mapping, plain
from lrft.recipe.problems import Problems
from lrft.recipe.yaml_parser import parse

GOOD = """\
model: acme/tiny
data: train.jsonl
adapter:
  method: lora
  rank: 8
output_dir: runs/a
"""


def write(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, text: str | bytes, *arguments: str) -> recipe.Recipe:
    return recipe.load(write(folder, text), arguments)


def problems(folder: Path, text: str | bytes, *arguments: str) -> list[tuple[str, str]]:
    """(place without the folder, text) of each problem."""
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *arguments)
    prefix = f"{folder}{os.sep}"
    return [(p.place.replace(prefix, ""), p.text.replace(prefix, "")) for p in caught.value.problems]


def one(folder: Path, text: str | bytes, *arguments: str) -> tuple[str, str]:
    found = problems(folder, text, *arguments)
    assert len(found) == 1, found
    return found[0]


# --- scalars


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("2.5e-5", 2.5e-5),
        ("1e+4", 1e4),
        ("1E4", 1e4),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("+5", 5),
        ("-5", -5),
        ("0", 0),
        ("-0.0", 0.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("0o10", 8),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("NULL", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("tRue", "tRue"),
        ("none", "none"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("1__0", "1__0"),
        ("_1", "_1"),
        ("1e", "1e"),
        ("e4", "e4"),
        (".", "."),
        ("0b11", "0b11"),
        ("0o9", "0o9"),
        ("1,000", "1,000"),
        ("0-7", "0-7"),
        ("'16'", "16"),
        ('"1e-4"', "1e-4"),
        ("'null'", "null"),
        ("lora+", "lora+"),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: Any) -> None:
    """Trust 51."""
    found = Problems()
    read = plain(parse(f"key: {written}\n", Source("x"), found))["key"]
    assert found.found == []
    assert read == value
    assert type(read) is type(value)


def test_escapes_of_json_are_read() -> None:
    assert plain(parse('["\\ud83d\\ude00", "a\\/b\\u00e4"]', Source("x"), Problems())) == ("\U0001f600", "a/b\xe4")


def test_nan_is_read_as_a_number() -> None:
    assert math.isnan(plain(parse("[.nan]", Source("x"), Problems()))[0])


@pytest.mark.parametrize("written", ["010", "-007", "0_1", "00"])
def test_a_leading_zero_is_ambiguous(tmp_path: Path, written: str) -> None:
    place, text = one(tmp_path, GOOD + f"training: {{seed: {written}}}\n")
    assert place == "recipe.yaml:7:18"
    assert text.startswith(f"{written} is ambiguous: write ")


def test_a_huge_number_is_refused(tmp_path: Path) -> None:
    assert "a number of 5000 characters" in one(tmp_path, GOOD + f"training: {{seed: {'9' * 5000}}}\n")[1]
    assert "must be a finite" in one(tmp_path, GOOD + "training: {learning_rate: 1e999}\n")[1].replace(
        "expected", "must be"
    )


# --- files that are no recipe


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (b"", "1:1", "the file is empty"),
        (b"# only a comment\n", "1:1", "the file is empty"),
        (b"---\n", "2:1", "the file is empty"),
        (b"hello\n", "1:1", "expected keys"),
        (b"- a\n- b\n", "1:1", "expected keys"),
        (b"a: 1\n---\nb: 2\n", "2:1", "a second document"),
        (b"a: 1\nb: \x00\n", "2:4", "control character"),
        (b"a: 1\nb: x\x07\n", "2:5", "control character"),
        (b"a: 1\nbc: \xff\n", "2:5", "byte 0xff is not UTF-8"),
        ("a: 1\n".encode("utf-16"), "1:1", "UTF-16"),
        ("a: 1\n".encode("utf-16-be"), "1:1", "control character"),
        (b"a:\n\tb: 1\n", "2:1", "a tab cannot indent"),
        (b"a: b: c\n", "1:5", "a second ': '"),
        (b"a: [1, 2\n", "2:1", "not closed"),
        (b"a: {b: 1\n", "2:1", "not closed"),
        (b"a: 'x\n", "2:1", "quotation mark"),
        (b"a: *x\n", "1:4", "the alias *x"),
        (b"a: &a [*a]\n", "1:8", "inside the value"),
        (b"a: !!str 5\n", "1:4", "tag"),
        (b"a: !!python/object/apply:os.system [ls]\n", "1:4", "tag"),
        (b'a: "\\UFFFFFFFF"\n', "1:7", "out of range"),
        (b"%YAML 1." + b"1" * 5000 + b"\n---\na: 1\n", "1:9", "out of range"),
        (b"x" * 300_000, "1:1", "larger than 256 KB"),
        (b"[" * 20_000, "1:33", "nested more than 32"),
        (b"{a: " * 20_000, "1:126", "nested more than 32"),
        (b"- " * 5_000, "1:65", "nested more than 32"),
    ],
)
def test_what_is_no_recipe_is_refused_at_its_place(tmp_path: Path, text: bytes, place: str, said: str) -> None:
    found = one(tmp_path, text)
    assert found[0] == f"recipe.yaml:{place}"
    assert said in found[1]


def test_alias_bombs_are_counted_before_they_are_walked(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "more than 20000 values" in one(tmp_path, "\n".join(lines))[1]


def test_a_chain_of_aliases_counts_as_depth(tmp_path: Path) -> None:
    lines = ["a0: &a0 x", *(f"a{i}: &a{i} [[*a{i - 1}]]" for i in range(1, 900))]
    assert "nested more than 32" in one(tmp_path, "\n".join(lines))[1]


def test_aliases_within_the_limits_are_allowed(tmp_path: Path) -> None:
    text = GOOD + "evaluation: {every: &often 0.2}\ncheckpoint: {every: *often}\n"
    assert load(tmp_path, text).checkpoint.every == 0.2


@pytest.mark.parametrize(
    ("lines", "place", "said"),
    [
        ("output_dir: b\n", "7:1", "output_dir is given twice: lines 6 and 7"),
        ("training: {seed: 1, seed: 2}\n", "7:21", "seed is given twice: lines 7 and 7"),
        ("1: x\n", "7:1", "a key is a name, got 1"),
        ("~: x\n", "7:1", "a key is a name, got ~"),
        ("[a]: x\n", "7:1", "a key is a name, got a list or map"),
        ("? {a: b}\n: x\n", "7:3", "a key is a name, got a list or map"),
        ("<<: {lrft: 1}\n", "7:1", "merge keys (<<) are not supported"),
        ('training: {precision: "a\\0b"}\n', "7:23", "not text"),
        ('training: {precision: "\\ud800"}\n', "7:23", "not text"),
    ],
)
def test_wrong_keys_and_texts(tmp_path: Path, lines: str, place: str, said: str) -> None:
    found = one(tmp_path, GOOD + lines)
    assert found[0] == f"recipe.yaml:{place}"
    assert said in found[1]


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    expected = load(tmp_path, GOOD)
    assert load(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()) == expected
    windows = load(tmp_path, GOOD.replace("\n", "\r\n"))
    assert windows == expected
    assert windows.where("adapter.rank").endswith("recipe.yaml:5:9")


def test_a_file_that_cannot_be_read_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        recipe.load(tmp_path / "no.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        recipe.load(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.load(tmp_path / ("x" * 5000))
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.load("a\0b")


# --- values and places


def test_the_short_forms_and_the_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, "model: a/b\ndata: t.jsonl\noutput_dir: r\n")
    assert found.model.name == "a/b"
    assert found.data.train == (recipe.DataEntry(path="t.jsonl"),)
    assert [entry.name for entry in found.adapter.method] == ["lora"]
    assert (found.adapter.rank, found.adapter.alpha, found.adapter.target_modules) == (
        16,
        "auto",
        ("all-linear",),
    )
    assert (found.training.epochs, found.training.max_steps, found.training.learning_rate) == (
        3.0,
        None,
        2e-4,
    )
    assert found.training.lr_scheduler == recipe.LrScheduler(name="cosine")
    assert (found.evaluation.every, found.checkpoint.keep, found.logging.every) == ("auto", 2, 10)
    assert found.where("model.name").endswith("recipe.yaml:1:8")
    assert found.where("data.train.0.path").endswith("recipe.yaml:2:7")
    assert found.where("adapter.method") == found.where("training.seed") == "default"


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("adapter: pissa", "adapter.method", ["pissa"]),
        ("adapter: [pissa, lora+]", "adapter.method", ["pissa", "lora+"]),
        ("adapter: {target_modules: q_proj}", "adapter.target_modules", ("q_proj",)),
        ("adapter: {target_modules: [q_proj, 're:.*v']}", "adapter.target_modules", ("q_proj", "re:.*v")),
        ("adapter: {layers: 2-4}", "adapter.layers", (2, 3, 4)),
        ("adapter: {layers: [5, 0]}", "adapter.layers", (0, 5)),
        ("adapter: {alpha: 32}", "adapter.alpha", 32.0),
        ("adapter: {scale: 2}", "adapter.scale", 2.0),
        ("training: {max_steps: 9}", "training.epochs", None),
        ("training: {max_steps: 9, epochs: 2}", "training.epochs", 2.0),
        ("training: {max_grad_norm: none}", "training.max_grad_norm", None),
        ("training: {max_grad_norm: null}", "training.max_grad_norm", 1.0),
        ("training: {early_stopping: none}", "training.early_stopping", "none"),
        ("training: {early_stopping: {patience: 2}}", "training.early_stopping.patience", 2),
        ("training: {lr_scheduler: wsd}", "training.lr_scheduler.decay_ratio", 0.2),
        ("training: {lr_scheduler: {wsd: {decay_ratio: 0.5}}}", "training.lr_scheduler.decay_ratio", 0.5),
        (
            "training: {optimizer: {adamw: {betas: [0.9, 0.95]}}}",
            "training.optimizer.options",
            {"betas": (0.9, 0.95), "eps": 1e-8, "implementation": "auto"},
        ),
        ("evaluation: {every: 50.0}", "evaluation.every", 50),
        ("evaluation: {every: none}", "evaluation.every", "none"),
        ("evaluation: {samples: null}", "evaluation.samples", 3),
    ],
)
def test_values_and_their_forms(tmp_path: Path, written: str, key: str, value: Any) -> None:
    text = "model: m\ndata: d\noutput_dir: o\n"
    found: Any = load(tmp_path, text + written + "\n")
    for part in key.split("."):
        found = getattr(found, part)
    if key == "adapter.method":
        found = [entry.name for entry in found]
    assert found == value
    assert type(found) is type(value)


def test_validation_is_a_share_a_count_or_a_path(tmp_path: Path) -> None:
    base = "model: m\noutput_dir: o\ndata: {train: t, validation: "
    for written, value in (("0.1", 0.1), ("50", 50), ("v.jsonl", "v.jsonl"), ("none", "none")):
        assert load(tmp_path, base + written + "}\n").data.validation == value
    for written in ("1.5", "0", "-1", "true", "'0.1'", "[a]", "''"):
        assert one(tmp_path, base + written + "}\n")[1].startswith("data.validation: expected a fraction")


def test_a_value_equal_to_the_default_counts_as_not_set(tmp_path: Path) -> None:
    text = "model: m\ndata: d\noutput_dir: o\nadapter: {exclude_modules: [lm_head], rank: 8}\n"
    assert load(tmp_path, text).adapter.model_fields_set == {"method", "rank"}


WRONG = [
    ("adapter: {rnak: 8}", "4:11", "adapter.rnak is not a key. Did you mean rank?"),
    ("adapter: {rank: fast}", "4:17", "adapter.rank: expected a whole number, got the text 'fast'"),
    (
        "adapter: {rank: '16'}",
        "4:17",
        "adapter.rank: expected a whole number, got the text '16'. Remove the quotes",
    ),
    ("adapter: {rank: 0}", "4:17", "adapter.rank: must be at least 1, got 0"),
    ("adapter: {rank: 1e3}", "4:17", "adapter.rank: expected a whole number, got 1e3. Write 1000"),
    ("adapter: {rank: true}", "4:17", "adapter.rank: expected a whole number, got true"),
    ("adapter: {dropout: 1}", "4:20", "adapter.dropout: must be below 1, got 1"),
    ("adapter: {dropout: [1]}", "4:20", "adapter.dropout: expected a number, got a list"),
    ("adapter: {alpha: .nan}", "4:18", "adapter.alpha: expected a number above 0, or auto; got nan"),
    ("adapter: {scale: .inf}", "4:18", "adapter.scale: expected a finite number, got .inf"),
    ("adapter: {target_modules: all}", "4:27", "adapter.target_modules: got 'all'. Here: all-linear"),
    (
        "adapter: {target_modules: [q, 5]}",
        "4:31",
        "adapter.target_modules.1: expected text, got 5. Put it in quotes",
    ),
    ("adapter: {target_modules: 're:('}", "4:27", "adapter.target_modules: '(' is not a regular expression"),
    ("adapter: {target_modules: [null]}", "4:28", "adapter.target_modules.0: expected text, got nothing"),
    ("adapter: {layers: 3}", "4:19", "adapter.layers: expected all, a range such as 0-7, or a list"),
    ("adapter: {layers: 7-0}", "4:19", "adapter.layers: the range 7-0 is empty"),
    ("adapter: {layers: 0-99999}", "4:19", "adapter.layers: expected all"),
    ("adapter: {layers: [1, 1]}", "4:19", "adapter.layers: a layer is listed twice"),
    ("adapter: {overrides: {'re:(': {rank: 2}}}", "4:23", "adapter.overrides.re:(: '(' is not a regular"),
    (
        "adapter: {overrides: {q: {rnk: 2}}}",
        "4:27",
        "adapter.overrides.q.rnk is not a key. Did you mean rank?",
    ),
    ("adapter: {overrides: {q: {}}}", "4:26", "adapter.overrides.q: give rank, alpha or scale"),
    ("adapter: {biases: some}", "4:19", "adapter.biases"),
    (
        "training: {micro_batch_size: x}",
        "4:30",
        "training.micro_batch_size: expected auto or a whole number of at least 1; got the text 'x'",
    ),
    (
        "training: {micro_batch_tokens: -3}",
        "4:32",
        "training.micro_batch_tokens: expected auto or a whole number of at least 1; got -3",
    ),
    (
        "training: {micro_batch_tokens: true}",
        "4:32",
        "training.micro_batch_tokens: expected auto or a whole number of at least 1; got true",
    ),
    ("adapter: {train_tokens: added}", "4:25", "adapter.train_tokens: added means the tokens of model.add_tokens"),
    (
        "adapter: lorra",
        "4:10",
        "adapter.method: 'lorra' is not a method. Did you mean lora? `lrft methods` lists them",
    ),
    ("adapter: qlora", "4:10", "adapter.method: qlora is lora over a quantised base model: use lora, and"),
    (
        "adapter: {method: [lora, mora]}",
        "4:26",
        "adapter.method: lora and mora both build the update: keep one",
    ),
    (
        "adapter: {method: [mora, lora+]}",
        "4:26",
        "adapter.method: lora+ requires a pair of factors A and B; mora has no",
    ),
    ("adapter: {method: [pissa, pissa]}", "4:27", "adapter.method: pissa is listed twice"),
    (
        "adapter: {method: pissa, dropout: 0.1}",
        "4:19",
        "adapter.method: pissa requires adapter.dropout: 0, got 0.1",
    ),
    ("adapter: {method: mora, alpha: 16}", "4:32", "adapter.alpha: mora has no scaling factor alpha/r"),
    (
        "adapter: {method: mora, overrides: {q: {scale: 2}}}",
        "4:48",
        "adapter.overrides.q.scale: mora has no scaling factor",
    ),
    (
        "adapter: {method: {lora+: {rato: 1}}}",
        "4:28",
        "adapter.method: lora+ has no option rato. Did you mean ratio?",
    ),
    ("adapter: {method: {lora+: {ratio: 0}}}", "4:35", "adapter.method: lora+.ratio: must be above 0, got 0"),
    ("adapter: {method: {lora+: 16}}", "4:27", "adapter.method: expected a map of lora+'s options"),
    ("adapter: {method: []}", "4:19", "adapter.method: the list is empty"),
    ("adapter: {method: [3]}", "4:20", "adapter.method: expected a name"),
    (
        "adapter: {method: {pissa: {}, lora+: {}}}",
        "4:19",
        "adapter.method: expected a name, or one name with options",
    ),
    ("adapter: {alpha: 8, scale: 1}", "4:28", "adapter.alpha and adapter.scale are both set"),
    ("adapter: 5", "4:10", "adapter.method: expected a name"),
    ("rank: 5", "4:1", "rank belongs under adapter: adapter.rank"),
    ("precision: bf16", "4:1", "precision is not a key. There are model.precision and training.precision"),
    ("trianing: {}", "4:1", "trianing is not a key. Did you mean training?"),
    ("max_lenght: 5", "4:1", "max_lenght is not a key. Did you mean data.max_length?"),
    ("zzzz: 5", "4:1", "zzzz is not a key. Keys here: lrft, model, adapter"),
    ("logging: {output_dir: x}", "4:11", "output_dir belongs at the left margin: output_dir"),
    ("training: 5", "4:11", "training: expected a map of keys, got 5"),
    ("training: [a]", "4:11", "training: expected a map of keys, got a list"),
    (
        "training: {learning_rate: fast}",
        "4:27",
        "training.learning_rate: expected a number, got the text 'fast'",
    ),
    ("training: {learning_rate: 1,0e-4}", "4:29", "a key is a name, got 0e-4; put it in quotes"),
    (
        "training: {lr_scheduler: cosin}",
        "4:26",
        "training.lr_scheduler: expected one of cosine, cosine-restarts, linear, polynomial, inverse-sqrt, "
        "constant, wsd; got 'cosin'. Did",
    ),
    ("training: {lr_scheduler: {cosin: {}}}", "4:27", "training.lr_scheduler: expected one of cosine"),
    (
        "training: {lr_scheduler: {cosine: {decay_ratio: 1}}}",
        "4:36",
        "training.lr_scheduler: decay_ratio is no option of cosine; it takes min_lr_ratio",
    ),
    (
        "training: {lr_scheduler: {constant: {min_lr_ratio: 1}}}",
        "4:38",
        "training.lr_scheduler: min_lr_ratio is no option of constant; it takes no options",
    ),
    (
        "training: {lr_scheduler: {min_lr_ratio: 1}}",
        "4:26",
        "training.lr_scheduler: expected one name, or one with",
    ),
    (
        "training: {lr_scheduler: {wsd: {decay_ratio: 2}}}",
        "4:46",
        "training.lr_scheduler.decay_ratio: must be at most 1",
    ),
    ("training: {optimizer: {adamw: {betas: [0.9]}}}", "4:39", "training.optimizer: adamw.betas"),
    (
        "training: {optimizer: adam}",
        "4:23",
        "training.optimizer: expected adafactor, adamw, adamw-8bit, adamw-torchao, ademamix, lion, muon, "
        "paged-adamw, schedule-free-adamw or sgd; got 'adam'. Here: adamw",
    ),
    (
        "training: {warmup_ratio: 0.1, warmup_steps: 5}",
        "4:45",
        "training.warmup_ratio and training.warmup_steps are both",
    ),
    (
        "training: {early_stopping: {patience: 0}}",
        "4:39",
        "training.early_stopping.patience: must be at least 1, got 0",
    ),
    ("training: {early_stopping: {}}", "4:28", "training.early_stopping.patience is required."),
    ("training: {early_stopping: true}", "4:28", "training.early_stopping: expected a map of keys, got true"),
    ("training: {early_stopping: never}", "4:28", "training.early_stopping: expected none; got 'never'"),
    ("training: {precision: bfloat16}", "4:23", "training.precision: got 'bfloat16'. Here: bf16"),
    ("training: {packing: true}", "4:12", "packing belongs under data: data.packing"),
    (
        "training: {compile: true, gradient_checkpointing: light}",
        "4:51",
        "training.compile requires gradient_checkpointing none or full: light caches linear outputs",
    ),
    (
        "training: {gradient_checkpointing: yes}",
        "4:36",
        "training.gradient_checkpointing: ",
    ),
    ("training: {seed: -1}", "4:18", "training.seed: must be at least 0, got -1"),
    (
        "training: {seed: 3_000_000_000}",
        "4:18",
        "training.seed: must be at most 2147483647, got 3_000_000_000",
    ),
    ("training: {max_grad_norm: 0}", "4:27", "training.max_grad_norm: must be above 0, got 0"),
    (
        "evaluation: {every: 1.5}",
        "4:21",
        "evaluation.every: expected a fraction of the run below 1, a whole number",
    ),
    (
        "evaluation: {every: 1.0}",
        "4:21",
        "evaluation.every: 1.0 is no fraction below 1; write 1 for every step, or none",
    ),
    (
        "evaluation: {every: 0}",
        "4:21",
        "evaluation.every: expected a fraction of the run below 1, a whole number",
    ),
    ("model: {name: a}", "4:1", "model is given twice"),
    *(
        (f"distributed: {{strategy: {word}}}", "4:25", f"distributed.strategy: got '{word}'. Here: {here}")
        for word, here in {
            **dict.fromkeys(("zero1", "zero-2"), "zero2. For small adapters it saves almost nothing"),
            **dict.fromkeys(("zero3", "zero-3"), "fsdp, which shards the frozen base as ZeRO-3 does"),
            "deepspeed": "zero2, which shards gradients and optimiser state, or fsdp",
            "fsdp2": "fsdp, which is FSDP2",
            "hsdp": "fsdp with distributed.shard_over: node",
        }.items()
    ),
    *(
        (
            f"training: {{{key}: {value}}}\ndistributed: {{strategy: zero2}}",
            "5:25",
            f"distributed.strategy: zero2 requires {needed}",
        )
        for key, value, needed in (
            ("precision", "fp16", "training.precision: bf16 or fp32"),
            ("micro_batch_size", "auto", "a number for training.micro_batch_size"),
        )
    ),
    ("lrft: 2", "4:7", "this recipe was written for a newer lrft: format 2, here 1"),
    ("lrft: true", "4:7", "lrft: expected a whole number, got true"),
    ("lrft: 0", "4:7", "lrft: must be at least 1, got 0"),
    ("extends: no.yaml", "4:10", "extends: no.yaml: there is no such file"),
    ("extends: recipe.yaml", "4:10", "extends: recipe.yaml extends itself"),
    (
        "extends: [lrft:base]",
        "4:11",
        "extends: packaged recipes (lrft:...) are not supported in this version",
    ),
    ("extends: {a: b}", "4:10", "extends: expected a path or a list of paths"),
    (
        "compare: {runs: {}}",
        "4:1",
        "compare is another tool's name, without a key in lrft: a key of the file that lrft compare takes",
    ),
    ("task: causal-lm", "4:1", "task is another tool's name, without a key in lrft: training.objective says it"),
    ("compile: true", "4:1", "compile belongs under training: training.compile"),
]


@pytest.mark.parametrize(("line", "place", "said"), WRONG, ids=[line for line, _, _ in WRONG])
def test_each_mistake_is_told_at_its_place(tmp_path: Path, line: str, place: str, said: str) -> None:
    found = one(tmp_path, f"model: m\ndata: d\noutput_dir: o\n{line}\n")
    assert found[0] == f"recipe.yaml:{place}"
    text = found[1].replace(f"extends: {tmp_path}{os.sep}", "extends: ")
    assert text.startswith(said), text


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lora_r: 8", "In lrft: adapter.rank"),
        ("lora_target_linear: true", "In lrft: adapter.target_modules: all-linear"),
        ("use_rslora: true", "In lrft: adapter.method: rslora"),
        ("loraplus_lr_ratio: 16", "In lrft: adapter.method: {lora+: {ratio: ...}}"),
        ("cutoff_len: 512", "In lrft: data.max_length"),
        ("train_on_inputs: false", "In lrft: data.train_on"),
        ("val_set_size: 0.1", "In lrft: data.validation"),
        (
            "template: llama3",
            "without a key in lrft: the tokenizer's own chat template is the default of data.chat_template",
        ),
        ("per_device_train_batch_size: 4", "In lrft: training.micro_batch_size"),
        ("batch_size: 4", "is ambiguous. Per step over all devices: training.global_batch_size"),
        ("num_train_epochs: 3", "In lrft: training.epochs"),
        ("bf16: true", "In lrft: training.precision: bf16"),
        ("logging_steps: 1", "In lrft: logging.every"),
        ("save_total_limit: 1", "In lrft: checkpoint.keep"),
        ("load_in_4bit: true", "In lrft: model.quantization: nf4"),
        ("wandb_project: x", "logging.report_to: [{wandb: {project: ..., run_name: ...}}]"),
        ("resume_from_checkpoint: x", "lrft train RECIPE --resume"),
        *(
            (f"{key}: x", "In lrft: distributed.strategy: auto, ddp, fsdp or zero2")
            for key in ("deepspeed", "deepspeed_config", "zero_stage", "fsdp", "distributed_type")
        ),
        ("fsdp_config: x", "without a key in lrft: distributed.strategy: fsdp needs no settings"),
    ],
)
def test_names_of_other_tools_are_translated(tmp_path: Path, key: str, said: str) -> None:
    place, text = one(tmp_path, f"{GOOD}{key}\n")
    assert place == "recipe.yaml:7:1"
    assert text.startswith(key.split(":")[0])
    assert said in text


def test_accumulation_is_multiplied_when_the_rows_per_device_are_there(tmp_path: Path) -> None:
    text = GOOD + "training: {micro_batch_size: 4, gradient_accumulation_steps: 8}\n"
    assert "(4 per device x 8 steps = 32 on one device)" in one(tmp_path, text)[1]
    assert "on one device" not in one(tmp_path, GOOD + "gradient_accumulation_steps: 8\n")[1]


def test_every_translation_leads_to_a_key_that_exists() -> None:
    from lrft.recipe import foreign_keys

    for key in {sentence.split(",")[0].split(":")[0].split(" ")[0] for sentence in foreign_keys.keys().values()}:
        recipe.describe(key)
    known = set(recipe.json_schema()["$defs"]["TrainingSection"]["properties"])
    assert not known & set(foreign_keys.keys())


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "model: {nam: x}\nadapter: {rnak: 1, rank: 0}\ndata: {max_length: a}\noutput_dir: 5\n"
    assert [place for place, _ in problems(tmp_path, text, "training.seed=x", "foo")] == [
        "recipe.yaml:1:9",
        "recipe.yaml:2:11",
        "recipe.yaml:2:26",
        "recipe.yaml:3:7",
        "recipe.yaml:3:20",
        "recipe.yaml:4:13",
        "argument 1",
        "argument 2",
    ]


def test_a_file_full_of_mistakes_is_cut_off(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "\n".join(f"key{i}: 1" for i in range(5000)))
    assert len(caught.value.problems) <= 100


# --- extends, arguments, environment


def test_extends_merges_maps_and_replaces_the_rest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "extends: ../root.yaml\nadapter: {rank: 4, target_modules: [q, v]}\n", "base.yaml")
    write(tmp_path, "training: {seed: 1, epochs: 1, lr_scheduler: {wsd: {decay_ratio: 0.5}}}\n", "root.yaml")
    write(tmp_path, "model: {name: base, revision: r}\nadapter: pissa\n", "other.yaml")
    text = """\
extends: [sub/base.yaml, other.yaml]
model: m
data: d
adapter: {target_modules: [k]}
training: {seed: null, lr_scheduler: cosine}
output_dir: o
"""
    found = load(tmp_path, text)
    assert (found.model.name, found.model.revision) == ("m", "r")
    assert (found.adapter.rank, found.adapter.target_modules) == (4, ("k",))
    assert [entry.name for entry in found.adapter.method] == ["pissa"]
    assert (found.training.seed, found.training.epochs) == (42, 1.0)
    assert found.training.lr_scheduler == recipe.LrScheduler(name="cosine")
    assert found.where("adapter.rank") == f"{tmp_path / 'sub' / 'base.yaml'}:2:17"
    assert found.where("training.epochs") == f"{tmp_path / 'root.yaml'}:1:29"
    assert found.where("model.name") == f"{tmp_path / 'recipe.yaml'}:2:8"


def test_a_problem_in_a_base_names_the_line_that_led_there(tmp_path: Path) -> None:
    write(tmp_path, "training:\n  learning_rate: fast\n", "base.yaml")
    found = problems(tmp_path, GOOD + "extends: base.yaml\nrnk: 1\n")
    assert [place for place, _ in found] == ["recipe.yaml:8:1", "base.yaml:2:18"]
    assert found[1][1] == (
        "training.learning_rate: expected a number, got the text 'fast' (from extends in recipe.yaml:7)"
    )


def test_circles_of_extends_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: recipe.yaml\n", "base.yaml")
    assert one(tmp_path, GOOD + "extends: base.yaml\n")[0] == "base.yaml:1:10"


def test_too_many_bases_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "lrft: 1\n", "base.yaml")
    assert "more than 16 files" in problems(tmp_path, GOOD + f"extends: [{', '.join(['base.yaml'] * 40)}]\n")[0][1]


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("adapter.rank=4", "adapter.rank", 4),
        ("training.learning_rate=1e-3", "training.learning_rate", 1e-3),
        ("output_dir=runs/x=1", "output_dir", "runs/x=1"),
        ("output_dir='runs/x: 1'", "output_dir", "runs/x: 1"),
        ("adapter=mora", "adapter.rank", 8),
        ("adapter.rank=", "adapter.rank", 16),
        ("~adapter.rank", "adapter.rank", 16),
        ("~adapter", "adapter.rank", 16),
        ("adapter.target_modules=[q, v]", "adapter.target_modules", ("q", "v")),
        ("training={seed: 7, epochs: 1}", "training.seed", 7),
        ("training.lr_scheduler.linear.min_lr_ratio=0.5", "training.lr_scheduler.name", "linear"),
        ("model.revision='123'", "model.revision", "123"),
    ],
)
def test_arguments_change_one_key(tmp_path: Path, argument: str, key: str, value: Any) -> None:
    found: Any = load(tmp_path, GOOD, argument)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_arguments_reach_into_lists_and_apply_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("data: train.jsonl", "data: [a, b, c]")
    arguments = ("data.train.1.limit=5", "~data.train.0", "training.seed=1", "training.seed=2")
    found = load(tmp_path, text, *arguments)
    assert [(entry.path, entry.limit) for entry in found.data.train] == [("b", 5), ("c", None)]
    assert found.training.seed == 2
    assert found.where("training.seed") == "argument 4"
    assert found.where("data.train.0.limit") == "argument 1"
    assert load(tmp_path, GOOD, "data=[x, y]").data.train[1].path == "y"
    methods = load(tmp_path, GOOD, "adapter.method=[pissa, lora+]").adapter.method
    assert [entry.name for entry in methods] == ["pissa", "lora+"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("adapter.rank", "'adapter.rank' is not an override: write key=value, or ~key to remove a key"),
        ("=5", "'=5' is not an override"),
        ("--rank=5x", "--rank is not a key"),
        ("a..b=5", "'a..b=5' is not an override"),
        ("adapter.rank=[1", "not valid YAML"),
        ("training={seed: 1, seed: 2}", "seed is given twice"),
        ("adapter.rank=x", "adapter.rank: expected a whole number, got the text 'x'"),
        ("adapter.rank=010", "010 is ambiguous"),
        ("adapter.rank=\x00", "control character"),
        ("output_dir=\udcff", "control character"),
        ("adapter.rnak=1", "adapter.rnak is not a key. Did you mean rank?"),
        ("output_dir.x=1", "output_dir.x cannot be set: output_dir is one value, not a map"),
        ("training.objective=[dpo]", "training.objective: expected a name, or one name with options"),
        ("training.objective={dpo: {}, kto: {}}", "training.objective: expected a name, or one name with options"),
        ("data.train.1.limit=1", "data.train is a list of 1: it has no item 1"),
        ("data.train.0.wieght=1", "data.train.0.wieght is not a key. Did you mean weight?"),
        ("data.train.x=1", "data.train is a list of 1: it has no item x"),
        ("~training.seed", "training.seed is not set, so it cannot be removed"),
        ("~", "'~' is not an override"),
        ("extends=x.yaml", "extends belongs in a file"),
        (".".join(["a"] * 3000) + "=1", "the key is too long"),
        ("adapter.rank=" + "[" * 5000, "nested more than 32"),
    ],
)
def test_wrong_arguments_are_problems_at_their_number(tmp_path: Path, argument: str, said: str) -> None:
    place, text = one(tmp_path, GOOD, "training.seed=3" if argument[0] != "~" else "lrft=1", argument)
    assert place == "argument 2"
    assert text.startswith(said) or (said in text and said in ("not valid YAML", "control character"))


def test_an_argument_gives_an_option_to_what_has_a_name_alone(tmp_path: Path) -> None:
    text = "model: m\ndata: d\noutput_dir: o\ntraining: {objective: dpo}\n"
    found = load(tmp_path, text, "training.objective.dpo.beta=0.3")
    assert found.training.objective.options["beta"] == 0.3
    assert found.training.objective.options["loss"] == "sigmoid"
    assert one(tmp_path, text, "training.objective.dpo.bata=1")[1].endswith("beta?")
    refused = one(tmp_path, text, "training.objective.kto.beta=1")[1]
    assert refused.endswith("training.objective is one value, not a map")


def test_environment_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_T_NAME", "some-model")
    monkeypatch.setenv("LRFT_T_LAYERS", "0-1")
    monkeypatch.delenv("LRFT_T_NO", raising=False)
    text = """\
model: hub/${LRFT_T_NAME}
data: ${LRFT_T_NO:-d.jsonl}
adapter: {layers: "${LRFT_T_LAYERS}", method: "${LRFT_T_NO:-rslora}"}
output_dir: runs/${LRFT_T_NAME}-${LRFT_T_NO:-}
"""
    found = load(tmp_path, text)
    assert (found.model.name, found.data.train[0].path) == ("hub/some-model", "d.jsonl")
    assert (found.adapter.layers, found.adapter.method[0].name) == ((0, 1), "rslora")
    assert found.output_dir == "runs/some-model-"
    written = recipe.resolved(found)
    assert "some-model" not in written
    assert '"hub/${LRFT_T_NAME}"' in written
    assert load(tmp_path, written) == found


def test_missing_and_malformed_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRFT_T_NO", raising=False)
    monkeypatch.setenv("LRFT_T_SECRET", "hunter2")
    monkeypatch.setenv("LRFT_T_LINES", "a\nb")
    cases = {
        "training: {precision: '${LRFT_T_NO}'}": "the environment variable LRFT_T_NO is not set",
        "training: {precision: '${'}": "write a reference to the environment as ${NAME}",
        "training: {precision: '${1x}'}": "write a reference to the environment as ${NAME}",
        "training: {precision: '${LRFT_T_LINES}'}": "LRFT_T_LINES holds line breaks",
        "training: {precision: '${LRFT_T_SECRET}'}": "got the text of ${LRFT_T_SECRET}",
        "training: {seed: '${LRFT_T_SECRET}'}": "got the text of ${LRFT_T_SECRET}",
        "adapter.x: 1": "is not a key",
    }
    for line, said in cases.items():
        place, text = one(tmp_path, GOOD + line + "\n")
        assert place.startswith("recipe.yaml:7:")
        assert said in text
        assert "hunter2" not in text
    for value in ("${LRFT_T_SECRET}", "re:(${LRFT_T_SECRET}"):
        assert "hunter2" not in str(problems(tmp_path, GOOD, f"adapter.layers='{value}'"))
        assert "hunter2" not in str(problems(tmp_path, GOOD, f"adapter.method='{value}'"))
    load(tmp_path, GOOD.replace("runs/a", "${LRFT_T_NO}"), "output_dir=x")  # what is not used is not asked for


# --- written out


FULL = """\
lrft: 1
model: {name: "a: b", revision: '12', precision: float16, attention: eager, trust_remote_code: true}
adapter:
  method: [pissa, {lora+: {ratio: 3}}]
  alpha: 7.5
  target_modules: ["re:.*\\\\.(q|v)", q_proj, "null", "1e4"]
  exclude_modules: []
  layers: [3, 1]
  overrides: {"*.mlp.down_proj": {rank: 4, alpha: 2}, "x#y": {scale: 1e-3}}
data:
  train:
    - {path: "täst \\u2028 \\U0001F600 .jsonl", columns: {"no": prompt, "a b": "c: d"}, limit: 5}
    - hub:a/b
  validation: 12
  packing: true
training: {max_steps: 100, warmup_steps: 5, learning_rate: 1e-20, max_grad_norm: none,
  early_stopping: {patience: 2}, lr_scheduler: constant, optimizer: {adamw: {betas: [0, 0.5], eps: 1e-10}}}
evaluation: {every: 5, at_start: false, micro_batch_size: 2}
output_dir: "  runs/\\t '\\"x  "
"""


@pytest.mark.parametrize("text", [GOOD, FULL, GOOD + "training: {lr_scheduler: {wsd: {min_lr_ratio: 0.1}}}\n"])
def test_a_resolved_recipe_loads_as_the_same(tmp_path: Path, text: str) -> None:
    found = load(tmp_path, text, "training.seed=7")
    again = load(tmp_path, recipe.resolved(found))
    assert again == found
    assert recipe.differences(found, again) == []
    assert load(tmp_path, json.dumps(recipe.plain(found), allow_nan=False)) == found
    assert again.adapter.model_fields_set == found.adapter.model_fields_set
    assert recipe.resolved(again).count("\n") == recipe.resolved(found).count("\n")


def test_resolved_says_where_each_value_came_from(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD, "training.seed=7")
    lines = recipe.resolved(found, {"training.precision": "fp32", "data.train.0.format": "messages"}).splitlines()
    assert f"  rank: 8  # {tmp_path / 'recipe.yaml'}:5:9" in lines
    assert "  seed: 7  # argument 1" in lines
    assert "  dropout: 0.0  # default" in lines
    assert "  precision: fp32  # chosen" in lines
    assert "      format: messages  # chosen" in lines
    with pytest.raises(KeyError, match="nothing\\.here"):
        recipe.resolved(found, {"nothing.here": 1})


def test_a_given_scale_leaves_no_room_for_a_chosen_alpha(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD, "adapter.scale=2")
    assert load(tmp_path, recipe.resolved(found, {"adapter.alpha": 32.0})) == found


def test_resolved_survives_odd_file_names(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "a\nmodel: b\x07.yaml")
    assert load(tmp_path, recipe.resolved(recipe.load(path))) == recipe.load(path)


def test_differences_name_the_keys(tmp_path: Path) -> None:
    a = load(tmp_path, GOOD)
    b = load(tmp_path, GOOD, "adapter.rank=4", "data=[train.jsonl, y]", "training.lr_scheduler=linear")
    assert recipe.differences(a, b)[:1] == [("adapter.rank", 8, 4)]
    assert ("data.train.1.path", None, "y") in recipe.differences(a, b)
    assert ("training.lr_scheduler.name", "cosine", "linear") in recipe.differences(a, b)
    assert a != b
    assert recipe.differences(a, load(tmp_path, GOOD)) == []


def nodes(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(node for child in value.values() for node in nodes(child))]
    return [node for child in value for node in nodes(child)] if isinstance(value, list) else []


def test_the_json_schema_is_closed_and_its_references_exist() -> None:
    schema = recipe.json_schema()
    for node in nodes(schema):
        if node.get("type") == "object" and "properties" in node:
            assert node["additionalProperties"] is False, node
        if "$ref" in node:
            assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]
    for section in ("model", "adapter", "data", "training", "evaluation", "checkpoint", "logging"):
        assert schema["properties"][section]["description"]
    short = schema["properties"]["adapter"]["anyOf"][0]["oneOf"]
    assert "lora" in [form["const"] for form in short]


def test_every_key_is_described(tmp_path: Path) -> None:
    page = recipe.reference()
    text = recipe.resolved(load(tmp_path, GOOD))
    for line in text.splitlines()[1:]:
        key = line.strip().removeprefix("- ").split(":")[0]
        assert f"`{key}`" in page or f"## {key}" in page
    assert "Default: 16" in recipe.describe("adapter.rank")
    assert "at least 1" in recipe.describe("adapter.rank")
    assert "Required." in recipe.describe("data.train.0.path")
    assert "adapter.target_modules" in recipe.describe("adapter")
    with pytest.raises(UsageError, match="adapter\\.rnk is not a key") as caught:
        recipe.describe("adapter.rnk")
    assert caught.value.hint == "Did you mean adapter.rank?"


# --- the Python surface


def test_an_adapter_from_python() -> None:
    section = recipe.parse_adapter({"method": ["pissa", {"lora+": {"ratio": 4}}], "rank": 2, "target_modules": "q"})
    assert [entry.name for entry in section.method] == ["pissa", "lora+"]
    assert section.method[1].options == {"ratio": 4.0}
    assert (section.rank, section.target_modules) == (2, ("q",))
    assert recipe.parse_adapter({}).method[0].name == "lora"
    assert recipe.parse_adapter("mora").method[0].name == "mora"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"rank": 0}, Problem("adapter.rank", "must be at least 1, got 0")),
        ({"rnak": 1}, Problem("adapter.rnak", "is not a key. Did you mean rank?")),
        (
            {"alpha": 10**400},
            Problem("adapter.alpha", "expected a number above 0, or auto; got a huge number"),
        ),
        ({"rank": object}, Problem("adapter.rank", "expected a whole number, got a value of type type")),
        ({"method": ["lora", "mora"]}, None),
        (7, None),
    ],
)
def test_a_wrong_adapter_from_python(value: Any, problem: Problem | None) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.parse_adapter(value)
    assert len(caught.value.problems) == 1
    assert problem is None or caught.value.problems == [problem]


# --- anything at all


def loads_or_is_refused(path: Path, text: bytes, arguments: list[str]) -> None:
    path.write_bytes(text)
    try:
        found = recipe.load(path, arguments)
    except (RecipeError, UsageError) as error:
        "\n".join(error.lines()).encode()  # can be printed
        return
    path.write_text(recipe.resolved(found), encoding="utf-8")
    assert recipe.load(path) == found


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutants") / "recipe.yaml"


PIECES = [
    b":",
    b"\n",
    b" ",
    b"  ",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a ",
    b"*a",
    b"'",
    b'"',
    b"#",
    b"!",
    b"|\n",
    b"? ",
]
PIECES += [
    b"\xff",
    b"\x00",
    b"\t",
    b"~",
    b"1e9",
    b"-1",
    b"<<: ",
    b"%",
    b"${X",
    b"${HOME}",
    b"\\",
    b"\xe2\x80\xa8",
    b",",
    b"0",
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.sampled_from([*PIECES, None]), st.integers(0, 3)), max_size=4),
    st.sampled_from([GOOD, FULL]),
)
def test_mutated_recipes_load_or_are_refused(
    target: Path, edits: list[tuple[int, bytes | None, int]], text: str
) -> None:
    data = text.encode()
    for position, piece, cut in edits:
        start = position % (len(data) + 1)
        data = data[:start] if piece is None else data[:start] + piece + data[start + cut :]
    loads_or_is_refused(target, data, [])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        ["adapter.rank", "data", "adapter.method", "training", "model.name", "data.train.0", "x.y", "lrft"]
    ),
    st.one_of(
        st.text(max_size=8),
        st.integers().map(str),
        st.floats().map(repr),
        st.sampled_from(["[]", "{}", "[{}]", "{a: {}}", "[[]]", "null", "{lora: {}}", "{lora+: null}", "[null]"]),
    ),
)
@example("output_dir", "\ud800")
@example("data.train", "{path: {}}")
def test_any_argument_loads_or_is_refused(target: Path, key: str, value: str) -> None:
    loads_or_is_refused(target, GOOD.encode(), [f"{key}={value}"])


def test_truncation_at_each_byte(target: Path) -> None:
    data = FULL.encode()
    for length in range(0, len(data), 5):
        loads_or_is_refused(target, data[:length], [])


def test_a_recipe_loads_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    code = (
        "import sys; from lrft import recipe; recipe.load(sys.argv[1]);"
        "sys.exit(' '.join({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_an_unknown_key_is_answered_in_every_section() -> None:
    """A section that the answers do not know would be answered with no keys at all."""
    sections = [name for name, info in schema.Recipe.model_fields.items() if is_section(info.annotation)]
    assert {"model", "distributed", "logging"} <= set(sections)
    for name in sections:
        keys = messages.SECTIONS[name,].model_fields
        said = messages.unknown_key((name, "zzzzzz"), mapping({}, DEFAULT))
        assert said.endswith(f"Keys here: {', '.join(keys)}")


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, schema.Section)
