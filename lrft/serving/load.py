"""From what a user names to what answers: a run, an adapter or a model, with the prompts that it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrft.adapters.attached import Attached
from lrft.data.prompts import Asking
from lrft.errors import UsageError
from lrft.loading.saved import load_target
from lrft.model.head import Head
from lrft.model.weights import fingerprint
from lrft.runs.locate import run_of
from lrft.serving.answerer import Answerer
from lrft.utils import files

PLAIN_FORMATS = {"completion", "text"}


@dataclass(frozen=True)
class Trained:
    """A loaded target, as it was trained and as its base."""

    tokenizer: Any
    folder: Path
    """the base's"""
    attached: Attached | None
    """None for a plain model, and for adapters that are put into the model for each answer"""
    asking: Asking
    answerer: Answerer
    options: Mapping[str, Any]
    """data.template_options of the run's recipe: the template was trained with them"""

    @property
    def base(self) -> Answerer:
        """The base's answers, from the same weights. Raises UsageError for a plain model, which is its own base."""
        if self.attached is None:
            raise UsageError("this is a model without adapters: it is its own base")
        return replace(self.answerer, copies=lambda: 1, placed=self.attached.disabled)


def load(target: str, base: str | None = None, trusted: bool = False, put: str | None = None) -> Trained:
    """put: chat or text, how a prompt of plain text is put; None: as the run's rows were. Raises UsageError for a model
    that does not answer with text."""
    found = load_target(target, base, trusted)
    refuse_head(target, found.head)
    options = {} if found.section is None else dict(found.section.template_options)
    plain = was_plain(target) if put is None else put == "text"
    asking = Asking(found.tokenizer, plain=plain, options=options)
    if put == "chat" and not asking.chat:
        raise UsageError(f"{target} has no chat template", "Use --as text to continue prompts as they are.")
    answerer = Answerer.of(found).ending(*asking.ends)
    return Trained(found.tokenizer, found.folder, found.attached, asking, answerer, options)


def refuse_head(target: str | Path, head: Head | None) -> None:
    """Raises UsageError for a model with a head, or one of embeddings."""
    if head is not None:
        text = f"{target} answers with {head.outputs_in_words}, not with text"
        raise UsageError(
            text, "lrft eval measures it; transformers or sentence-transformers loads what lrft merge writes."
        )


def was_plain(target: str) -> bool:
    """Whether the rows of a run were texts that no chat template has written."""
    path = Path(target)
    if not path.is_dir():
        return False
    run = path if (path / "run.json").is_file() else run_of(path)
    if run is None or not (run / "run.json").is_file():
        return False
    written = files.read_json(run / "run.json")
    sources = (written.get("data") or {}).get("sources", []) if isinstance(written, dict) else []
    formats = {source.get("format") for source in sources if source.get("role") == "train"}
    return bool(formats) and formats <= PLAIN_FORMATS


def weights_digest(base: Path, adapters: Mapping[str, Path]) -> str:
    """sha256 of the weights that answer: the base's, and those of the adapters with their names."""
    digest = hashlib.sha256(fingerprint(base).encode())
    for name, folder in adapters.items():
        digest.update(name.encode())
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(files.sha256(path).encode())
    return digest.hexdigest()
