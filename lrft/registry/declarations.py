"""What a class declares, read from its source by `ast`, and the files that may hold such classes.

Nothing is imported to be listed (methods need torch, a recipe does not). A folder is a registry: each of its files may
hold one class with a class variable `name`, its name in a recipe. Class variables are its declaration, annotated
fields with a default its options: all literals. An installed package adds to a registry by an entry point of the group
`lrft.methods`, `lrft.objectives`, ... whose value is the module that holds the class.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from lrft.errors import LrftError, MissingError

BelowOne = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[BelowOne, BelowOne], Field(strict=False)]
"""decays of two running means, as optimisers take them"""

# The names that the type of an option may use.
_ANNOTATIONS: dict[str, Any] = {
    "__builtins__": {},
    **{"int": int, "float": float, "bool": bool, "str": str, "tuple": tuple},
    **{"Literal": Literal, "Annotated": Annotated, "Field": Field},
    **{"BelowOne": BelowOne, "Betas": Betas},
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


def add_card(found: dict[str, Any], card: Declaration) -> None:
    if card.name in found:
        raise ValueError(f"{card.file}: the name {card.name} is also that of {found[card.name].file.name}")
    found[card.name] = card


def declaring(file: Path) -> list[tuple[ast.ClassDef, dict[str, Any]]]:
    """The classes of a file that have a name in a recipe, with their class variables."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    classes = [(node, dict(_class_variables(node, file))) for node in tree.body if isinstance(node, ast.ClassDef)]
    return [(node, values) for node, values in classes if isinstance(values.get("name"), str)]


def declaration(source: Source, node: ast.ClassDef, values: dict[str, Any]) -> dict[str, Any]:
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
            f"Literal, Annotated, Field, BelowOne and Betas ({error})"
        ) from error
