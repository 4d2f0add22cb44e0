"""The schema as JSON Schema, as a page and as help on one key, made from schema.py and the methods' cards."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from lrft import registry
from lrft.errors import UsageError, nearest
from lrft.recipe.schema import CHOICE_OPTIONS, REGISTERED, Recipe
from lrft.recipe.types import LARGEST

Schema = dict[str, Any]
SCHEMA_ID = "urn:lrft:recipe:1"
"""names the schema and its version; there is no address to fetch it from: `lrft schema` prints it"""

_TEXT: Schema = {"type": "string", "minLength": 1}
_EXTENDS: Schema = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT}],
    "default": [],
    "description": "Base recipe files, relative to this file; later files and this file's keys take precedence.",
}
# Models inside a section that have a table of their own, by the dotted name that the page gives them.
_INNER = {
    "adapter.overrides": "ModuleOverride",
    "data.train": "DataEntry",
    "training.early_stopping": "EarlyStopping",
}


def json_schema() -> Schema:
    """JSON Schema (2020-12) of a recipe file, short forms included."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    adapter, data, training = (definitions[f"{name}Section"]["properties"] for name in ("Adapter", "Data", "Training"))
    names, entry = _method_names(), {"anyOf": [_TEXT, {"$ref": "#/$defs/DataEntry"}]}
    with_options = {"anyOf": [names, _one_of(_method_options(definitions))]}
    methods = {"type": "array", "minItems": 1, "items": with_options}
    entries = {"type": "array", "minItems": 1, "items": entry}
    _write(adapter["method"], {"anyOf": [*with_options["anyOf"], methods]}, registry.DEFAULT_METHOD)
    _write(data["train"], {"anyOf": [*entry["anyOf"], entries]})
    for key in CHOICE_OPTIONS:
        _write(training[key], _choice(definitions, key), next(iter(CHOICE_OPTIONS[key])))
    for key, (kind, default) in REGISTERED.items():
        _write(training[key], _registered(definitions, kind), default)
    trackers, metrics = _registered(definitions, "trackers"), _registered(definitions, "metrics")
    metrics["anyOf"].append({"type": "string", "pattern": f"^{registry.PYTHON}.+:[A-Za-z_][A-Za-z0-9_]*$"})
    _write(definitions["LoggingSection"]["properties"]["report_to"], {"type": "array", "items": trackers})
    _write(definitions["EvaluationSection"]["properties"]["metrics"], {"type": "array", "items": metrics})
    exporters = {"type": "array", "items": _registered(definitions, "exporters")}
    _write(definitions["AfterSection"]["properties"]["export"], exporters)
    for model in (schema, *definitions.values()):
        _allow_null(model)
    sections = schema["properties"]
    for key, short in (("model", [_TEXT]), ("adapter", [names, methods]), ("data", [_TEXT, entries])):
        _write(sections[key], {"anyOf": [*short, {"$ref": f"#/$defs/{key.capitalize()}Section"}]})
        # What a file leaves out may stand in a file that it extends.
        definitions[f"{key.capitalize()}Section"].pop("required", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "lrft recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {"lrft": sections.pop("lrft"), "extends": _EXTENDS, **sections},
        "anyOf": [{"required": ["extends"]}, {"required": ["model", "data", "output_dir"]}],
        "$defs": {name: definitions[name] for name in definitions if name != "LrScheduler"},
    }


@cache
def schema_text() -> str:
    """The schema as JSON on one line, as a file for an editor has it."""
    return json.dumps(json_schema())


def _write(prop: Schema, form: Schema, default: Any = None) -> None:
    """Replaces what pydantic says about a key by the form that a file may hold."""
    description = prop["description"]
    prop.clear()
    prop.update({**form, "description": description, **({} if default is None else {"default": default})})


def _registered(definitions: dict[str, Schema], kind: str) -> Schema:
    """A name of a registry, or {name: its options}; the options are added to `definitions`."""
    cards = [card for card in registry.declared(kind).values() if not card.facts.get("always", False)]
    names = {"oneOf": [{"const": card.name, "description": card.summary} for card in cards]} if cards else {"enum": []}
    forms = {}
    for card in cards:
        definitions[f"{card.class_name}Options"] = {**card.model.model_json_schema(), "description": card.summary}
        forms[card.name] = {"anyOf": [{"$ref": f"#/$defs/{card.class_name}Options"}, {"type": "null"}]}
    return {"anyOf": [names, _one_of(forms)]}


def _method_names() -> Schema:
    words = {card.name: card.summary for card in registry.methods().values()}
    words |= {name: preset.summary for name, preset in registry.PRESETS.items()}
    return {"oneOf": [{"const": name, "description": summary} for name, summary in words.items()]}


def _method_options(definitions: dict[str, Schema]) -> dict[str, Schema]:
    """{NAME: the options of that method}; each is added to `definitions`."""
    for card in registry.methods().values():
        definitions[f"{card.class_name}Options"] = {
            **card.model.model_json_schema(),
            "description": card.summary,
        }
    return {
        card.name: {"anyOf": [{"$ref": f"#/$defs/{card.class_name}Options"}, {"type": "null"}]}
        for card in registry.methods().values()
    }


def _one_of(properties: Schema) -> Schema:
    """A map that holds exactly one of `properties`."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "minProperties": 1,
        "maxProperties": 1,
    }


def _choice(definitions: dict[str, Schema], key: str) -> Schema:
    """A name, or {name: {option: value}} with the options of that name."""
    choices = CHOICE_OPTIONS[key]
    options = definitions["LrScheduler"]["properties"]
    forms = {
        name: {
            "type": "object",
            "additionalProperties": False,
            "properties": {o: options[o] for o in allowed},
        }
        for name, allowed in choices.items()
    }
    return {"anyOf": [{"enum": list(choices)}, _one_of(forms)]}


def _allow_null(model: Schema) -> None:
    """null returns any key to its default, so it is allowed wherever there is one."""
    for name, prop in model.get("properties", {}).items():
        forms = prop.get("anyOf", [])
        if name not in model.get("required", ()) and {"type": "null"} not in forms:
            kept = {key: prop[key] for key in ("description", "default") if key in prop}
            form = {key: value for key, value in prop.items() if key not in (*kept, "title")}
            forms = form["anyOf"] if set(form) == {"anyOf"} else [form]
            model["properties"][name] = {"anyOf": [*forms, {"type": "null"}], **kept}


def reference() -> str:
    """A Markdown page: one table per section."""
    schema = json_schema()
    sections = {key: prop for key, prop in schema["properties"].items() if _section(prop)}
    parts = [
        "# Keys of a recipe",
        "This page is generated from the schema. `null` returns a key to its default.",
        "## Top level",
        _table({key: prop for key, prop in schema["properties"].items() if key not in sections}, {"output_dir"}),
    ]
    for key, prop in sections.items():
        model = schema["$defs"][_section(prop)]
        parts += [f"## {key}", prop["description"], _table(model["properties"], _required(key))]
        for inner, name in _INNER.items():
            if inner.startswith(f"{key}."):
                parts += [f"### {inner}", _table(schema["$defs"][name]["properties"], _required(inner))]
    return "\n\n".join(parts) + "\n"


def _required(key: str) -> set[str]:
    """Keys of a section that have no default."""
    needed = {"model": "name", "data": "train", "data.train": "path", "training.early_stopping": "patience"}
    return {needed[key]} if key in needed else set()


def _section(prop: Schema) -> str:
    """The name of the section that a top-level key holds, or ""."""
    references = [form.get("$ref", "") for form in (prop, *prop.get("anyOf", []))]
    return next((name.rsplit("/", 1)[-1] for name in references if name.endswith("Section")), "")


def _table(properties: Schema, required: set[str]) -> str:
    rows = ["| key | value | default | description |", "|---|---|---|---|"]
    for name, prop in properties.items():
        default = "required" if name in required else f"`{_default(prop)}`"
        cells = (f"`{name}`", _words(prop), default, prop.get("description", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(prop: Schema) -> str:
    value = prop.get("default")
    return value if isinstance(value, str) else json.dumps(value)


def _words(form: Schema) -> str:
    """The values that a form of JSON Schema allows, in words. null is left out: it is allowed everywhere."""
    if "oneOf" in form:
        return ", ".join(_words(inner) for inner in form["oneOf"])
    if "anyOf" in form:
        words = [_words(inner) for inner in form["anyOf"]]
        return ", or ".join(dict.fromkeys(word for word in words if word))
    if "const" in form:
        return f"`{json.dumps(form['const']).strip(chr(34))}`"
    if "enum" in form:
        return ", ".join(f"`{value}`" for value in form["enum"])
    if "$ref" in form:
        return "a map of keys"
    kind = form.get("type")
    if kind == "array":
        return "a list"
    if kind == "object":
        names = ", ".join(form.get("properties", {}))
        return f"a map with one of {names}" if names else "a map"
    return {"string": "text", "boolean": "`true`, `false`", "null": ""}.get(str(kind), "") or _number(form, kind)


_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _number(form: Schema, kind: Any) -> str:
    if kind not in ("integer", "number"):
        return ""
    bounds = [f"{words} {form[key]:g}" for key, words in _BOUNDS.items() if form.get(key, LARGEST) != LARGEST]
    return " ".join(["a whole number" if kind == "integer" else "a number", " and ".join(bounds)]).rstrip()


def describe(key: str) -> str:
    """What one key is for, what it may hold, its default; for a section, its keys. Raises UsageError."""
    schema = json_schema()
    known = _all_keys(schema)
    name = ".".join(part.removesuffix("[]") for part in key.split(".") if not part.isdigit())
    if name not in known:
        close = nearest(name, known)
        raise UsageError(f"{key} is not a key of a recipe", f"Did you mean {close[0]}?" if close else None)
    prop, required = known[name]
    below = [other for other in known if other.startswith(f"{name}.") and other.count(".") == name.count(".") + 1]
    lines = [f"{name}: {_words(prop).replace('`', '')}", prop.get("description", "")]
    if not below or "default" in prop:
        lines.append("Required." if required else f"Default: {_default(prop)}")
    return "\n".join(line for line in [*lines, *(f"  {other}" for other in below)] if line)


def _all_keys(schema: Schema) -> dict[str, tuple[Schema, bool]]:
    """{dotted key: (its schema, whether it is required)}."""
    keys = {name: (prop, name == "output_dir") for name, prop in schema["properties"].items()}
    inner = {key: _section(prop) for key, prop in schema["properties"].items() if _section(prop)} | _INNER
    for prefix, model in inner.items():
        for name, prop in schema["$defs"][model]["properties"].items():
            keys[f"{prefix}.{name}"] = (prop, name in _required(prefix))
    return keys
