"""How a text's embedding is made of a model's last hidden states, as sentence-transformers reads it from a folder.

    modules.json                          the model, the pooling, and the normalisation where there is one
    1_Pooling/config.json                 mean, last or cls
    sentence_bert_config.json             tokens of a text at most
    config_sentence_transformers.json     prompts, and how embeddings are compared

They are written as sentence-transformers 2 to 6 read them. (Version 6 writes more into the third: a model with a chat
template would then wrap each text in it. Without, it takes a text as it is, as before.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lrft.errors import LrftError
from lrft.utils import files

# Ours -> the word in 1_Pooling/config.json, in its old form and in the new one.
POOLINGS = {
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
    "cls": ("pooling_mode_cls_token", "cls"),
}
MODULES = "modules.json"
POOLING, NORMALIZE = "1_Pooling", "2_Normalize"


@dataclass(frozen=True)
class Embedder:
    """pooling: of `POOLINGS`. normalize: to length one. similarity: cosine or dot. width: of an embedding. max_length:
    in tokens; None for the model's. prompts: {query or document: text before it}."""

    pooling: str
    normalize: bool
    width: int
    similarity: str = "cosine"
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write the files that sentence-transformers looks for into the existing folder."""
        kinds = {"": "Transformer", POOLING: "Pooling"} | ({NORMALIZE: "Normalize"} if self.normalize else {})
        modules = [
            {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for k, (path, kind) in enumerate(kinds.items())
        ]
        files.write_json(folder / MODULES, modules)
        for path in (POOLING, *([NORMALIZE] if self.normalize else [])):
            (folder / path).mkdir(exist_ok=True)
        modes = {old: self.pooling == name for name, (old, _) in POOLINGS.items()}
        pooling = {"word_embedding_dimension": self.width, **modes, "include_prompt": True}
        files.write_json(folder / POOLING / "config.json", pooling)
        if self.normalize:
            files.write_json(folder / NORMALIZE / "config.json", {})
        limits = {"max_seq_length": self.max_length, "do_lower_case": False}
        files.write_json(folder / "sentence_bert_config.json", limits)
        files.write_json(
            folder / "config_sentence_transformers.json",
            {"prompts": dict(self.prompts), "default_prompt_name": None, "similarity_fn_name": self.similarity},
        )


def stored_embedder(folder: Path) -> Embedder | None:
    """What a folder of sentence-transformers says; None for one that is none.

    Raises LrftError for a pooling or a module that is not known here.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = files.read_json(folder / MODULES)
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    if strange := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        hint = "Known are Transformer, Pooling and Normalize."
        raise LrftError(f"{folder / MODULES} has modules that lrft cannot train behind: {', '.join(strange)}", hint)
    if "Pooling" not in kinds:
        return None
    config = files.read_json(folder / kinds["Pooling"] / "config.json")
    named = config.get("pooling_mode")
    found = [name for name, (old, new) in POOLINGS.items() if config.get(old, False) or named == new]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(found) != 1 or len(others) > 1:
        text = f"pools by {named or ' and '.join(others) or 'nothing'}; known are {', '.join(POOLINGS)}"
        raise LrftError(f"{folder / kinds['Pooling'] / 'config.json'} {text}")
    said = read_if_there(folder / "config_sentence_transformers.json")
    return Embedder(
        found[0],
        "Normalize" in kinds,
        int(config.get("word_embedding_dimension") or config["embedding_dimension"]),
        similarity="dot" if said.get("similarity_fn_name") == "dot" else "cosine",
        max_length=read_if_there(folder / "sentence_bert_config.json").get("max_seq_length"),
        prompts=said.get("prompts") or {},
    )


def read_if_there(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(path) if path.is_file() else {}
    return found


def usual_pooling(config: Any) -> str:
    """For a model that was not trained for embeddings: the last token of a decoder, which alone has seen all of a text;
    the mean over the tokens of an encoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return "mean" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "last"
