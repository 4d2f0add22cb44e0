"""The catalog: declarations read from source files, and which methods go together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from lrft import recipe, registry
from lrft.cli import method_list
from lrft.errors import RecipeError
from lrft.registry.methods import Cards, cards_in, name_in

BUILDER = '''
class {cls}(Method):
    """Builds {name}.

    More text."""

    name: ClassVar[str] = "{name}"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 1"
    equation: ClassVar[str] = "B A"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = {provides}
'''
PART = '''
import nothing_of_this_name
from elsewhere import Part, ClassVar

CONSTANT = 3

@dataclass(frozen=True)
class {cls}(Part):
    """Changes the start,
    in two lines."""

    name: ClassVar[str] = "{name}"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2"
    equation: ClassVar[str] = "A0"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = {requires}

    ratio: Annotated[float, Field(gt=0, le=100)] = 16.0
    """How much,
    and why."""
    mode: Literal["fast", "exact"] | None = "fast"
    steps: int = -1
    switch: bool = True

    def start(self):
        local: int = 3
        return local

class Helper(Adapter):
    size: int = 3
'''


def write(folder: Path, file: str, text: str, **words: object) -> None:
    (folder / file).write_text(text.format(**words) if words else text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "__init__.py", "this is not Python")
    write(tmp_path, "lora.py", BUILDER, cls="Lora", name="lora", provides=("delta", "pair", "scale"))
    write(tmp_path, "square.py", BUILDER, cls="Square", name="square", provides=("delta",))
    write(tmp_path, "a_start.py", PART, cls="AStart", name="a+", requires=("pair", "dropout=0"))
    write(tmp_path, "b_start.py", PART, cls="BStart", name="b-start", requires=("pair",))
    return tmp_path


def test_builders_come_first_then_parts_each_by_name(folder: Path) -> None:
    assert list(registry.methods(folder)) == ["lora", "square", "a+", "b-start"]


def test_a_card_holds_the_declaration(folder: Path) -> None:
    card = registry.methods(folder)["a+"]
    assert (card.class_name, card.module, card.file.name) == ("AStart", "lrft.methods.a_start", "a_start.py")
    assert (card.kind, card.paper, card.equation, card.builds) == ("initialisation", "arXiv 2", "A0", False)
    assert (card.slots, card.provides, card.requires) == (("init",), (), ("pair", "dropout=0"))
    assert (card.parameters, card.exports, card.evidence) == ("those of the method", "as the method", "")
    assert card.summary == "Changes the start, in two lines."
    assert registry.methods(folder)["square"].builds
    assert registry.methods(folder)["square"].text == "Builds square.\n\nMore text."


def test_options_have_name_default_and_help(folder: Path) -> None:
    knobs = registry.methods(folder)["a+"].knobs
    assert [(knob.name, knob.default) for knob in knobs] == [
        ("ratio", 16.0),
        ("mode", "fast"),
        ("steps", -1),
        ("switch", True),
    ]
    assert [knob.help for knob in knobs] == ["How much, and why.", "", "", ""]


def test_options_are_completed_and_strict(folder: Path) -> None:
    card = registry.methods(folder)["a+"]
    assert card.validate({"ratio": 2}) == {"ratio": 2.0, "mode": "fast", "steps": -1, "switch": True}
    assert card.validate({"mode": None})["mode"] is None
    for wrong in (
        {"ratio": 0},
        {"ratio": 101},
        {"ratio": "2"},
        {"ratio": float("nan")},
        {"rato": 1},
        {"mode": "slow"},
        {"switch": 1},
    ):
        with pytest.raises(ValidationError):
            card.validate(wrong)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name: ClassVar[str] = "a+"', "", "found 0"),
        ('paper: ClassVar[str] = "arXiv 2"', "", "does not declare paper"),
        ('("init",)', '("strat",)', "slots names strat"),
        ("('pair', 'dropout=0')", '("pear",)', "requires names pear"),
        ("= 16.0", "= CONSTANT", "a declaration must be a literal"),
        ("= 16.0", "", "a default"),
        ("steps: int", "steps: Tensor", "the type of an option"),
        ('"a+"', '"lora"', "the name lora"),
    ],
)
def test_a_broken_declaration_is_a_bug_that_names_the_file(folder: Path, old: str, new: str, said: str) -> None:
    text = (folder / "a_start.py").read_text()
    assert old in text
    (folder / "a_start.py").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=said) as caught:
        list(Cards(folder).values())
    assert ".py" in str(caught.value)


def test_two_declarations_in_a_file_are_refused(folder: Path) -> None:
    path = folder / "lora.py"
    path.write_text(path.read_text() + (folder / "square.py").read_text())
    with pytest.raises(ValueError, match="found 2"):
        registry.read_card(registry.Source(path, "lrft.methods.x", ""))


def test_compose_puts_the_builder_first_and_adds_the_default(folder: Path) -> None:
    assert registry.compose(["a+"], folder) == ("lora", "a+")
    assert registry.compose(["a+", "square"], folder) == ("square", "a+")
    assert registry.compose([], folder) == ("lora",)


@pytest.mark.parametrize(
    ("names", "dropout", "alpha", "expected"),
    [
        (["lora"], 0.1, True, []),
        (["a+"], 0.0, True, []),
        (["lora", "square"], 0.0, False, [(1, "lora and square both build the update: keep one")]),
        (["a+", "b-start"], 0.0, False, [(1, "a+ and b-start both set the init of A and B: keep one")]),
        (
            ["square", "b-start"],
            0.0,
            False,
            [(1, "b-start requires a pair of factors A and B; square has no such pair")],
        ),
        (["a+", "a+"], 0.0, False, [(1, "a+ is listed twice")]),
        (["a+"], 0.5, False, [(0, "a+ requires adapter.dropout: 0, got 0.5")]),
        (["square"], 0.0, True, [(None, "square has no scaling factor alpha/r: remove alpha and scale")]),
    ],
)
def test_conflicts(folder: Path, names: list[str], dropout: float, alpha: bool, expected: object) -> None:
    found = registry.conflicts(names, dropout=dropout, alpha_given=alpha, folder=folder)
    assert [(conflict.index, conflict.text) for conflict in found] == expected


def test_a_part_that_excludes_what_another_does_is_refused_beside_it(folder: Path) -> None:
    path = folder / "b_start.py"
    requires = "    requires: ClassVar"
    path.write_text(
        path.read_text().replace(requires, f'    conflicts: ClassVar[tuple[str, ...]] = ("scale",)\n{requires}', 1)
    )
    other = folder / "a_start.py"
    other.write_text(other.read_text().replace('("init",)', '("scale",)', 1))
    cards_in.cache_clear()
    for names in (["a+", "b-start"], ["b-start", "a+"]):
        (found,) = registry.conflicts(names, dropout=0, alpha_given=False, folder=folder)
        assert found.about == "scale"
        assert found.text == "b-start conflicts with a+: both would set the scaling factor"


def test_a_card_is_read_when_it_is_asked_for(folder: Path) -> None:
    path = folder / "square.py"
    path.write_text(path.read_text().replace("kind: ClassVar[str] = ", "kind: ClassVar[str] = CONSTANT + "))
    cards = Cards(folder)
    assert cards.names == {"lora", "square", "a+", "b-start"}
    assert "square" in cards
    assert "cube" not in cards
    assert cards["lora"].builds
    assert registry.compose(["a+"], folder) == ("lora", "a+")
    with pytest.raises(ValueError, match="must be a literal"):
        cards["square"]


def test_every_method_has_its_name_where_it_is_looked_for() -> None:
    assert [name_in(card.file) for card in registry.methods().values()] == list(registry.methods())


def test_the_real_methods_are_readable_and_described() -> None:
    cards = registry.methods()
    assert {"lora", "rslora", "lora+", "pissa", "mora", "dora"} <= set(cards)
    for card in cards.values():
        assert card.summary
        assert card.evidence
        assert all(knob.help for knob in card.knobs)
        assert card.validate({}) == {knob.name: knob.default for knob in card.knobs}
        alone = [name for name in (card.name,) if card.builds]
        assert registry.conflicts(alone or [card.name], dropout=0.0, alpha_given=False) == []


def test_reading_declarations_and_recipes_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lrft import registry, recipe; registry.methods(); recipe.json_schema();"
        "sys.exit(' '.join({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", registry.PRESETS)
def test_a_preset_is_its_entries_written_out(name: str) -> None:
    preset = registry.PRESETS[name]
    written = [{word: options} if options else word for word, options in preset.entries]
    assert name not in registry.methods()
    assert recipe.parse_adapter({"method": name}) == recipe.parse_adapter({"method": written})
    assert recipe.parse_adapter({"method": [name]}) == recipe.parse_adapter({"method": written})
    with pytest.raises(RecipeError, match=rf"{name} has no options of its own: it is \["):
        recipe.parse_adapter({"method": {name: {"rank": 3}}})


def test_a_preset_combines_with_parts_and_a_typo_of_it_is_named() -> None:
    both = recipe.parse_adapter({"method": ["cola", "lora+"]})
    assert [entry.name for entry in both.method] == ["lora", "relora", "lora+"]
    with pytest.raises(RecipeError, match="Did you mean remora"):
        recipe.parse_adapter({"method": "remorra"})


def test_a_part_brings_the_method_that_it_works_on(tmp_path: Path) -> None:
    builder = BUILDER.format(cls="Big", name="big", provides='("delta", "dense")')
    part = PART.format(cls="Small", name="small", requires='("dense",)').replace(
        'kind: ClassVar[str] = "init', 'on: ClassVar[str] = "big"\n    kind: ClassVar[str] = "init'
    )
    (tmp_path / "big.py").write_text(builder)
    (tmp_path / "small.py").write_text(part)
    assert registry.compose(["small"], tmp_path) == ("big", "small")
    assert registry.conflicts(["small"], dropout=0, alpha_given=False, folder=tmp_path) == []


def test_the_recipe_line_of_every_card_is_accepted() -> None:
    cards = registry.methods()
    for card in cards.values():
        lines = method_list.card(card, cards).splitlines()
        (line,) = [line for line in lines if line.startswith("recipe ")]
        section = yaml.safe_load(line.removeprefix("recipe").strip())
        assert card.name in [entry.name for entry in recipe.parse_adapter(section).method], line
