"""What goes together: the literature's matrix of methods, against what follows from the declarations."""

from __future__ import annotations

import itertools
import zlib
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from docgen import combinations

import lrft
from lrft import recipe, registry
from lrft.adapters import compose
from lrft.adapters.attach import rebuild_site
from lrft.adapters.part import Making, Run
from lrft.adapters.restarts import Folded
from lrft.errors import RecipeError
from lrft.objectives.sft import TokenLoss
from lrft.optim.named_state import grouped, set_lr

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
        (
            "galore",
            "fira",
            "frugal",
            "flora",
            "coap",
            "online-subspace-descent",
            "blockllm",
            "gradnormlorp",
            "galore-plus",
        ),
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
    "allora": ("tempbalance fast-forward", "rslora lora+ lora-pro preconditioned dora dropout lora-dropout pissa"),
    "loft": (
        "tempbalance dropout pissa",
        "rslora lora+ lora-pro lora-rite preconditioned riemannlora allora dora fast-forward roselora relora galore",
    ),
    "lora-rite": (
        "rslora pissa lora-ga dropout tempbalance fast-forward lora-ggpo",
        "lora+ lora-pro preconditioned riemannlora allora fedsvd dora relora galore mora",
    ),
    "riemannlora": ("tempbalance", "rslora lora+ lora-pro preconditioned pissa dora fast-forward relora mora"),
    "lora-ggpo": ("rslora lora+ lora-pro pissa tempbalance dropout", "dora lora-dropout mora"),
    "comp-lora": ("rslora lora+ lora-pro milora dropout relora", "dora lora-dropout mora full"),
    "gor": ("rslora lora+ dora lora-pro", "mora full"),
    "sst": ("tempbalance", "lora galore dora relora fast-forward dropout pissa"),
    "slope": ("full lora mora tempbalance", "galore dora lora-dropout"),
    "welore": ("lora+ lora-pro dora tempbalance", "pissa eva plop prilora dropout"),
    "gradient-regularization": (
        "rslora lora+ lora-pro dora galore mora full relora fast-forward dropout",
        "adversarial-model-perturbation booster bilora autolora increlora",
    ),
    "booster": ("rslora lora+ dora pissa dropout", "adversarial-model-perturbation gradient-regularization bilora"),
    "autolora": (
        "rslora dora tempbalance fast-forward dropout",
        "lora+ lora-pro pissa loft lora-rite gora autolora-ranks",
    ),
    "bilora": ("rslora dora tempbalance fast-forward dropout", "lora+ lora-pro pissa adalora gora autolora"),
    "autolora-ranks": ("lora rslora pissa dora mora", "eva gora prilora adalora"),
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
        found = registry.conflicts(order, dropout=dropout, alpha_given=False)
        assert bool(found) == bool(refused), [conflict.text for conflict in found]
        if found:
            with pytest.raises(RecipeError, match=r"requires|both|conflicts with"):
                recipe.parse_adapter({"method": list(order), "dropout": dropout})


def test_a_method_that_was_not_written_is_named_with_the_word_that_brought_it() -> None:
    (found,) = registry.conflicts(["lora-ga", "galore"], dropout=0.0, alpha_given=False)
    assert (
        found.text
        == "lora-ga requires a pair of factors A and B; full, the default method for galore, has no such pair"
    )


def test_every_reason_names_both_words_or_the_key() -> None:
    cards = registry.methods()
    for one, other in itertools.combinations(cards.values(), 2):
        for conflict in registry.conflicts([one.name, other.name], dropout=0.0, alpha_given=False):
            builder = registry.compose([one.name, other.name])[0]
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


def together() -> list[tuple[str, str]]:
    """Every pair that is allowed, at least one of them a part."""
    cards = registry.methods()
    return [
        (one, other)
        for one, other in itertools.combinations(cards, 2)
        if not (cards[one].builds and cards[other].builds)
        and not registry.conflicts([one, other], dropout=0.0, alpha_given=False)
    ]


# What a rank of 4, or layers as small as these, need.
OPTIONS = {
    **{"fourierft": {"frequencies": 50}, "goat": {"experts": 2}, "c3a": {"block": 4}, "bone": {"block": 4}},
    **{"dcft": {"kernel": 4}, "lora-ensemble": {"members": 2}, "plop": {"kinds": 99}, "nola": {"basis": 16}},
    **{"melora": {"minis": 4}, "alora": {"invocation_tokens": [14]}, "qalora": {"group_size": 4}},
    **{"oft": {"oft_block_size": 4}, "boft": {"boft_block_size": 4}, "road": {"group_size": 4}},
    **{"vblora": {"vector_length": 4}, "waveft": {"n_frequency": 50}},
    "lorta": {"head_dim": 6},
    "eigenlorax": {"adapters": tiny.loras(), "components": 5, "random": 2},
    "autolora-ranks": {"search": tiny.searched()},
}


def a_sixth(pairs: list[tuple[str, str]]) -> list[Any]:
    """Five of six pairs run with --all alone. Which ones, their names say: the same from run to run."""
    left = [zlib.crc32(" ".join(pair).encode()) % 6 for pair in pairs]
    return [pytest.param(*pair, marks=[pytest.mark.all] if out else []) for pair, out in zip(pairs, left, strict=True)]


@pytest.mark.parametrize(("one", "other"), a_sixth(together()))
def test_what_is_allowed_trains(one: str, other: str) -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    words = [{word: OPTIONS[word]} if word in OPTIONS else word for word in (one, other)]
    batches = [{"input_ids": ids, "labels": ids}]
    attached = lrft.attach(model, {"method": words, "rank": 4, "layers": [0]}, batches=batches)
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    trained = attached.trained()
    owners = attached.owners() if composition.rates_by_site or composition.optimizer_owner else None
    groups = grouped(trained, composition.lr_factors(), 1e-3, 0.0, owners=owners)
    owner = composition.optimizer_owner
    if owner is None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups)
    else:
        making = Making((0.9, 0.999), 1e-8, 0, lambda t: t)
        optimizer = owner.make_optimizer([{**group, "rank": 4} for group in groups], making)
    losses = TokenLoss(model, as_base=attached.disabled)
    for step in range(8):
        run = Run(
            step,
            8,
            model,
            attached.modules,
            optimizer,
            0,
            lambda t: t,
            fresh=partial(rebuild_site, composition=composition, seed=0),
            held_out=lambda: 1.0,
        )
        set_lr(optimizer, 1e-3, partial(composition.rate, run))
        for part in composition.parts:
            part.before_step(run)
        losses.extra = partial(composition.output_loss, run)
        loss = losses(batches[0]) / ids.numel()
        terms = [term for part in composition.parts if (term := part.loss(run)) is not None]
        torch.stack([loss, *terms]).sum().backward()
        composition.after_backward(run)
        optimizer.step()
        composition.after_step(run)
        optimizer.zero_grad()
    for name, tensor in attached.state_dict().items():
        assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("outer", ["dora", "lora-dropout"])
def test_the_order_in_the_recipe_does_not_matter_to_what_lies_inside(outer: str) -> None:
    for words in ([outer, "relora"], ["relora", outer]):
        attached = lrft.attach(tiny.make("llama"), {"method": words, "rank": 4, "layers": [0]})
        assert all(type(adapter.inner) is Folded for adapter in attached.modules.values())
