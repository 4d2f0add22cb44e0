"""The head that a model is loaded with where it does not predict tokens: its transformers class, labels and modules.

A head is what stands behind the last hidden states; an embedding model has none. transformers makes what a checkpoint
lacks of it from the global random generator; here each new tensor is a function of the seed and its own name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.errors import LrftError
from lrft.model.embedder import Embedder, stored_embedder
from lrft.utils.seeds import seed_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Kind of head -> the transformers Auto class, and the task that PEFT calls it.
KINDS = {
    "sequence": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "token": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "embedding": ("AutoModel", "FEATURE_EXTRACTION"),
}
EMBEDDING = "embedding"
POOLER = "pooler"
"""Part of some encoders that only the head reads; in others it is in the head itself"""


@dataclass(frozen=True)
class Head:
    """What a recipe and its data say about the head.

    kind     of `KINDS`
    labels   names of the outputs, in their order; none for one output that is a number
    problem  transformers' problem_type, or "" for none
    pad_id   the token that fills up a batch; decoders look for the last token that is another one
    seed     of the tensors that the checkpoint lacks
    weights  factors on the loss of each label, none for equal ones
    embedder what is made of the last hidden states, of an embedding model
    """

    kind: str
    labels: tuple[str, ...] = ()
    problem: str = ""
    pad_id: int | None = None
    seed: int = 0
    weights: tuple[float, ...] = ()
    embedder: Embedder | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "embedder" or value is not None}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any] | None) -> Head | None:
        """Raises TypeError for a dictionary that is no head's."""
        if value is None:
            return None
        made = {key: tuple(value.get(key, ())) for key in ("labels", "weights")}
        embedder = value.get("embedder")
        return cls(**{**value, **made, "embedder": None if embedder is None else Embedder(**embedder)})

    @property
    def outputs(self) -> int:
        return len(self.labels) or 1

    @property
    def choice(self) -> str:
        """What is the largest of its outputs, as one of them is called."""
        return "first label" if self.embedder is None else "largest component"

    @property
    def outputs_in_words(self) -> str:
        if self.embedder is not None or self.kind == EMBEDDING:
            return "embeddings"
        return f"labels of {'words' if self.kind == 'token' else 'texts'}" if self.labels else "a number"

    def save(self, folder: Path) -> None:
        """Write what tools need of it beside a model or an adapter, into the existing folder."""
        if self.embedder is not None:
            self.embedder.save(folder)

    def configure(self, config: Any) -> None:
        """Write labels, problem and padding token into `config`, where stock transformers reads them."""
        if self.kind == EMBEDDING:
            return
        named = self.labels or ("LABEL_0",)
        config.id2label = dict(enumerate(named))
        config.label2id = {name: number for number, name in enumerate(named)}
        if self.problem:
            config.problem_type = self.problem
        if self.pad_id is not None:
            config.pad_token_id = config.get_text_config().pad_token_id = self.pad_id


def stored_head(config: Any) -> Head | None:
    """The head that a checkpoint was saved with; None for a language model."""
    kind = kind_of((config.architectures or [""])[0])
    if not kind:
        return None
    number = "regression" if kind == "sequence" and len(config.id2label) == 1 else ""  # as transformers takes it
    problem = getattr(config, "problem_type", None) or number
    names = () if problem == "regression" else tuple(str(config.id2label[n]) for n in sorted(config.id2label))
    return Head(kind, names, problem, config.get_text_config().pad_token_id)


def head_in(folder: Path, config: Any) -> Head | None:
    """`stored_head` of a folder, which may be one of sentence-transformers. Raises LrftError as `stored_embedder`."""
    embedder = stored_embedder(folder)
    if embedder is None:
        return stored_head(config)
    return Head(EMBEDDING, pad_id=config.get_text_config().pad_token_id, embedder=embedder)


def kind_of(class_name: str) -> str:
    """The kind of head that a class of transformers has by its name; "" for none."""
    found = re.search(r"For(Sequence|Token)Classification$", class_name)
    return found[1].lower() if found else ""


def is_headless(model: Any) -> bool:
    """Whether a model of transformers ends in hidden states."""
    return getattr(model, "base_model", None) is model and type(model).__name__.endswith("Model")


def task_of(model: Any) -> str:
    """PEFT's word for the task of a model."""
    kind = kind_of(type(model).__name__) or (EMBEDDING if is_headless(model) else "")
    return KINDS[kind][1] if kind else "CAUSAL_LM"


def head_modules(model: Any) -> list[str]:
    """Names of the modules that the head consists of, in the model's order; none for a language model.

    They are the model's own modules beside its backbone, and a pooler inside of that.
    """
    if not kind_of(type(model).__name__):
        return []
    prefix = model.base_model_prefix
    inside = [
        f"{prefix}.{name}" for name, module in model.base_model.named_children() if name == POOLER and holds(module)
    ]
    return inside + [name for name, module in model.named_children() if name != prefix and holds(module)]


def holds(module: Any) -> bool:
    """Whether a module has parameters."""
    return next(module.parameters(), None) is not None


def initialize(model: Any, absent: Collection[str], seed: int) -> None:
    """Give the tensors `absent` of the head their initial values. Raises LrftError for one that is not in the head.

    Matrices are normal with the config's initializer_range, biases zero, scales of norms one, as the families have it.
    """
    import torch

    # The pooler of an encoder that ends in hidden states is read by nobody.
    inside = tuple(f"{name}." for name in (head_modules(model) or [POOLER] * is_headless(model)))
    outside = sorted(name for name in absent if not name.startswith(inside))
    if outside:
        raise LrftError(f"The weights lack {len(outside)} tensors of the model, e.g. {outside[0]}")
    spread = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    for name in absent:
        parameter = model.get_parameter(name)
        generator = torch.Generator().manual_seed(seed_of(seed, name))
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def same_outputs(config: PretrainedConfig, head: Head) -> bool:
    """Whether the outputs of the head that a checkpoint holds are those of `head`, in the same order.

    transformers calls outputs without names LABEL_0, LABEL_1, ...: these are labels that are numbers.
    """
    stored = stored_head(config)
    if stored is None or stored.kind != head.kind:
        return False
    plain = tuple(name.removeprefix("LABEL_") for name in stored.labels)
    return head.labels in (stored.labels, plain) or (not head.labels and stored.outputs == 1)


def settle(model: Any, stored: PretrainedConfig, head: Head, absent: Collection[str]) -> None:
    """Make what the checkpoint lacks of the head, and its last module anew where that answers something else.

    stored: the checkpoint's own configuration. absent: names of the tensors that it lacks. Raises as `initialize`.
    """
    anew = set(absent)
    if head_modules(model) and stored_head(stored) is not None and not same_outputs(stored, head):
        last = head_modules(model)[-1]
        anew |= {f"{last}.{name}" for name, _ in model.get_submodule(last).named_parameters()}
    initialize(model, sorted(anew), head.seed)
