"""`lrft init`: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path

from lrft import recipe as recipes
from lrft import registry
from lrft.errors import UsageError, nearest
from lrft.utils import files

SHORT = """\
# What is learnt, from what, and where the result goes. Check it: lrft check {path}
# Every key with its default: lrft init --full    One key explained: lrft schema adapter.rank

model: {model}          # a folder, a hub id, or a .gguf file
data: {data}            # .jsonl .json .csv .parquet .txt, a folder, or hub:OWNER/NAME
adapter:
  method: {method}      # see `lrft methods`; several combine: [lora, rslora, lora+]
  rank: 16
training:
  epochs: 3
  global_batch_size: 32 # rows per optimiser step, over all devices
  learning_rate: {rate}
output_dir: runs/first
"""


def rate(method: str) -> str:
    """The method's default learning rate, with its origin."""
    found = registry.default_rate([method])
    return f"{found.value:g}   # the default of {found.owner}, from {found.source}"


def write(path: Path, *, model: str, data: str, method: str, full: bool) -> None:
    """Write the recipe to `path`. Raises UsageError when it exists or when there is no such method."""
    if path.exists():
        raise UsageError(f"{path} exists", "Name another file.")
    if method not in registry.methods():
        close = nearest(method, registry.methods())
        raise UsageError(f"there is no method {method}", f"Did you mean {close[0]}?" if close else None)
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder")
    files.write_text(path, SHORT.format(path=path, model=model, data=data, method=method, rate=rate(method)))
    if full:
        text = recipes.resolved(recipes.load(path), {})
        files.write_text(path, "# Every key of a recipe with its default.\n" + text.split("\n", 1)[1])
