"""docs/models.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_table.forecasts import section
from model_table.trying import YES, Tried

HEAD = """\
# Model families

What lrft does with each family of language models, tried by `scripts/models` on tiny models with random weights:
{count} families of transformers {transformers}, PEFT {peft}, torch {torch}, on a CPU. Each model is planned, trained
for two steps with LoRA on `target_modules: all-linear`, merged (the merged folder is compared with base and adapter),
and its adapter is loaded by stock PEFT on the class that the checkpoint names, which must answer the same. Kernels of
other packages (mamba-ssm, flash-linear-attention) were not installed.

- **rows**: *packed* rows lie end to end; *padded* where a model would let packed rows see each other, which lrft finds
  out before the first step.
- **forecast**: whether `lrft plan` says what a run takes.
- **not adapted**: what `all-linear` leaves out, beside the output head, and why. The start of a run says it as well.

Names without a capital are transformers' model types. Encoders (BERT and its like) and encoder-decoders (T5, BART,
Whisper) are no causal language models: they are refused, and not in the table.

"""
NOT_BUILT = """\
## Not tried

No tiny model could be built, for the reason that transformers gave:

"""
COLUMNS = ("family", "class", "trains", "rows", "merges", "PEFT", "forecast", "not adapted")


def page(found: dict[str, Any]) -> str:
    """found: what docs/models.json holds."""
    tried = [Tried(**one) for one in found["families"].values()]
    built = [one for one in tried if not one.not_built]
    text, towers = [one for one in built if one.text], [one for one in built if not one.text]
    notes: list[str] = []
    parts = [
        HEAD.format(count=len(built), **found["versions"]),
        "## Models of text\n\n" + table(text, notes),
        "## Models that also see or hear\n\nText rows train the language part. Towers stay frozen and are whole in the "
        "merged folder; rows with pictures, films or sound are refused.\n\n" + table(towers, notes),
    ]
    if notes:
        parts.append("## What does not work\n\n" + "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1)))
    if "forecasts" in found:
        parts.append(section(found["forecasts"]))
    if missing := [one for one in tried if one.not_built]:
        parts.append(NOT_BUILT + "".join(f"- {one.family}: {one.not_built}\n" for one in missing))
    return "\n".join(parts)


def table(tried: Sequence[Tried], notes: list[str]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for one in tried:
        said = [noted(words, notes) for words in (one.trains, one.merges, one.peft, one.forecast)]
        cells = [one.family, one.model, said[0], one.rows, *said[1:], "; ".join(one.without)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def noted(words: str, notes: list[str]) -> str:
    """ "yes", or "no" with the number of its note."""
    if words in ("", YES):
        return words
    said = words.removeprefix("no: ")
    if said not in notes:
        notes.append(said)
    return f"no ({notes.index(said) + 1})"
