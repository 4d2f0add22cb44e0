"""The model card: what a result is, how it was made and measured, and how other tools load it. No local paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lrft import recipe as recipes
from lrft.recipe import Recipe
from lrft.runs.after import FOLDER as AFTER
from lrft.utils import files
from lrft.utils.markdown import escape, table
from lrft.version import __version__

Kind = Literal["adapter", "own adapter", "model", "gguf"]
# A path that begins at the root, at home or in a folder above; the last name in it is no secret.
PATH = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[\w.@+ -]*/)*([\w.@+-]*)")
LOSSES = ("validation loss at the start", "best validation loss", "last validation loss")


@dataclass(frozen=True)
class Told:
    """What a card is made of. run: the run's folder, if there is one. base: hub id, or a name that says nothing of
    where it lies. licence: of the base, as the hub calls it; None when it is not known."""

    repo: str
    kind: Kind
    base: str
    base_on_hub: bool
    methods: tuple[str, ...]
    licence: str | None
    run: Path | None
    recipe: Recipe | None
    file: str = ""
    """of a gguf"""


def card(told: Told) -> str:
    """The whole README.md."""
    name = told.repo.rpartition("/")[2]
    parts = [front(told), f"# {escape(name)}", introduction(told)]
    if told.run is not None:
        run = files.read_json(told.run / "run.json")
        parts += ["## Data", "\n".join(data(run)), "## Figures", *figures(run, told.run)]
    if told.recipe is not None:
        text = yaml.safe_dump(shown_recipe(told.recipe), sort_keys=False, allow_unicode=True)
        parts += ["## Recipe", f"```yaml\n{text}```"]
    parts += ["## Use", *(f"**{title}**\n\n```{language}\n{code}\n```" for title, language, code in loading(told))]
    return "\n\n".join(parts) + "\n"


def front(told: Told) -> str:
    """What the hub reads."""
    library = {"adapter": "peft", "own adapter": "lrft", "model": "transformers", "gguf": "gguf"}[told.kind]
    values: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    if told.base_on_hub:
        values["base_model"] = told.base
        values["base_model_relation"] = {"model": "finetune", "gguf": "quantized"}.get(told.kind, "adapter")
    if told.licence:
        values["license"] = told.licence
    values["tags"] = ["lrft", *(method for method in told.methods if method)]
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def introduction(told: Told) -> str:
    what = {
        "adapter": "A low-rank adapter, in the format of PEFT, for",
        "own adapter": "An adapter of lrft for",
        "model": "A fine-tuned model, merged from an adapter and",
        "gguf": "A fine-tuned model in the format of llama.cpp, merged from an adapter and",
    }[told.kind]
    licence = (
        f"Licence of the base: {told.licence}."
        if told.licence
        else "The licence of the base was not recorded: look it up before use."
    )
    return f"{what} {escape(told.base)}; trained with lrft {__version__}: {', '.join(told.methods)}. {licence}"


def data(run: Mapping[str, Any]) -> Iterator[str]:
    """The sources by name, with their rows."""
    found = run.get("data") or {}
    for source in found.get("sources", []):
        yield f"- {escape(tidy(str(source['path'])))} ({source['role']}): {source['used']:,} of {source['read']:,} rows"
    yield f"- trained: {found.get('train_rows', 0):,} rows, {found.get('trained_tokens', 0):,} tokens with a loss"


def figures(run: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Losses of the run, and what commands measured afterwards, each with its conditions."""
    result = run.get("result") or {}
    rows = [[name, f"{result[name]:.4f}"] for name in LOSSES if isinstance(result.get(name), float)]
    held_out = (run.get("data") or {}).get("validation_rows", 0)
    if rows:
        yield table(
            [f"on {held_out:,} held-out rows of the same data", "cross-entropy, mean over trained tokens"], rows
        )
    else:
        yield "No validation loss was measured."
    for path in sorted((folder / AFTER).glob("*.json")):
        found = files.read_json(path)
        if isinstance(found, list) and found:
            kept = [[escape(key), escape(tidy(str(value)))] for key, value in found[-1].get("found", {}).items()]
            if kept:
                yield table([f"lrft {path.stem}", ""], kept)


def shown_recipe(recipe: Recipe) -> dict[str, Any]:
    """What decides on the result: all of the recipe but where things lie and what is printed."""
    values = recipes.plain(recipe)
    kept = {key: values[key] for key in ("model", "adapter", "data", "training", "evaluation") if key in values}
    tidied: dict[str, Any] = tidy_all(kept)
    return tidied


def tidy_all(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: tidy_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy_all(item) for item in value]
    return tidy(value) if isinstance(value, str) else value


def tidy(text: str) -> str:
    """`text` with the last name in the place of each path, and without variables of the environment."""
    text = re.sub(r"\$\{[^}]*\}(?=/)", "", text)
    return PATH.sub(lambda found: found[1] or "folder", text)


def loading(told: Told) -> Iterator[tuple[str, str, str]]:
    """(tool, language, how it loads the result) for three tools."""
    repo, base = told.repo, told.base
    if told.kind == "adapter":
        yield (
            "PEFT",
            "python",
            (
                "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
                f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")\n'
                f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
            ),
        )
        yield "vLLM", "bash", f"vllm serve {base} --enable-lora --lora-modules {repo.rpartition('/')[2]}={repo}"
        yield "lrft", "bash", f"hf download {repo} --local-dir adapter\nlrft chat adapter --base {base}"
    elif told.kind == "own adapter":
        fetched = f"hf download {repo} --local-dir adapter\n"
        yield "lrft", "bash", f"{fetched}lrft chat adapter --base {base}"
        yield "transformers, merged", "bash", f"{fetched}lrft merge adapter -o merged --base {base}"
        yield "llama.cpp", "bash", f"{fetched}lrft export adapter --to gguf -o gguf --base {base}"
    elif told.kind == "model":
        yield (
            "transformers",
            "python",
            (
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f'model = AutoModelForCausalLM.from_pretrained("{repo}")\n'
                f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
            ),
        )
        yield "vLLM", "bash", f"vllm serve {repo}"
        yield "lrft", "bash", f"lrft chat {repo}"
    else:
        yield "llama.cpp", "bash", f"llama-cli -hf {repo} --jinja"
        yield "Ollama", "bash", f"ollama run hf.co/{repo}"
        yield "lrft", "bash", f"hf download {repo} {told.file} --local-dir .\nlrft chat {told.file}"
