"""Where models and data are, as other tools say it: names of the hub, files, and names of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrft.moving.draft import Nothing, Unsaid

FILES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".txt", ".gz", ".zst")

# Data sets that a builder of torchtune, or a class of LitGPT, loads when nothing else is said.
TORCHTUNE = {
    "alpaca_dataset": "tatsu-lab/alpaca",
    "alpaca_cleaned_dataset": "yahma/alpaca-cleaned",
    "stack_exchange_paired_dataset": "lvwerra/stack-exchange-paired",
    "hh_rlhf_helpful_dataset": "RLHFlow/HH-RLHF-Helpful-standard",
    "grammar_dataset": "liweili/c4_200m",
    "samsum_dataset": "Samsung/samsum",
    "slimorca_dataset": "Open-Orca/SlimOrca-Dedup",
    "cnn_dailymail_articles_dataset": "ccdv/cnn_dailymail",
    "wikitext_dataset": "EleutherAI/wikitext_document_level",
}
LITGPT = {
    "Alpaca2k": "mhenrichsen/alpaca_2k_test",
    "Deita": "HuggingFaceH4/deita-10k-v0-sft",
    "LIMA": "GAIR/lima",
}
# type of a data set of Axolotl -> format of lrft.
AXOLOTL_TYPES = {
    "alpaca": "alpaca",
    "sharegpt": "sharegpt",
    "completion": "text",
    "chat_template": "",
    "chat_template.default": "preference",
    "chatml.intel": "",
    "input_output": "",
}


def place(name: str, folder: Path) -> str:
    """`name` as `data.train.path` says it: a file or folder as it is, a name OWNER/NAME on the hub with hub: before."""
    if name.startswith(("hub:", "https://", "s3://", "gs://")):
        return name
    if name.endswith(FILES) or name.startswith((".", "/", "~")) or (folder / name).exists():
        return name
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return f"hub:{name}"
    raise Unsaid(f"{name} is neither a file nor OWNER/NAME of the hub")


def _hub(value: Any, by: Any, folder: Path) -> Any:
    name = str(value)
    if name in ("json", "csv", "text", "parquet"):
        raise Nothing("the ending of a file's name says how it is read")
    return {"path": f"hub:{name}" if re.fullmatch(r"[\w-]+", name) else place(name, folder)}


def _entry(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One data set of Axolotl."""
    path = item.get("data_files") or item.get("path")
    if isinstance(path, list):
        path = path[0] if len(path) == 1 else None
    if not isinstance(path, str):
        raise Unsaid("data.train takes one path an entry")
    entry: dict[str, Any] = {"path": place(path, folder)}
    name = item.get("name")
    if isinstance(name, str) and entry["path"].startswith("hub:"):
        entry["path"] += f"/{name}"
    if isinstance(split := item.get("split"), str) and split != "train" and re.fullmatch(r"[\w.-]+", split):
        entry["split"] = split
    kind = str(item.get("type", "")).split(":")[0]
    if found := AXOLOTL_TYPES.get(kind):
        entry["format"] = found
    messages = item.get("field_messages")
    if isinstance(messages, str) and messages not in ("messages", "conversations"):
        entry["columns"] = {messages: "messages"}
    if isinstance(field := item.get("field"), str) and field != "text":
        entry["columns"] = {field: "text"}
    return entry


def _axolotl_datasets(value: Any, by: Any, folder: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Unsaid("expected a list of data sets")
    return [_entry(item, folder) for item in value]


def _one_path(entries: list[dict[str, Any]]) -> str:
    """The path of a validation set, which has no keys of its own."""
    if len(entries) != 1 or len(entries[0]) != 1:
        raise Unsaid("data.validation takes one path; further ones stand under evaluation.sets")
    path: str = entries[0]["path"]
    return path


def _axolotl_test(value: Any, by: Any, folder: Path) -> str:
    return _one_path(_axolotl_datasets(value, by, folder))


def _trl_mixture(value: Any, by: Any, folder: Path) -> list[dict[str, Any]]:
    """Data sets of TRL's mixture: id or path, config, split."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Unsaid("expected a list of data sets")
    entries = []
    for item in value:
        entry = _entry({**item, "path": item.get("id") or item.get("path"), "name": item.get("config")}, folder)
        if isinstance(weight := item.get("weight"), int | float) and weight != 1:
            entry["weight"] = float(weight)
        entries.append(entry)
    weighed = any("weight" in entry for entry in entries)
    return [{**entry, "weight": entry.get("weight", 1.0)} for entry in entries] if weighed else entries


def _hub_ids(value: Any, by: Any, folder: Path) -> list[dict[str, Any]]:
    """Data sets of ms-swift: NAME[:CONFIGURATION[/CONFIGURATION]][#ROWS], or files."""
    entries = []
    for word in value if isinstance(value, list) else [value]:
        name, _, rows = str(word).partition("#")
        name = name.removeprefix("HF::").removeprefix("MS::")
        name, _, configuration = (
            name.partition(":") if "/" in name and not name.startswith(("/", ".")) else (name, "", "")
        )
        entry: dict[str, Any] = {"path": place(name, folder)}
        if configuration and entry["path"].startswith("hub:"):
            entry["path"] += f"/{configuration.split('/')[0]}"
        if rows.isdigit() and int(rows):
            entry["limit"] = int(rows)
        entries.append(entry)
    return entries


def _hub_id(value: Any, by: Any, folder: Path) -> str:
    return _one_path(_hub_ids(value, by, folder))


def _registered(value: Any, by: Any, folder: Path) -> list[dict[str, Any]]:
    """Data sets of LLaMA-Factory, which have their names in dataset_info.json beside the configuration or above it."""
    names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",")]
    known, where = _dataset_info(folder)
    entries: list[dict[str, Any]] = []
    for name in names:
        info = known.get(name, {})
        if "file_name" in info:
            entries.append({"path": str(where / info["file_name"])})
        elif hub := info.get("hf_hub_url"):
            entries.append({"path": f"hub:{hub}"})
        else:
            raise Unsaid(f"{name} is a name of dataset_info.json, which was not found: name the file or hub:OWNER/NAME")
        if columns := _columns(info.get("columns")):
            entries[-1]["columns"] = columns
        if isinstance(split := info.get("split"), str):
            entries[-1]["split"] = split
    return entries


def _columns(given: Any) -> dict[str, str]:
    ours = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "messages": "messages",
        "chosen": "chosen",
        "rejected": "rejected",
    }
    if not isinstance(given, dict):
        return {}
    return {theirs: ours[name] for name, theirs in given.items() if name in ours and theirs != ours[name]}


def _dataset_info(folder: Path) -> tuple[dict[str, Any], Path]:
    for above in (folder, *folder.resolve().parents[:4]):
        for place_ in (above / "dataset_info.json", above / "data" / "dataset_info.json"):
            if place_.is_file():
                try:
                    return json.loads(place_.read_text(encoding="utf-8")), place_.parent
                except (ValueError, OSError):
                    continue
    return {}, folder


def _registered_one(value: Any, by: Any, folder: Path) -> str:
    return _one_path(_registered(value, by, folder))


def _mlx_folder(value: Any, by: Any, folder: Path) -> list[dict[str, Any]]:
    """A folder with train.jsonl and valid.jsonl, or a name of the hub."""
    name = str(value)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not (folder / name).exists():
        return [{"path": f"hub:{name}"}]
    return [{"path": f"{name.rstrip('/')}/train.jsonl"}]


def _torchtune_dataset(value: Any, by: Any, folder: Path) -> Any:
    name = str(value).rsplit(".", 1)[-1]
    if name not in TORCHTUNE:
        raise (
            Nothing("dataset.source names the data")
            if name in _BY_SOURCE
            else Unsaid(f"{name}: name its data by data.train.path")
        )
    return {"path": f"hub:{TORCHTUNE[name]}"}


_BY_SOURCE = ("chat_dataset", "instruct_dataset", "preference_dataset", "text_completion_dataset")


def _torchtune_source(value: Any, by: Any, folder: Path) -> Any:
    return _hub(value, by, folder)


def _torchtune_files(value: Any, by: Any, folder: Path) -> Any:
    paths = value if isinstance(value, list) else [value]
    return [{"path": str(path)} for path in paths]


def _litgpt_data(value: Any, by: Any, folder: Path) -> Any:
    name = str(value).rsplit(".", 1)[-1]
    if name == "JSON":
        raise Nothing("data.init_args.json_path names the data")
    if name not in LITGPT:
        raise Unsaid(f"{name}: name its data by data.train.path")
    return {"path": f"hub:{LITGPT[name]}"}


def _litgpt_model(value: Any, by: Any, folder: Path) -> str:
    """checkpoints/OWNER/NAME is where LitGPT keeps a converted model of the hub."""
    match = re.fullmatch(r"(?:\./)?checkpoints/([\w.-]+/[\w.-]+)/?", str(value))
    return match[1] if match else str(value)


def _unsloth_model(value: Any, by: Any, folder: Path) -> str:
    """Repositories with 4-bit weights are named by what they were made from."""
    return re.sub(r"(?:-unsloth)?-bnb-4bit$", "", str(value))


CONVERSIONS: Mapping[str, Callable[[Any, Any, Path], Any]] = {
    "hub": _hub,
    "axolotl_datasets": _axolotl_datasets,
    "axolotl_test": _axolotl_test,
    "trl_mixture": _trl_mixture,
    "hub_ids": _hub_ids,
    "hub_id": _hub_id,
    "registered": _registered,
    "registered_one": _registered_one,
    "mlx_folder": _mlx_folder,
    "torchtune_dataset": _torchtune_dataset,
    "torchtune_source": _torchtune_source,
    "torchtune_files": _torchtune_files,
    "litgpt_data": _litgpt_data,
    "litgpt_model": _litgpt_model,
    "unsloth_model": _unsloth_model,
}
