"""Every key of a recipe: its type, its default and one sentence on what it does.

The only place where a key is declared: validation, JSON Schema, the page of keys and `describe` use it.
The models hold the normal form: short forms (`adapter: lora`) are expanded before, in forms.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from lrft import registry
from lrft.recipe.types import (
    Alpha,
    BelowOne,
    Count,
    CountOrZero,
    Every,
    EveryOrAuto,
    GradNorm,
    Layers,
    NotNegative,
    Pattern,
    Patterns,
    Positive,
    Share,
    Text,
    Validation,
)


class Section(BaseModel):
    """A group of keys. A value equal to the default counts as not set: a resolved recipe means the same."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _default_is_not_set(self) -> Section:
        for name, info in type(self).model_fields.items():
            if not info.is_required() and getattr(self, name) == info.get_default(call_default_factory=True):
                self.model_fields_set.discard(name)
        return self


class ModelSection(Section):
    name: Text = Field(description="Hub name or local folder of the base model, or a .gguf file.")
    revision: Text | None = Field(default=None, description="Commit, tag or branch of a hub model.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Number format of the frozen weights that are not quantised."
    )
    quantization: Literal["none", "nf4", "fp4", "int8"] = Field(
        default="none",
        description="Keeps the weights of the linear layers, but for the output head, in 4 or 8 bits.",
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        default="auto", description="Attention kernel."
    )
    trust_remote_code: bool = Field(
        default=False, description="Runs Python code from the model's repository when true."
    )


class Named(NamedTuple):
    """A name of one of the registries (a method, an objective, an optimiser, a tracker), with all its options."""

    name: str
    options: dict[str, Any]


def _named(value: Any) -> Named:
    return value if isinstance(value, Named) else Named(value["name"], value["options"])


def _several(value: Any) -> tuple[Named, ...]:
    return tuple(_named(entry) for entry in value)


def _short(value: Named) -> str:
    return value.name


OneNamed = Annotated[Named, PlainValidator(_named), PlainSerializer(_short), WithJsonSchema({"type": "string"})]
SeveralNamed = Annotated[
    tuple[Named, ...],
    PlainValidator(_several),
    PlainSerializer(lambda values: [value.name for value in values]),
    WithJsonSchema({"type": "array"}),
]


class ModuleOverride(Section):
    rank: Count | None = Field(default=None, description="Rank of the modules that match.")
    alpha: Positive | None = Field(default=None, description="Alpha of the modules that match.")
    scale: Positive | None = Field(default=None, description="Factor of the modules that match.")


class AdapterSection(Section):
    method: SeveralNamed = Field(description="A method, or a list of one method and parts that combine with it.")
    rank: Count = Field(default=16, description="Rank of the update, or of the LoRA with as many trained parameters.")
    alpha: Alpha = Field(
        default="auto", description="Numerator of the factor on the update; auto is the method's own rule."
    )
    scale: Positive | None = Field(default=None, description="The factor on the update itself, in place of alpha.")
    dropout: BelowOne = Field(default=0.0, description="Share of an adapter's inputs set to zero in training.")
    target_modules: Patterns = Field(
        default=("all-linear",),
        description="Layers that get an adapter: all-linear (an output head has to be named), ssm-linear (in_proj and "
        "x_proj of Mamba's blocks), names, globs, or re: expressions.",
    )
    exclude_modules: Patterns = Field(
        default=("lm_head",), description="Layers that get none, by name, glob or re: expression."
    )
    layers: Layers = Field(
        default="all",
        description="Blocks of the model to adapt: all, a range such as 0-7 with both ends, or a list.",
    )
    overrides: dict[Pattern, ModuleOverride] = Field(
        default={},
        description="Other rank, alpha or scale by module name, glob or re: expression; the last match wins.",
    )


class DataEntry(Section):
    path: Text = Field(description="A file or folder, or hub:OWNER/NAME.")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "completion", "text"] = Field(
        default="auto", description="Layout of the rows; auto recognises it and says which."
    )
    columns: dict[str, Text] = Field(
        default={}, description="Renames columns: {their name: our name}; none as our name leaves a column out."
    )
    special_tokens: Literal["auto", "text", "tokens"] = Field(
        default="auto",
        description="What the text of a special token is in a row: text, the characters, or tokens, for rows that are "
        "in a chat template already. auto: text, but an error where most rows hold some.",
    )
    split: Text = Field(default="train", description="Split of a hub data set, or of a folder that save_to_disk made.")
    limit: Count | None = Field(default=None, description="Takes this many rows, drawn with training.seed.")


class DataSection(Section):
    train: Annotated[tuple[DataEntry, ...], Field(min_length=1)] = Field(
        description="A path, a list of paths, or a list of entries."
    )
    validation: Validation = Field(
        default=0.02,
        description="Rows held out: a fraction, a number of rows, a path of other data, or none. The default holds out "
        "at least 16 rows, or a quarter of fewer than 64.",
    )
    chat_template: Text = Field(
        default="tokenizer",
        description="tokenizer, the name of one of the tokenizer's templates, or the path of a .jinja file.",
    )
    train_on: Literal["assistant", "last-assistant", "all"] = Field(
        default="assistant", description="Tokens that count in the loss."
    )
    max_length: Count = Field(default=2048, description="Longest row, in tokens.")
    too_long: Literal["error", "truncate", "drop", "split"] = Field(
        default="error",
        description="What to do with a row longer than max_length; always counted and reported.",
    )
    on_bad_row: Literal["error", "skip"] = Field(
        default="error", description="What to do with a row that cannot be read."
    )
    packing: Literal["auto"] | bool = Field(
        default="auto",
        description="Lays rows end to end instead of padding them; attention stays inside each row. auto: where the "
        "model is proven to keep them apart.",
    )
    shuffle: bool = Field(default=True, description="New order of the rows each epoch, from training.seed.")
    cache: bool = Field(default=True, description="Keeps the tokenised rows for the next run.")


class LrScheduler(Section):
    name: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="Shape of the learning rate."
    )
    min_lr_ratio: Share = Field(default=0.0, description="Last learning rate over the highest.")
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="Share of the run that wsd decays in."
    )


# Keys of `training` that hold a name of a registry, or {name: options}; the first name is the default.
REGISTERED: Mapping[str, tuple[str, str]] = {"objective": ("objectives", "sft"), "optimizer": ("optimizers", "adamw")}


def default_of(key: str) -> Named:
    """The default of a key of `REGISTERED`, with all its options."""
    kind, name = REGISTERED[key]
    return Named(name, registry.declared(kind)[name].validate({}))


# The options that each choice takes; forms.py and the JSON schema read this.
CHOICE_OPTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "lr_scheduler": {
        "cosine": ("min_lr_ratio",),
        "linear": ("min_lr_ratio",),
        "constant": (),
        "wsd": ("min_lr_ratio", "decay_ratio"),
    },
}


class EarlyStopping(Section):
    patience: Count = Field(description="Evaluations without progress before the run stops.")
    min_delta: NotNegative = Field(
        default=0.0, description="Smallest fall of the validation loss that counts as progress."
    )


def _is_word(value: Any) -> str:
    return "word" if isinstance(value, str) else "settings"


class TrainingSection(Section):
    objective: OneNamed = Field(
        default_factory=lambda: default_of("objective"), description="What is trained for: the loss of a batch."
    )
    epochs: Positive | None = Field(
        default=3.0, description="Passes over the data; the default is no limit when max_steps is given."
    )
    max_steps: Count | None = Field(default=None, description="Optimiser steps; with epochs, whichever ends first.")
    global_batch_size: Count = Field(default=32, description="Rows per optimiser step, over all devices.")
    micro_batch_size: Literal["auto"] | Count = Field(
        default=4,
        description="Rows per device and forward pass: memory, not the result. auto: as many as fit, tried before the "
        "first step.",
    )
    learning_rate: Positive = Field(
        default=2e-4, description="Highest learning rate; when left out each method has its own, see `lrft methods`."
    )
    lr_scheduler: LrScheduler = Field(default=LrScheduler(), description="Shape of the learning rate over the run.")
    warmup_ratio: BelowOne = Field(default=0.03, description="Share of the run in which the learning rate rises.")
    warmup_steps: CountOrZero | None = Field(
        default=None, description="The same in optimiser steps, in place of warmup_ratio."
    )
    optimizer: OneNamed = Field(
        default_factory=lambda: default_of("optimizer"), description="The optimiser and its options."
    )
    weight_decay: NotNegative = Field(default=0.0, description="Decoupled weight decay.")
    max_grad_norm: GradNorm = Field(default=1.0, description="Clips the gradient's norm; none leaves it.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="Number format of the computation."
    )
    gradient_checkpointing: Literal["none", "light", "medium", "full"] = Field(
        default="none",
        description="What is computed again in the backward pass to save memory: nothing; all but the linear layers; "
        "the widest of these too; whole blocks.",
    )
    activation_offload: bool = Field(
        default=False,
        description="Keeps what the backward pass needs in the machine's memory instead of the GPU's: for rows that "
        "are too long even with full checkpointing.",
    )
    compile: bool = Field(
        default=False, description="Compiles the model's blocks; the first steps take a minute longer."
    )
    seed: CountOrZero = Field(default=42, description="Of the split, the order, the start of adapters and dropout.")
    early_stopping: Annotated[
        Annotated[Literal["none"], Tag("word")] | Annotated[EarlyStopping, Tag("settings")],
        Discriminator(_is_word),
    ] = Field(default="none", description="Stops a run whose validation loss no longer falls.")


class DistributedSection(Section):
    strategy: Literal["auto", "ddp", "fsdp", "zero2"] = Field(
        default="auto",
        description="How several devices share the work. ddp: each holds everything; fsdp: each holds a part of the "
        "base, and gets the others' as it needs them; zero2: each holds a part of the gradients and of the optimiser's "
        "state, through DeepSpeed; auto: ddp where the base fits, else fsdp.",
    )
    shard_over: Literal["node", "all"] = Field(
        default="node",
        description="Devices that hold one copy of the base together under fsdp: those of a node, or all.",
    )


class EvaluationSection(Section):
    every: EveryOrAuto = Field(
        default="auto",
        description="A fraction of the run, a number of optimiser steps, auto, or none. auto: at most ten times, and "
        "only as often as a tenth of the time of the steps allows.",
    )
    at_start: bool = Field(
        default=True, description="Evaluates before the first step, to have something to compare with."
    )
    samples: CountOrZero = Field(default=3, description="Answers written to the report at each evaluation.")
    max_new_tokens: Count = Field(default=128, description="Longest answer, in tokens.")
    micro_batch_size: Count | None = Field(
        default=None, description="Rows per forward pass; the default is training's."
    )


class CheckpointSection(Section):
    every: Every = Field(default=0.1, description="A fraction of the run, or a number of optimiser steps, or none.")
    keep: Count = Field(default=2, description="Checkpoints that stay besides the best.")


class LoggingSection(Section):
    every: Count = Field(default=10, description="Optimiser steps between two lines of the log.")
    report_to: SeveralNamed = Field(default=(), description="Trackers beside the console and metrics.jsonl, by name.")


class Recipe(Section):
    """A whole recipe. Attributes are the keys of the file."""

    lrft: Annotated[int, Field(ge=1, le=1)] = Field(default=1, description="Version of this format.")
    model: ModelSection = Field(description="The base model. Short form: its name.")
    adapter: AdapterSection = Field(description="What is trained. Short form: the method.")
    data: DataSection = Field(description="What it learns from. Short form: the path.")
    training: TrainingSection = Field(default=TrainingSection(), description="How it learns.")
    distributed: DistributedSection = Field(
        default=DistributedSection(), description="How several devices share the work; one device needs none of it."
    )
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="How progress is measured.")
    checkpoint: CheckpointSection = Field(default=CheckpointSection(), description="What is kept of a run.")
    logging: LoggingSection = Field(default=LoggingSection(), description="What is written while it runs.")
    output_dir: Text = Field(description="Folder of the run.")

    _places: dict[str, str] = PrivateAttr(default_factory=dict)
    _references: dict[str, str] = PrivateAttr(default_factory=dict)
    _filled: dict[str, str] = PrivateAttr(default_factory=dict)
    """value -> the text with ${NAME} that it was made from"""

    def where(self, key: str) -> str:
        """Where the value of a dotted key was written: recipe.yaml:7:3, argument 2, or default."""
        return self._places.get(key, "default")

    def reference(self, key: str) -> str | None:
        """The text with ${NAME} that a key's value was made from, or None."""
        return self._references.get(key)

    def masked(self, text: str) -> str:
        """`text` with ${NAME} for what came from the environment: what is shown and kept holds no such value."""
        for value in sorted(self._filled, key=len, reverse=True):
            text = text.replace(value, self._filled[value])
        return text

    def __eq__(self, other: object) -> bool:
        """Equal values; where they were written does not count."""
        return isinstance(other, Recipe) and all(getattr(self, k) == getattr(other, k) for k in Recipe.model_fields)

    __hash__ = None  # type: ignore[assignment]
