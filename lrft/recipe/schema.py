"""Every key of a recipe with type, default and description.

The only place where a key is declared: validation, JSON Schema, the page of keys and `describe` use it.
The models hold the normal form: short forms (`adapter: lora`) are expanded before, in forms.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
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
    Count,
    CountOrAuto,
    CountOrZero,
    Every,
    EveryOrAuto,
    GradNorm,
    Layers,
    NotNegative,
    Pattern,
    Patterns,
    Positive,
    Reports,
    Repository,
    Share,
    Text,
    Texts,
    TokenText,
    Tools,
    TrainTokens,
    Validation,
    Values,
    Wording,
    named,
)

MOST_TOKENS = 16384
"""of a training pass that is found by trial: a GPU is busy with fewer, and a larger pass only takes memory"""


class Section(BaseModel):
    """A group of keys. A value equal to the default counts as not set: a resolved recipe means the same."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _default_is_not_set(self) -> Section:
        for name, info in type(self).model_fields.items():
            if not info.is_required() and getattr(self, name) == info.get_default(call_default_factory=True):
                self.model_fields_set.discard(name)
        return self


class NewToken(Section):
    token: TokenText = Field(description="The token's text.")
    special: bool = Field(
        default=True,
        description="A special token is written by the chat template alone: its text in a row is characters, and "
        "decoded answers lack it. false: its text stands for it everywhere.",
    )


class ModelSection(Section):
    name: Text = Field(description="Hub name or local folder of the base model, or a .gguf file.")
    revision: Text | None = Field(default=None, description="Commit, tag or branch of a hub model.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Number format of the frozen weights that are not quantised."
    )
    quantization: Literal["none", "nf4", "fp4", "int8", "fp8"] = Field(
        default="none",
        description="Quantises the weights of all linear layers except the output head to 4 or 8 bits.",
    )
    placement: Literal["auto", "resident", "streamed"] = Field(
        default="auto",
        description="Where the frozen base lies: resident on the device, or streamed to it block by block from the "
        "machine's memory or the mapped files, for a base that the device has no room for. auto streams where whole "
        "weights would take more than 70 % of the memory of a single device.",
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        default="auto", description="Attention kernel."
    )
    trust_remote_code: bool = Field(
        default=False, description="Runs Python code from the model's repository when true."
    )
    add_tokens: Annotated[tuple[NewToken, ...], BeforeValidator(named), Field(strict=False)] = Field(
        default=(),
        description="New special tokens, each a text, or {token: TEXT, special: false}. Embedding and head get a row "
        "for each, the mean of all others.",
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
    rank: Count | None = Field(default=None, description="Rank for matching modules.")
    alpha: Positive | None = Field(default=None, description="Alpha for matching modules.")
    scale: Positive | None = Field(
        default=None, description="Scaling factor s applied to the update (overrides alpha) for matching modules."
    )


class AdapterSection(Section):
    method: SeveralNamed = Field(description="A method, or a list of methods that combine.")
    rank: Count = Field(default=16, description="Rank of the update, or of the LoRA with as many trainable parameters.")
    alpha: Alpha = Field(
        default="auto", description="Alpha of the scaling factor alpha/r; auto is the method's own rule."
    )
    scale: Positive | None = Field(
        default=None, description="Scaling factor s applied to the update, instead of alpha."
    )
    dropout: registry.BelowOne = Field(default=0.0, description="Dropout probability on the adapter's input.")
    target_modules: Patterns = Field(
        default=("all-linear",),
        description="Target modules: all-linear (all but the output head), ssm-linear (in_proj and x_proj of Mamba "
        "blocks), expert-linear (each expert of those stacked in one tensor), names, globs, or re: expressions.",
    )
    exclude_modules: Patterns = Field(
        default=("lm_head",), description="Modules without an adapter, by name, glob or re: expression."
    )
    layers: Layers = Field(
        default="all",
        description="Blocks of the model to adapt: all, a range such as 0-7 with both ends, or a list.",
    )
    modules_to_save: Patterns = Field(
        default=(),
        description="Modules that are trained in full and saved with the adapter, such as embed_tokens and lm_head: "
        "names, globs or re: expressions.",
    )
    untie: bool = Field(
        default=False,
        description="Lets modules_to_save train embedding or head of a model that has one matrix for both: they part.",
    )
    train_tokens: TrainTokens = Field(
        default=(),
        description="Tokens whose rows of the embedding are trained: added (those of model.add_tokens), or a list. A "
        "head that is the same matrix has the same rows.",
    )
    train_tokens_in: Literal["embedding", "head", "both"] = Field(
        default="embedding",
        description="Matrix whose rows train_tokens trains, where the head is one of its own: embedding, head, both.",
    )
    biases: Literal["none", "all", "adapted"] = Field(
        default="none", description="Biases that are trained: none, those of adapted layers, or all."
    )
    norms: bool = Field(default=False, description="Trains the scales and biases of all norms.")
    start_from: Text | None = Field(
        default=None,
        description="A run or an adapter folder, of lrft or PEFT, over the same base: training starts from it. Another "
        "rank or method takes over its update.",
    )
    overrides: dict[Pattern, ModuleOverride] = Field(
        default={},
        description="Rank, alpha or scale per module name, glob or re: expression; the last match wins.",
    )


class DataEntry(Section):
    path: Text = Field(
        description="A file (.jsonl, .json, .csv, .parquet, .arrow, .txt; text also as .gz or .zst), a folder, an "
        "address (https://, s3://, gs://), or hub:OWNER/NAME, with /CONFIGURATION and @REVISION where wanted."
    )
    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "alpaca",
        "completion",
        "text",
        "labelled",
        "scored",
        "tagged",
        "pairs",
        "preference",
        "kto",
    ] = Field(
        default="auto", description="Format of the rows; auto detects one that the objective takes, and reports it."
    )
    columns: dict[str, Text] = Field(
        default={}, description="Renames columns, {column in the file: column of lrft}; none drops a column."
    )
    prompt: Wording | None = Field(
        default=None,
        description="The prompt, with columns of the file in braces: 'Facts: {facts}'. The format is completion then.",
    )
    completion: Wording | None = Field(
        default=None,
        description="The completion, with columns in braces: ' {label}'. Default: the column completion.",
    )
    tools: Tools = Field(
        default=(),
        description="Tools of all conversations that have no column tools: a list of definitions as transformers takes "
        "them, or JSON text of one.",
    )
    special_tokens: Literal["auto", "text", "tokens"] = Field(
        default="auto",
        description="What the text of a special token is in a row: text, the characters, or tokens, for rows that are "
        "in a chat template already. auto: text, but an error where most rows hold some.",
    )
    split: Text = Field(default="train", description="Split of a hub data set, or of a folder that save_to_disk made.")
    limit: Count | None = Field(default=None, description="Uses this many rows, sampled with training.seed.")
    weight: Positive | None = Field(
        default=None,
        description="Share of the rows of every step, relative to the weights of the other entries; all have one, or "
        "none. Default: each row once an epoch.",
    )


class DataSection(Section):
    train: Annotated[tuple[DataEntry, ...], Field(min_length=1)] = Field(
        description="A path, a list of paths, or a list of entries."
    )
    stop: Literal["first", "last", "all"] = Field(
        default="first",
        description="With weights, when an epoch ends. first: when an entry has run out; all: when each has run out, "
        "where others begin again; last: when all rows have come once.",
    )
    validation: Validation = Field(
        default=0.02,
        description="Validation rows: a fraction, a number of rows, the path of other data, or none. The default "
        "holds out "
        "at least 16 rows, or a quarter of fewer than 64.",
    )
    chat_template: Text = Field(
        default="tokenizer",
        description="tokenizer, the name of one of the tokenizer's templates, or the path of a .jinja file.",
    )
    template_options: Values = Field(
        default={},
        description="Values that the chat template reads, such as {enable_thinking: false} or documents: the same for "
        "all rows, and for the prompts of generated answers.",
    )
    query_prompt: str = Field(default="", description="Text before each query of format pairs, such as 'query: '.")
    document_prompt: str = Field(
        default="", description="Text before each document of format pairs, and before each negative."
    )
    labels: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=(),
        description="The labels in their order, of which numbers in the rows are places: [O, B-PER, I-PER]. "
        "Default: those of the train rows.",
    )
    train_on: Literal["assistant", "last-assistant", "all"] = Field(
        default="assistant", description="Which tokens are trained (count in the loss)."
    )
    max_length: Count = Field(default=2048, description="Maximum tokens per row.")
    too_long: Literal["error", "truncate", "drop", "split"] = Field(
        default="error",
        description="What to do with rows longer than max_length; always counted and reported.",
    )
    on_bad_row: Literal["error", "skip"] = Field(default="error", description="What to do with invalid rows.")
    packing: Literal["auto"] | bool = Field(
        default="auto",
        description="Packs rows end to end instead of padding them; attention stays inside each row. auto: if the "
        "model is verified to keep rows separate.",
    )
    shuffle: bool = Field(default=True, description="Shuffles the rows each epoch, with training.seed.")
    cache: bool = Field(default=True, description="Caches the tokenised rows for later runs.")
    streaming: bool = Field(
        default=False,
        description="Makes the rows while the run goes on, for data that are too large for a cache. Needs "
        "training.max_steps; validation rows are a path of their own, or none.",
    )
    window: Count = Field(default=10_000, description="With streaming: the rows that each row is drawn from.")


class LrScheduler(Section):
    name: Literal["cosine", "cosine-restarts", "linear", "polynomial", "inverse-sqrt", "constant", "wsd"] = Field(
        default="cosine", description="Learning rate schedule."
    )
    min_lr_ratio: Share = Field(default=0.0, description="Final learning rate relative to the peak.")
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="Fraction of the run in which wsd decays."
    )
    cycles: Count = Field(default=1, description="How often cosine-restarts falls from the peak.")
    power: Positive = Field(default=1.0, description="Power of polynomial; 1 is linear.")
    timescale: Count | None = Field(
        default=None,
        description="Steps after warm-up until inverse-sqrt has halved the square of the rate; default: the warm-up's, "
        "10000 without one.",
    )


# Keys of `training` that hold a name of a registry, or {name: options}; the first name is the default.
REGISTERED: Mapping[str, tuple[str, str]] = {"objective": ("objectives", "sft"), "optimizer": ("optimizers", "adamw")}


# Keys that hold a list of names of a registry, each alone or as {name: options}: (section, key) -> registry.
LISTED: Mapping[tuple[str, str], str] = {
    ("evaluation", "metrics"): "metrics",
    ("logging", "report_to"): "trackers",
    ("after", "export"): "exporters",
}


def default_of(key: str) -> Named:
    """The default of a key of `REGISTERED`, with all its options."""
    kind, name = REGISTERED[key]
    return Named(name, registry.declared(kind)[name].validate({}))


# The options that each choice takes; forms.py and the JSON schema read this.
CHOICE_OPTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "lr_scheduler": {
        "cosine": ("min_lr_ratio",),
        "cosine-restarts": ("min_lr_ratio", "cycles"),
        "linear": ("min_lr_ratio",),
        "polynomial": ("min_lr_ratio", "power"),
        "inverse-sqrt": ("timescale",),
        "constant": (),
        "wsd": ("min_lr_ratio", "decay_ratio"),
    },
}


class EarlyStopping(Section):
    patience: Count = Field(description="Evaluations without improvement before the run stops.")
    min_delta: NotNegative = Field(
        default=0.0, description="Minimum decrease of the validation loss that counts as improvement."
    )


def _is_word(value: Any) -> str:
    return "word" if isinstance(value, str) else "settings"


class TrainingSection(Section):
    objective: OneNamed = Field(
        default_factory=lambda: default_of("objective"), description="Training objective (loss)."
    )
    epochs: Positive | None = Field(default=3.0, description="Epochs; no limit by default when max_steps is set.")
    max_steps: Count | None = Field(
        default=None, description="Optimiser steps; if epochs is set too, whichever ends first."
    )
    global_batch_size: Count = Field(
        default=32, description="Global batch size: rows per optimiser step, over all devices."
    )
    micro_batch_size: CountOrAuto = Field(
        default=4,
        description="Micro batch size: rows per device and forward pass; affects memory, not the result. auto: the "
        "largest that fits, found before the first step. On a GPU the default is micro_batch_tokens: auto.",
    )
    micro_batch_tokens: CountOrAuto | None = Field(
        default=None,
        description="Tokens per device and training pass, in the place of micro_batch_size, which then counts in "
        "evaluation alone: the passes of a step are even whatever the lengths of its rows. A longer row is a pass by "
        f"itself. auto: the most that fit, up to {MOST_TOKENS:,}.",
    )
    learning_rate: Positive = Field(
        default=2e-4,
        description="Peak learning rate; the default depends on the method, see `lrft methods`, and on the objective.",
    )
    lr_scheduler: LrScheduler = Field(default=LrScheduler(), description="Learning rate schedule.")
    warmup_ratio: registry.BelowOne = Field(default=0.03, description="Fraction of the run for learning rate warm-up.")
    warmup_steps: CountOrZero | None = Field(
        default=None, description="Warm-up in optimiser steps, instead of warmup_ratio."
    )
    optimizer: OneNamed = Field(
        default_factory=lambda: default_of("optimizer"), description="The optimiser and its options."
    )
    weight_decay: NotNegative = Field(default=0.0, description="Decoupled weight decay.")
    max_grad_norm: GradNorm = Field(default=1.0, description="Gradient norm clipping; none disables it.")
    neftune_alpha: NotNegative = Field(
        default=0.0, description="Uniform noise on the embeddings in training (NEFTune); 5 is usual, 0 is none."
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="Number format of the computation."
    )
    gradient_checkpointing: Literal["none", "light", "medium", "full"] = Field(
        default="none",
        description="Recomputes activations to save memory. none; light: recompute all but linear layers; "
        "medium: also the widest linear layers; full: whole blocks.",
    )
    activation_offload: bool = Field(
        default=False,
        description="Offloads activations to CPU memory, for rows that do not fit even with full checkpointing.",
    )
    compile: bool = Field(
        default=False, description="Compiles the model's blocks; the first steps take a minute longer."
    )
    kernels: Literal["none", "auto", "liger"] = Field(
        default="none",
        description="Kernels of norms and gated activations. liger: those of the package liger-kernel, on a GPU; "
        "auto: those where package and model have them, else none.",
    )
    seed: CountOrZero = Field(default=42, description="Random seed of split, data order, adapter init and dropout.")
    deterministic: bool = Field(
        default=False,
        description="Deterministic algorithms of torch alone: the same run on the same machine gives the same bits, on "
        "GPUs more slowly.",
    )
    early_stopping: Annotated[
        Annotated[Literal["none"], Tag("word")] | Annotated[EarlyStopping, Tag("settings")],
        Discriminator(_is_word),
    ] = Field(
        default="none",
        description="Stops the run when the validation loss, or the metric of evaluation.best, no longer improves.",
    )


class DistributedSection(Section):
    strategy: Literal["auto", "ddp", "fsdp", "zero2"] = Field(
        default="auto",
        description="Parallelism over several devices. ddp: each holds everything; fsdp: shards the frozen "
        "base; zero2: shards gradients and optimiser "
        "state, through DeepSpeed; auto: ddp where the base fits, else fsdp.",
    )
    shard_over: Literal["node", "all"] = Field(
        default="node",
        description="Devices that share one sharded copy of the base under fsdp: those of a node, or all.",
    )


class EvaluationSection(Section):
    every: EveryOrAuto = Field(
        default="auto",
        description="A fraction of the run, a number of optimiser steps, auto, or none. auto: at most ten times, and "
        "at most a tenth of the time of the steps.",
    )
    at_start: bool = Field(default=True, description="Evaluates before the first step, as a baseline.")
    samples: CountOrZero = Field(default=3, description="Generated answers in the report at each evaluation.")
    max_new_tokens: Count = Field(default=128, description="Maximum tokens per generated answer.")
    metrics: SeveralNamed = Field(
        default=(),
        description="Metrics beside loss and perplexity, by name, or python:FILE:FUNCTION with --allow-code: "
        "a function of a list of answers {prompt, expected, answer} that returns a number, the higher the better.",
    )
    answers: Count = Field(default=64, description="Validation rows that metrics of generated answers look at.")
    best: Text = Field(
        default="loss",
        description="The metric that decides which state is the best, and when early stopping ends the run.",
    )
    sets: dict[str, Text] = Field(
        default={},
        description="Further validation data, {name: path}, read like data.validation; the loss of each is reported.",
    )
    micro_batch_size: Count | None = Field(
        default=None, description="Rows per forward pass; default: training.micro_batch_size."
    )


class CheckpointSection(Section):
    every: Every = Field(default=0.1, description="A fraction of the run, or a number of optimiser steps, or none.")
    keep: Count = Field(default=2, description="Number of checkpoints to keep in addition to the best.")


class LoggingSection(Section):
    every: Count = Field(default=10, description="Optimiser steps between log lines.")
    report: Reports = Field(
        default=("markdown",), description="Pages about the finished run: markdown (report.md), html (report.html)."
    )
    report_to: SeveralNamed = Field(
        default=(), description="Additional trackers, by name; console and metrics.jsonl are always on."
    )


class AfterSection(Section):
    merge: bool = Field(
        default=False,
        description="`lrft merge`: writes merged/ in the run folder. Another dtype: "
        "after.export: [{merged: {dtype: bfloat16}}].",
    )
    export: SeveralNamed = Field(
        default=(), description="`lrft export --to` each of these exporters, by name: writes export/NAME."
    )
    eval: Texts = Field(default=(), description="`lrft eval --data` each of these files.")
    push: Repository | None = Field(
        default=None, description="`lrft push --to` this repository of the hub, OWNER/NAME; private when it is new."
    )
    push_from: Text = Field(
        default="adapter", description="What is pushed: adapter, merged, or the name of an exporter of after.export."
    )


class Recipe(Section):
    """A whole recipe. Attributes are the keys of the file."""

    lrft: Annotated[int, Field(ge=1, le=1)] = Field(default=1, description="Version of the recipe format.")
    model: ModelSection = Field(description="The base model. Short form: its name.")
    adapter: AdapterSection = Field(description="The adapter. Short form: the method.")
    data: DataSection = Field(description="Training and validation data. Short form: the path.")
    training: TrainingSection = Field(default=TrainingSection(), description="Training loop and optimiser.")
    distributed: DistributedSection = Field(
        default=DistributedSection(), description="Multi-device training; not needed on one device."
    )
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="Evaluation during training.")
    checkpoint: CheckpointSection = Field(default=CheckpointSection(), description="Checkpoints.")
    logging: LoggingSection = Field(default=LoggingSection(), description="Logging.")
    after: AfterSection = Field(
        default=AfterSection(), description="Commands that follow a finished training, in this order."
    )
    output_dir: Text = Field(description="Run folder.")

    _places: dict[str, str] = PrivateAttr(default_factory=dict)
    _references: dict[str, str] = PrivateAttr(default_factory=dict)
    _filled: dict[str, str] = PrivateAttr(default_factory=dict)
    """value -> the text with ${NAME} that it was made from"""

    def where(self, key: str) -> str:
        """Where the value of a dotted key was written: recipe.yaml:7:3, argument 2, or default."""
        return self._places.get(key, "default")

    def declared(self) -> dict[str, tuple[Any, str]]:
        """key -> (value, "default of OWNER") of keys that the recipe does not give and one of its names declares."""
        places = {key: place for key, place in self._places.items() if place.startswith("default of ")}
        return {key: (attrgetter(key)(self), place) for key, place in places.items()}

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
