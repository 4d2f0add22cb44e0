"""Servers of other projects over our folders: which folder each is given, and the command that starts it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrft.adapters.peft_export import PEFT_TENSORS
from lrft.errors import MissingError, UsageError
from lrft.serving.shelf import BASE, adapter_at
from lrft.utils import files

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for
CONFIG = "adapter_config.json"
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Offer:
    """What an engine will serve. command: that starts it, without the address. names: ours -> the engine's."""

    command: tuple[str, ...]
    names: Mapping[str, str]
    environment: Mapping[str, str]


class Engine:
    """Abstract."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    pip: ClassVar[str]

    def ready(self) -> None:
        """Raises MissingError with the pip command."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingError(f"--engine {self.name} requires the package {missing[0]}", self.pip)

    def offer(self, named: Mapping[str, str], base: Path | None, key: str | None) -> Offer:
        """named: name -> run, adapter or model. base: of the adapters; None for one plain model. key: that it is to ask
        clients for. Raises UsageError for what the engine cannot serve."""
        raise NotImplementedError("abstract")


class Vllm(Engine):
    """vLLM: the base, and LoRAs over it; or one merged model."""

    name: ClassVar[str] = "vllm"
    packages: ClassVar[tuple[str, ...]] = ("vllm",)
    pip: ClassVar[str] = "pip install vllm"

    def offer(self, named: Mapping[str, str], base: Path | None, key: str | None) -> Offer:
        environment = {} if key is None else {"VLLM_API_KEY": key}
        start = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
        if base is None:
            [(name, folder)] = named.items()
            return Offer((*start, folder, "--served-model-name", name), {name: name}, environment)
        folders = {name: lora_at(target) for name, target in named.items()}
        first = next(iter(folders.values()))
        words = [str(base), "--served-model-name", BASE, "--enable-lora", "--max-loras", str(len(folders))]
        words += ["--max-lora-rank", str(room_for(folders))]
        words += ["--lora-modules", *(f"{name}={folder}" for name, folder in folders.items())]
        if (first / "tokenizer_config.json").is_file():
            words += ["--tokenizer", str(first)]
        if (first / TEMPLATE).is_file():
            words += ["--chat-template", str(first / TEMPLATE)]
        return Offer((*start, *words), {name: name for name in (BASE, *folders)}, environment)


class Transformers(Engine):
    """`transformers serve`: one model folder."""

    name: ClassVar[str] = "transformers"
    packages: ClassVar[tuple[str, ...]] = ("fastapi", "uvicorn", "openai")
    pip: ClassVar[str] = "pip install 'transformers[serving]'"

    def offer(self, named: Mapping[str, str], base: Path | None, key: str | None) -> Offer:
        if len(named) > 1:
            raise UsageError("transformers serves one model at a time", "Use --engine vllm, or none.")
        if key is not None:
            raise UsageError("transformers' server asks for no key", "Unset LRFT_API_KEY, or use another engine.")
        [(name, target)] = named.items()
        folder = Path(target) if base is None else Path(target) / "merged"
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"transformers serves model folders, and there is no {folder}",
                f"Merge first: lrft merge {target}; or merge with -o FOLDER, and serve that folder.",
            )
        words = (sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder))
        return Offer(words, {name: str(folder)}, {})


ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Vllm(), Transformers())}


def lora_at(target: str) -> Path:
    """The folder of a run's LoRA in PEFT's format. Raises UsageError for what is none, or more than vLLM loads."""
    folder = adapter_at(target)
    if folder is None or not (folder / PEFT_TENSORS).is_file() or not is_lora(folder):
        raise UsageError(
            f"{target} is no LoRA, which is all that vLLM serves over a base",
            f"Merge it, and serve the folder: lrft merge {target}; or lrft export {target} --to lora.",
        )
    return folder.resolve()


def is_lora(folder: Path) -> bool:
    """PEFT has other types of adapters, in folders of the same files, and DoRA, which vLLM does not load."""
    config = files.read_json(folder / CONFIG)
    return config["peft_type"] == "LORA" and not config.get("use_dora")


def room_for(folders: Mapping[str, Path]) -> int:
    """The smallest rank that vLLM can be told of and that is enough for all. Raises UsageError for none."""
    configs = [files.read_json(folder / CONFIG) for folder in folders.values()]
    most = max(max([config["r"], *(config.get("rank_pattern") or {}).values()]) for config in configs)
    found = next((rank for rank in RANKS if rank >= most), None)
    if found is None:
        raise UsageError(f"vLLM serves LoRAs up to rank {RANKS[-1]}; this one has {most}", "Merge it: lrft merge RUN.")
    return found
