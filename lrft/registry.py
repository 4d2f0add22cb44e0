"""Methods, objectives, optimisers, trackers, metrics, exporters: what they declare, read from source by `ast`.

Nothing is imported to be listed (they need torch, a recipe does not). A folder is a registry: each of its files may
hold one class with a class variable `name`, its name in a recipe. Class variables are its declaration, annotated
fields with a default its options: all literals. An installed package adds to a registry by an entry point of the group
`lrft.methods`, `lrft.objectives`, ... whose value is the module that holds the class.

Composition rules of methods live here too: one method builds, a slot has one owner, every requirement is met.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, create_model

from lrft.errors import LrftError, MissingError

FOLDER = Path(__file__).parent / "methods"
# Where the classes of each kind lie, and the group of entry points by which an installed package adds to them.
ROOMS = {
    "objectives": "objectives",
    "optimizers": "optim",
    "trackers": "tracking",
    "metrics": "metrics",
    "exporters": "export",
}
# How a user's own function is named where a registry's name may stand: python:FILE:FUNCTION.
PYTHON = "python:"
DEFAULT_METHOD = "lora"
DEFAULT_RATE = 2e-4
"""the learning rate of a method that declares none"""


@dataclass(frozen=True)
class RowKind:
    """A kind of rows that objectives take: the formats that give such rows, and what they are, in words."""

    formats: tuple[str, ...]
    words: str
    parts: tuple[str, ...] = ()
    """names of the token sequences of a row, where it has several"""
    answers_only: bool = False
    """only answers can be trained: data.train_on: all is refused"""
    whole: bool = False
    """the tokenizer lays texts out by its own rules, for a model that predicts no tokens: none of them is trained"""
    named: bool = False
    """rows have labels by name"""
    prompted: bool = False
    """data.prompts are written before its texts"""


# What the class variable `rows` of an objective may name.
ROWS: dict[str, RowKind] = {
    "tokens": RowKind(
        ("messages", "sharegpt", "alpaca", "completion", "text"),
        "conversations, prompts with completions, or documents",
    ),
    "preference": RowKind(
        ("preference",), "pairs of a chosen and a rejected answer to one prompt", ("chosen", "rejected"), True
    ),
    "labelled": RowKind(("labelled",), "texts with labels", whole=True, named=True),
    "scored": RowKind(("scored",), "texts with a number each", whole=True),
    "tagged": RowKind(("tagged",), "words with a label each", whole=True, named=True),
    "pairs": RowKind(
        ("pairs",),
        "pairs of a text and another that belongs to it, with or without texts that do not",
        ("query", "document", "negative"),
        whole=True,
        prompted=True,
    ),
    "kto": RowKind(("kto",), "answers with a label of true or false", answers_only=True),
}
DEFAULT_ROWS = "tokens"

# What two owners would both do. A declaration that names another slot is refused: a typo would hide one.
SLOTS: dict[str, str] = {
    "update": "build the update",
    "init": "set the init of A and B",
    "scale": "set the scaling factor",
    "ranks": "set the ranks",
    "entries": "decide which entries of A and B are zero",
    "pair-rates": "set the learning rates of A and B",
    "gradient": "make a step's gradient from several passes",
    "pair-gradient": "change the gradients of A and B",
    "magnitude": "reparametrise magnitude and direction",
    "forward": "change the forward pass in training",
    "optimizer": "choose the optimiser",
    "restart": "restart the update",
    "copies": "average several predictions",
    "steps": "set the step length",
    "placement": "choose the target modules",
    "base": "prune the base",
}

# What one entry provides and another requires, as the end of "X needs ..." and of "Y has no ...".
PROPERTIES: dict[str, tuple[str, str]] = {
    "delta": ("an update that is added to the weight", "such update"),
    "pair": ("a pair of factors A and B", "such pair"),
    "scale": ("a factor alpha/r", "factor alpha/r"),
    "redrawable": ("a zero init that can be redrawn", "such init"),
    "dense": ("a dense update of the weight's shape", "such update"),
}
NO_DROPOUT = "dropout=0"
VALIDATION = "validation"
QUANTIZED = "quantization"


@dataclass(frozen=True)
class Preset:
    """A word for entries with chosen options: a paper's method that is a row of values of others."""

    paper: str
    summary: str
    entries: tuple[tuple[str, dict[str, Any]], ...]
    learning_rate: float | None = None
    """as MethodCard.learning_rate; it comes before those of the entries"""
    rate_source: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.entries)

    @property
    def written(self) -> str:
        """The entries as a recipe holds them."""
        return f"[{', '.join(_entry(name, options) for name, options in self.entries)}]"


def _entry(name: str, options: dict[str, Any]) -> str:
    values = ", ".join(f"{key}: {value}" for key, value in options.items())
    return f"{{{name}: {{{values}}}}}" if options else name


PRESETS: dict[str, Preset] = {
    "remora": Preset(
        "arXiv 2405.12130",
        "MoRA with restarts that switch between its four sharing operators.",
        (("mora", {"type": 1, "switch": 4}), ("relora", {"moments": "forget"})),
        learning_rate=5e-5,
        rate_source="docs/benchmark.md: a third of LoRA's best",
    ),
    "cola": Preset(
        "arXiv 2401.04151",
        "A chain of three LoRAs, each trained for a third of the run with a new optimiser state.",
        (("lora", {}), ("relora", {"restarts": 2, "moments": "forget"})),
    ),
    "dct-adamw": Preset(
        "arXiv 2505.17967",
        "GaLore in fixed directions, the cosines that hold most of each step's gradient.",
        (("galore", {"projection": "dct", "every": 1.0, "factor": 1.0, "moments": "rotate"}),),
        learning_rate=1e-4,
        rate_source="as fira, whose step has the same size",
    ),
    "asymmetry": Preset(
        "arXiv 2402.16842",
        "LoRA with a random, orthonormal, frozen A.",
        (("lora-fa", {"init": "orthonormal"}),),
    ),
    "sam": Preset(
        "arXiv 2010.01412",
        "The gradient is taken where the loss is highest nearby: at the end of one step uphill.",
        (("adversarial-model-perturbation", {"ascent": "normalized", "ball": "all"}),),
    ),
    "low-rank-tickets": Preset(
        "arXiv 2205.13571",
        "Gradient descent of the update among matrices of a low rank, which follows a threshold: a reconstruction.",
        (("riemannlora", {"momentum": "none", "init": "zero", "threshold": 0.05}),),
        learning_rate=6e-3,
        rate_source="plain gradient descent: thirty times LoRA's best on a tiny task",
    ),
    "pmss": Preset(
        "arXiv 2409.16722",
        "A square matrix between the most informative columns and rows of the weight; the choice is a reconstruction.",
        (("curlora", {"selection": "pivots"}),),
    ),
    "weight-refactorization": Preset(
        "arXiv 2505.22922",
        "Every so often the pair is written anew by the singular vectors of B A, and the momentum set to zero.",
        (("fedsvd", {"train_A": True, "split": "both", "moments": "momentum", "every": 200.0}),),
    ),
}

_ANNOTATIONS: dict[str, Any] = {
    "__builtins__": {},
    **{"int": int, "float": float, "bool": bool, "str": str, "tuple": tuple},
    **{"Literal": Literal, "Annotated": Annotated, "Field": Field},
}


@dataclass(frozen=True)
class Knob:
    """One option of a method: its name, its type for pydantic, its default and its help text."""

    name: str
    annotation: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Declaration:
    """One class of a registry, known by its source alone."""

    name: str
    file: Path
    class_name: str
    module: str
    package: str
    """name and version of the installed package that brings it; empty: lrft itself"""
    summary: str
    text: str
    knobs: tuple[Knob, ...]
    facts: dict[str, Any]
    """every class variable of the declaration"""

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of other keys of a recipe, by dotted key, where it names this and gives them no value."""
        return dict(self.facts.get("defaults", {}))

    @property
    def required(self) -> tuple[str, ...]:
        """Options that a recipe has to give: their default stands for none."""
        return tuple(self.facts.get("required", ()))

    @property
    def only_with(self) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """option -> (another option, its values beside which the first means something)."""
        return dict(self.facts.get("only_with", {}))

    @property
    def models(self) -> tuple[str, ...]:
        """Options that name a model or an adapter which is to answer beside the trained model."""
        return tuple(self.facts.get("models", ()))

    @cached_property
    def model(self) -> type[BaseModel]:
        """The options as a strict pydantic model; also the source of their JSON schema."""
        fields: dict[str, Any] = {
            knob.name: (Annotated[knob.annotation, Field(description=knob.help)], knob.default) for knob in self.knobs
        }
        config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
        return create_model(self.class_name, __config__=config, **fields)

    def validate(self, options: dict[str, Any]) -> dict[str, Any]:
        """All options with their values, defaults filled in. Raises pydantic.ValidationError."""
        values = self.model.model_validate(options)
        return {knob.name: getattr(values, knob.name) for knob in self.knobs}

    def load(self) -> type[Any]:
        """The class itself. Imports its module. Raises MissingError where that of an installed package fails."""
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            if not self.package:
                raise
            raise MissingError(f"{self.name}: {self.package} cannot be imported: {error}") from error
        found: type[Any] = getattr(module, self.class_name)
        return found


@dataclass(frozen=True)
class MethodCard(Declaration):
    """The declaration of one method or part."""

    kind: str
    paper: str
    equation: str
    parameters: str
    exports: str
    evidence: str
    builds: bool
    on: str
    slots: tuple[str, ...]
    provides: tuple[str, ...]
    requires: tuple[str, ...]
    conflicts: tuple[str, ...]
    quantization_conflict: str
    learning_rate: float | None
    """the default of training.learning_rate; None: that of the method which the part works on"""
    rate_source: str


@dataclass(frozen=True)
class Source:
    """A file that may declare something, and the name of the module that it is."""

    file: Path
    module: str
    package: str


def sources(folder: Path, prefix: str, group: str | None) -> Iterator[Source]:
    """The files of a folder of lrft, then the modules that entry points of `group` name.

    Raises LrftError for an entry point without source: a fault of its package.
    """
    for file in sorted(folder.glob("*.py")):
        if not file.name.startswith("_"):
            yield Source(file, f"{prefix}.{file.stem}", "")
    for point in sorted(metadata.entry_points(group=group), key=lambda p: p.name) if group else ():
        package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an installed package"
        spec = found_spec(point.module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise fault_of(
                package, f"the entry point {point.name} of {group} names {point.module}, which has no source file"
            )
        yield Source(Path(spec.origin), point.module, package)


def found_spec(module: str) -> ModuleSpec | None:
    """Where a module lies. Unlike `find_spec` it imports no package on the way: one may import torch."""
    top, *below = module.split(".")
    spec, name = find_spec(top), top
    for part in below:
        if spec is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations or [])
    return spec


def fault_of(package: str, text: str) -> LrftError:
    """What to say of an installed package whose declaration is broken."""
    return LrftError(f"{package}: {text}", f"Repair, update or uninstall {package.split()[0]}: lrft cannot list it.")


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """A broken declaration of an installed package is that package's fault; one of lrft is a bug of lrft."""
    try:
        yield
    except (ValueError, SyntaxError) as error:
        if not source.package:
            raise
        raise fault_of(source.package, str(error)) from error


@cache
def declared(kind: str) -> dict[str, Declaration]:
    """Declarations of one of `ROOMS` by name: objectives, optimizers, trackers, metrics or exporters.

    A file without a class that has a `name` declares nothing. Raises ValueError for a broken declaration, and for a
    name that is declared twice; LrftError where an installed package does.
    """
    found: dict[str, Declaration] = {}
    for source in sources(Path(__file__).parent / ROOMS[kind], f"lrft.{ROOMS[kind]}", f"lrft.{kind}"):
        with reading(source):
            for node, values in _declaring(source.file):
                _add(found, Declaration(**_declaration(source, node, values)))
    return found


class Chosen(Protocol):
    """What a recipe names of a registry."""

    @property
    def name(self) -> str: ...


def refuse_missing(key: str, chosen: Chosen, kind: str) -> None:
    """Raises MissingError where the package that a declaration `needs` is not installed. Imports nothing."""
    card = declared(kind).get(chosen.name)  # none: a user's own function
    package = "" if card is None else card.facts.get("needs", "")
    if package and find_spec(package.replace("-", "_")) is None:
        raise MissingError(
            f"{key}: {chosen.name} needs the package {package}, which is not installed", f"pip install {package}"
        )


@cache
def methods(folder: Path = FOLDER) -> dict[str, MethodCard]:
    """Cards by recipe name: those that build first, then the parts, each alphabetically.

    Raises ValueError with file and line for a declaration that breaks the format: a bug of the method's file; LrftError
    for one of an installed package.
    """
    found: dict[str, MethodCard] = {}
    for source in sources(folder, "lrft.methods", "lrft.methods" if folder == FOLDER else None):
        with reading(source):
            _add(found, read_card(source))
    ordered = sorted(found.values(), key=lambda card: (not card.builds, card.name))
    return {card.name: card for card in ordered}


def rows_of(objective: str, options: Mapping[str, Any] | None = None) -> str:
    """The kind of rows that an objective takes. Raises LrftError where an installed package names none of `ROWS`.

    options: of the objective; some values of some declare another kind, by the class variable `rows_by`
    """
    card = declared("objectives")[objective]
    kind: str = card.facts.get("rows", DEFAULT_ROWS)
    for option, kinds in card.facts.get("rows_by", {}).items():
        kind = kinds.get((options or {}).get(option), kind)
    if kind not in ROWS:
        text = f"{card.file}: {card.class_name}.rows is {kind!r}, not one of {', '.join(ROWS)}"
        raise fault_of(card.package, text) if card.package else ValueError(text)
    return kind


def rate_factor(objective: str) -> float:
    """What the default learning rate is multiplied by for this objective."""
    factor: float = declared("objectives")[objective].facts.get("rate_factor", 1.0)
    return factor


def head_of(objective: str) -> str:
    """The kind of head that an objective trains (`lrft.model.head.KINDS`); "" for a language model's own."""
    kind: str = declared("objectives")[objective].facts.get("head", "")
    return kind


def objectives_for(kind: str) -> list[str]:
    """The names of the objectives that take rows of this kind."""
    return [name for name in sorted(declared("objectives")) if rows_of(name) == kind]


def _add(found: dict[str, Any], card: Declaration) -> None:
    if card.name in found:
        raise ValueError(f"{card.file}: the name {card.name} is also that of {found[card.name].file.name}")
    found[card.name] = card


def _declaring(file: Path) -> list[tuple[ast.ClassDef, dict[str, Any]]]:
    """The classes of a file that have a name in a recipe, with their class variables."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    classes = [(node, dict(_class_variables(node, file))) for node in tree.body if isinstance(node, ast.ClassDef)]
    return [(node, values) for node, values in classes if isinstance(values.get("name"), str)]


def _declaration(source: Source, node: ast.ClassDef, values: dict[str, Any]) -> dict[str, Any]:
    text = ast.get_docstring(node) or ""
    return {
        "name": values["name"],
        "file": source.file,
        "class_name": node.name,
        "module": source.module,
        "package": source.package,
        "summary": " ".join(text.split("\n\n")[0].split()),
        "text": text,
        "knobs": tuple(_knobs(node, source.file)),
        "facts": values,
    }


def read_card(source: Source) -> MethodCard:
    """The declaration in a method's file. Raises ValueError when there is not exactly one, or it is no literal."""
    file = source.file
    found = _declaring(file)
    if len(found) != 1:
        raise ValueError(f"{file}: one class with a class variable `name` is expected, found {len(found)}")
    node, values = found[0]
    missing = [key for key in ("kind", "paper", "equation") if key not in values]
    if missing:
        raise ValueError(f"{file}:{node.lineno}: {node.name} does not declare {', '.join(missing)}")
    _check_words(file, node, values)
    if ("learning_rate" in values) != bool(values.get("rate_source")):
        raise ValueError(f"{file}:{node.lineno}: learning_rate and rate_source must be declared together")
    is_method = any(isinstance(base, ast.Name) and base.id == "Method" for base in node.bases)
    return MethodCard(
        **_declaration(source, node, values),
        kind=values["kind"],
        paper=values["paper"],
        equation=values["equation"],
        # The defaults are those of the base class Part, which cannot be imported here.
        parameters=values.get("parameters", "those of the method"),
        exports=values.get("exports", "as the method"),
        evidence=values.get("evidence", ""),
        builds=values.get("builds", is_method),
        on=values.get("on", DEFAULT_METHOD),
        slots=values.get("slots", ()),
        provides=values.get("provides", ()),
        requires=values.get("requires", ()),
        conflicts=values.get("conflicts", ()),
        quantization_conflict=values.get("quantization_conflict", ""),
        learning_rate=values.get("learning_rate"),
        rate_source=values.get("rate_source", ""),
    )


def _check_words(file: Path, node: ast.ClassDef, values: dict[str, Any]) -> None:
    allowed = {
        "slots": {*SLOTS},
        "provides": {*PROPERTIES},
        "requires": {*PROPERTIES, NO_DROPOUT, VALIDATION},
        "conflicts": {*SLOTS},
    }
    for key, words in allowed.items():
        unknown = set(values.get(key, ())) - words
        if unknown:
            raise ValueError(
                f"{file}:{node.lineno}: {key} names {', '.join(sorted(unknown))}, not one of {sorted(words)}"
            )


def _is_class_variable(annotation: ast.expr) -> bool:
    head = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return isinstance(head, ast.Name) and head.id == "ClassVar"


def _class_variables(node: ast.ClassDef, file: Path) -> Iterator[tuple[str, Any]]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if _is_class_variable(item.annotation) and item.value is not None:
            yield item.target.id, _literal(item.value, item, file)


def _knobs(node: ast.ClassDef, file: Path) -> Iterator[Knob]:
    for position, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign) or _is_class_variable(item.annotation):
            continue
        if not isinstance(item.target, ast.Name) or item.value is None:
            raise ValueError(f"{file}:{item.lineno}: an option needs a name and a default")
        default = _literal(item.value, item, file)
        after = node.body[position + 1] if position + 1 < len(node.body) else None
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        yield Knob(item.target.id, _annotation(item, file), default, " ".join(str(text).split()))


def _literal(value: ast.expr, item: ast.stmt, file: Path) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        raise ValueError(f"{file}:{item.lineno}: a declaration must be a literal") from error


def _annotation(item: ast.AnnAssign, file: Path) -> Any:
    """The type of an option. Only the names in _ANNOTATIONS exist: nothing of the method's file is run."""
    code = compile(ast.Expression(item.annotation), str(file), "eval")
    try:
        return eval(code, dict(_ANNOTATIONS))
    except (NameError, TypeError) as error:
        raise ValueError(
            f"{file}:{item.lineno}: the type of an option may use int, float, bool, str, tuple, None, "
            f"Literal, Annotated and Field ({error})"
        ) from error


def compose(entries: Sequence[str], folder: Path = FOLDER) -> tuple[str, ...]:
    """The names with the one that builds first; when none builds, the one that some entry works on is added."""
    cards = methods(folder)
    builders = [name for name in entries if cards[name].builds]
    if not builders:
        wanted = [cards[name].on for name in entries if cards[name].on != DEFAULT_METHOD]
        builders = [*wanted, DEFAULT_METHOD][:1]
    return (*builders, *(name for name in entries if not cards[name].builds))


@dataclass(frozen=True)
class Rate:
    """A default learning rate and its origin."""

    value: float
    owner: str
    """the method, part or preset that declares it"""
    source: str


def default_rate(words: Sequence[str], folder: Path = FOLDER) -> Rate:
    """The learning rate of a recipe that gives none, from the names under adapter.method, presets included.

    The lowest of those that parts and presets declare; where none does, that of the method that builds.
    """
    cards = methods(folder)
    inside = {word: PRESETS[word].names if word in PRESETS else (word,) for word in words}
    builder, *_ = compose(list(dict.fromkeys(name for names in inside.values() for name in names)), folder)
    declared: dict[str, Preset | MethodCard] = {}
    for word, names in inside.items():
        if word in PRESETS and PRESETS[word].learning_rate is not None:
            declared[word] = PRESETS[word]
        else:
            declared |= {name: cards[name] for name in names if not cards[name].builds}
    rates = [Rate(one.learning_rate, word, one.rate_source) for word, one in declared.items() if one.learning_rate]
    method = cards[builder]
    return min(rates, key=lambda rate: rate.value, default=None) or Rate(
        method.learning_rate or DEFAULT_RATE, builder, method.rate_source
    )


@dataclass(frozen=True)
class Conflict:
    """A conflict between entries, or of an entry with the recipe."""

    index: int | None
    """of the entry to be blamed, None for the whole list"""
    about: str
    """the slot or property, "twice", NO_DROPOUT, VALIDATION or QUANTIZED"""
    text: str


def over_quantized(name: str, why: str) -> str:
    """What to say of an entry that makes no sense over a quantised base."""
    return f"{name} {why}: set model.quantization: none, or use a low-rank method such as lora"


def conflicts(
    names: Sequence[str],
    *,
    dropout: float,
    alpha_given: bool,
    validation: bool = True,
    quantized: bool = False,
    folder: Path = FOLDER,
) -> list[Conflict]:
    """Conflicts among these entries, and with a recipe's dropout, alpha, validation rows and base."""
    cards = methods(folder)
    first = {name: names.index(name) for name in set(names)}
    found = [Conflict(i, "twice", f"{name} is listed twice") for i, name in enumerate(names) if i != first[name]]
    composed = compose(list(dict.fromkeys(names)), folder)
    builders = [name for name in composed if cards[name].builds]
    for other in builders[1:]:
        found.append(Conflict(first[other], "update", f"{builders[0]} and {other} both build the update: keep one"))
    found += _slots_twice(names, cards)
    for i, name in enumerate(names):
        for other in names:
            both = [slot for slot in cards[name].conflicts if slot in cards[other].slots and other != name]
            for slot in both:
                text = f"{name} conflicts with {other}: both would {SLOTS[slot]}"
                found.append(Conflict(i, slot, text))
    builder = builders[0]
    if builder not in names:
        whose = next((name for name in names if cards[name].on == builder), None)
        builder = f"{builder}, the default method for {whose}," if whose and builder != DEFAULT_METHOD else builder
    given = {gift for name in composed for gift in cards[name].provides}
    for name in dict.fromkeys([*names, *composed]):
        i = first.get(name, 0)  # who brought along a method is to be blamed for it
        if quantized and cards[name].quantization_conflict:
            who = builder if name == builders[0] else name
            found.append(Conflict(i, QUANTIZED, over_quantized(who, cards[name].quantization_conflict)))
        for need in cards[name].requires:
            if need == NO_DROPOUT and dropout > 0:
                found.append(Conflict(i, need, f"{name} requires adapter.dropout: 0, got {dropout:g}"))
            elif need == VALIDATION and not validation:
                found.append(Conflict(i, need, f"{name} requires validation rows; data.validation is none"))
            elif need in PROPERTIES and need not in given:
                wanted, lacking = PROPERTIES[need]
                found.append(Conflict(i, need, f"{name} requires {wanted}; {builder} has no {lacking}"))
    if alpha_given and "scale" not in given:
        found.append(Conflict(None, "scale", f"{builders[0]} has no scaling factor alpha/r: remove alpha and scale"))
    return found


def _slots_twice(names: Sequence[str], cards: dict[str, MethodCard]) -> Iterator[Conflict]:
    owners: dict[str, str] = {}
    for i, name in enumerate(names):
        for slot in cards[name].slots:
            owner = owners.setdefault(slot, name)
            if owner != name and not (cards[owner].builds and cards[name].builds):
                yield Conflict(i, slot, f"{owner} and {name} both {SLOTS[slot]}: keep one")
