"""What goes together: the literature's matrix of methods, against what follows from the declarations."""

from __future__ import annotations

import itertools

import pytest

from lrft import catalog, combinations, recipe
from lrft.errors import RecipeError

# Words that go together with the first one, and words that do not. "dropout" is `adapter.dropout: 0.1`.
MATRIX = {
    "lora": ("rslora lora+ lora-pro preconditioned dora dropout fast-forward tempbalance gora prilora pego", ""),
    "pissa": (
        "rslora lora+ lora-pro preconditioned dora fast-forward tempbalance ba-lora prilora",
        "dropout olora milora corda lora-ga lora-one gora adalora pego roselora relora",
    ),
    "milora": ("rslora lora+ lora-pro dora dropout fast-forward tempbalance", "adalora gora pissa"),
    "olora": ("rslora lora+ lora-pro dora fast-forward tempbalance", "dropout adalora"),
    "sorsa": ("fast-forward tempbalance", "rslora lora+ lora-pro dora dropout lora-dropout"),
    "corda": ("rslora lora+ lora-pro dora fast-forward tempbalance", "dropout pissa"),
    "eva": ("rslora lora+ lora-pro dora dropout fast-forward tempbalance", "gora prilora plop"),
    "lora-ga": ("rslora lora-pro preconditioned dora fast-forward tempbalance", "lora+ dropout"),
    "lora-one": ("rslora lora+ preconditioned lora-pro dora dropout fast-forward tempbalance", "pissa"),
    "lora-sb": ("fast-forward tempbalance", "rslora lora+ lora-pro dora pissa"),
    "gora": ("lora+ lora-pro dora dropout fast-forward tempbalance", "rslora pissa prilora adalora"),
    **dict.fromkeys(
        ("galore", "fira", "frugal", "flora"),
        ("full tempbalance", "rslora lora+ lora-pro dora dropout pissa relora fast-forward lora mora"),
    ),
    "galore": ("full tempbalance", "fira frugal flora rslora lora+ lora-pro dora dropout pissa relora fast-forward"),
    "mora": ("dora relora tempbalance fast-forward dropout ba-lora", "lora+ rslora pissa lora-pro fedsvd"),
    "vera": ("dora tempbalance fast-forward", "lora+ rslora pissa lora-pro"),
    "fourierft": ("dora tempbalance fast-forward", "lora+ rslora pissa lora-pro"),
    "lora+": ("fast-forward tempbalance dora", "lora-pro preconditioned fedsvd lora-fa"),
    "lora-pro": ("fast-forward tempbalance", "lora+ preconditioned dora"),
    "preconditioned": ("fast-forward dora", "lora+ lora-pro"),
    "relora": ("lora rslora dora mora lora+", "pissa milora olora sorsa adalora prilora fast-forward lora-xs"),
    "early-late-dropout": ("lora rslora dora lora+", ""),
    "lora-dropout": ("rslora lora+ pissa lora-pro", "dora dropout"),
    "dora": ("lora mora rslora lora+ pissa", "edora sorsa"),
}
PAIRS = [
    (word, other, refused)
    for word, lists in MATRIX.items()
    for refused, others in enumerate(lists)
    for other in others.split()
]


@pytest.mark.parametrize(("word", "other", "refused"), PAIRS)
def test_the_matrix_follows_from_the_declarations(word: str, other: str, refused: int) -> None:
    words = [word] if other == "dropout" else [word, other]
    dropout = 0.1 if other == "dropout" else 0.0
    for order in itertools.permutations(words):
        found = catalog.conflicts(order, dropout=dropout, alpha_given=False)
        assert bool(found) == bool(refused), [conflict.text for conflict in found]
        if found:
            with pytest.raises(RecipeError, match=r"needs|both|cannot work beside"):
                recipe.parse_adapter({"method": list(order), "dropout": dropout})


def test_a_method_that_was_not_written_is_named_with_the_word_that_brought_it() -> None:
    (found,) = catalog.conflicts(["lora-ga", "galore"], dropout=0.0, alpha_given=False)
    assert found.text == "lora-ga needs a pair of factors A and B; full, which galore works on, has no such pair"


def test_every_reason_names_both_words_or_the_key() -> None:
    cards = catalog.methods()
    for one, other in itertools.combinations(cards.values(), 2):
        for conflict in catalog.conflicts([one.name, other.name], dropout=0.0, alpha_given=False):
            builder = catalog.compose([one.name, other.name])[0]
            named = {one.name, other.name, builder}
            assert sum(name in conflict.text for name in named) >= 2, conflict.text


def test_the_page_says_what_a_recipe_is_told() -> None:
    text = combinations.page()
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("| |"))
    columns = [cell.strip(" `") for cell in header.split("|")[2:-1]]
    mora = next(line for line in lines if line.startswith("| `mora`"))
    marks = dict(zip(columns, (cell.strip() for cell in mora.split("|")[2:-1]), strict=True))
    assert (marks["dora"], marks["pissa"]) == ("·", "x")
    assert any(line.startswith("- `mora` and ") and "`pissa`" in line and "a pair of factors" in line for line in lines)
