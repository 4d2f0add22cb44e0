"""Objectives over pairs and judged answers against their formulas on dense logits in float64, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft import registry
from lrft.data import Row, Rows
from lrft.model.packed_attention import use_rowwise
from lrft.objectives import dpo
from lrft.objectives.base import LossModule, Objective, added_up, look_ahead
from lrft.objectives.cross_entropy import LOGITS_AT_ONCE
from lrft.objectives.dpo import Dpo
from lrft.objectives.log_probabilities import chunked_log_probabilities, of_targets
from lrft.objectives.pairs import preferred

# Tokens of the prompt, the chosen and the rejected answer.
SIZES = [(3, 5, 2), (4, 1, 6), (2, 4, 4), (6, 3, 1), (3, 2, 7)]
LABELS = [1.0, 0.0, 0.0, 1.0, 1.0]


def sequences(count: int) -> list[tuple[list[int], int]]:
    """(tokens, tokens of the prompt) of `count` answers to each of the prompts of SIZES, one prompt after the other."""
    draw = np.random.default_rng(0)
    made = []
    for prompt, *answers in SIZES:
        asked = draw.integers(3, 40, prompt).tolist()
        made += [([*asked, *draw.integers(3, 40, n).tolist()], prompt) for n in answers[:count]]
    return made


def rows_of(count: int) -> Rows:
    made, found = sequences(count), []
    for i in range(0, len(made), count):
        ids = [np.array(tokens) for tokens, _ in made[i : i + count]]
        trained = np.concatenate([np.arange(len(t)) >= p for t, p in made[i : i + count]])
        parts = tuple(map(len, ids)) if count > 1 else ()
        numbers = {} if count > 1 else {"good": np.array([LABELS[i]])}
        found.append(Row(np.concatenate(ids), trained, made[i][1], "", "f:", i, parts=parts, numbers=numbers))
    return Rows.of(found)


@pytest.fixture(scope="module")
def given() -> tuple[nn.Module, Any]:
    model = tiny.make("llama").double()
    use_rowwise(model)
    attached = lrft.attach(model, {"method": "lora", "rank": 2, "target_modules": ["q_proj", "v_proj"]}, seed=0)
    tiny.disturb(list(attached.trained().values()), size=0.3)
    return model, attached


def dense(model: nn.Module, tokens: list[int], prompt: int) -> Tensor:
    """Sum of the log-probabilities of the answer, from all logits."""
    ids = torch.tensor([tokens])
    logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logs[prompt - 1 :].sum()


def log(x: Tensor) -> Tensor:
    return x.log()


def s(z: Tensor) -> Tensor:
    return 1 / (1 + (-z).exp())


def bco(a: Tensor, b: Tensor, beta: float) -> Tensor:
    delta = torch.cat([beta * a, beta * b]).mean().detach()
    return -log(s(beta * a - delta)) - log(s(delta - beta * b))


def orpo(a: Tensor, b: Tensor, beta: float) -> Tensor:
    return -a - beta * log(s((a - b) - (log(1 - a.exp()) - log(1 - b.exp()))))


def discopop(z: Tensor) -> Tensor:
    mixed = s(z / 0.3)
    return (1 - mixed) * -log(s(z)) + mixed * (-z).exp()


# a, b: log-ratios, or log-probabilities where there is no reference, as the options take them; c: the chosen answer's
# log-probability per token.
FORMULAS: dict[str, tuple[str, dict[str, Any], str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "sigmoid": ("dpo", {"beta": 0.3}, "ratio", lambda a, b, c: -log(s(0.3 * (a - b)))),
    "smoothed": (
        "dpo",
        {"beta": 0.3, "label_smoothing": 0.1},
        "ratio",
        lambda a, b, c: -0.9 * log(s(0.3 * (a - b))) - 0.1 * log(s(0.3 * (b - a))),
    ),
    "rpo": ("dpo", {"rpo_alpha": 0.7}, "ratio", lambda a, b, c: -log(s(0.1 * (a - b))) - 0.7 * c),
    "normalised": ("dpo", {"length_normalized": True}, "ratio per token", lambda a, b, c: -log(s(0.1 * (a - b)))),
    "ipo": ("dpo", {"loss": "ipo", "beta": 0.2}, "ratio per token", lambda a, b, c: (a - b - 2.5) ** 2),
    "ipo whole": ("dpo", {"loss": "ipo", "length_normalized": False}, "ratio", lambda a, b, c: (a - b - 5) ** 2),
    "hinge": ("dpo", {"loss": "hinge", "beta": 0.5}, "ratio", lambda a, b, c: (1 - 0.5 * (a - b)).clamp(min=0)),
    "robust": (
        "dpo",
        {"loss": "robust", "label_smoothing": 0.2},
        "ratio",
        lambda a, b, c: (-0.8 * log(s(0.1 * (a - b))) + 0.2 * log(s(0.1 * (b - a)))) / 0.6,
    ),
    "exo_pair": (
        "dpo",
        {"loss": "exo_pair", "label_smoothing": 0.01},
        "ratio",
        lambda a, b, c: (
            s(0.1 * (a - b)) * log(s(0.1 * (a - b)) / 0.99) + s(0.1 * (b - a)) * log(s(0.1 * (b - a)) / 0.01)
        ),
    ),
    "bco_pair": ("dpo", {"loss": "bco_pair"}, "ratio", lambda a, b, c: bco(a, b, 0.1)),
    "nca_pair": (
        "dpo",
        {"loss": "nca_pair"},
        "ratio",
        lambda a, b, c: -log(s(0.1 * a)) - (log(s(-0.1 * a)) + log(s(-0.1 * b))) / 2,
    ),
    "apo_zero": ("dpo", {"loss": "apo_zero"}, "ratio", lambda a, b, c: 1 - s(0.1 * a) + s(0.1 * b)),
    "apo_down": ("dpo", {"loss": "apo_down"}, "ratio", lambda a, b, c: 1 + s(0.1 * a) - s(0.1 * (a - b))),
    "sppo_hard": (
        "dpo",
        {"loss": "sppo_hard", "beta": 0.2},
        "ratio",
        lambda a, b, c: (a - 2.5) ** 2 + (b + 2.5) ** 2,
    ),
    "discopop": ("dpo", {"loss": "discopop", "temperature": 0.3}, "ratio", lambda a, b, c: discopop(0.1 * (a - b))),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 0.6}, "per token", lambda a, b, c: -log(s(2 * (a - b) - 0.6))),
    "orpo": ("orpo", {"beta": 0.2}, "per token", lambda a, b, c: orpo(a, b, 0.2)),
    "cpo": ("cpo", {"alpha": 0.5}, "whole", lambda a, b, c: -log(s(0.1 * (a - b))) - 0.5 * c),
    "cpo hinge": ("cpo", {"loss": "hinge"}, "whole", lambda a, b, c: (1 - 0.1 * (a - b)).clamp(min=0) - c),
}


def made(name: str, options: dict[str, Any]) -> Objective:
    card = registry.declared("objectives")[name]
    objective: Objective = card.load()(**card.validate(options))
    return objective


def ask(objective: Objective, model: nn.Module, attached: Any, *, direct: bool = True) -> LossModule:
    losses = objective.module(model, direct=direct)
    losses.as_base = lambda: attached.as_base(model)
    return losses


def passed(
    objective: Objective, losses: LossModule, attached: Any, rows: Rows, micro: int, form: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Loss, gradient and figures of all rows in micro-batches, as the loop makes them."""
    ids = [list(range(len(rows)))[at : at + micro] for at in range(0, len(rows), micro)]
    batches = [objective.collate(rows, some, pad_id=0, form=form) for some in ids]
    assert sum(map(objective.batch_weight, batches)) == objective.weight(rows, range(len(rows))) == len(rows)
    look_ahead(losses, ((batch, True) for batch in batches), lambda sums: sums)
    total, noted = torch.zeros((), dtype=torch.float64), {}
    for batch in batches:
        total = total + losses(batch)
        noted = added_up(noted, losses.sums, 1.0)
    losses.ahead = None
    return total, gradient(total, attached), objective.figures(noted)


def gradient(total: Tensor, attached: Any) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(attached.trained().values()))])


@pytest.mark.parametrize("case", FORMULAS)
def test_losses_gradients_and_figures_are_those_of_the_formula(case: str, given: tuple[nn.Module, Any]) -> None:
    model, attached = given
    name, options, kind, formula = FORMULAS[case]
    answers, rows = sequences(2), rows_of(2)
    own = torch.stack([dense(model, *each) for each in answers])
    with attached.disabled(), torch.no_grad():
        base = torch.stack([dense(model, *each) for each in answers])
    tokens = torch.tensor([len(ids) - prompt for ids, prompt in answers])
    taken = own - base if kind.startswith("ratio") else own
    a, b = (taken / tokens if kind.endswith("per token") else taken).view(-1, 2).unbind(1)
    expected = formula(a, b, (own / tokens)[::2]).sum()
    wanted = gradient(expected, attached)
    objective = made(name, options)
    beta = registry.declared("objectives")[name].validate(options)["beta"]
    cached = rows
    if getattr(objective, "reference", "") == "cached":
        cached = rows.with_numbers("reference", list(base.view(-1, 2).numpy()))
    for found_rows, direct, micro, form in (
        (rows, True, 5, "padded"),
        (rows, False, 2, "padded"),
        (cached, True, 2, "packed"),
        (cached, False, 1, "packed"),
        (rows, True, 2, "shared"),
        (cached, True, 5, "shared"),
    ):
        found, slope, figures = passed(
            objective, ask(objective, model, attached, direct=direct), attached, found_rows, micro, form
        )
        assert torch.allclose(found, expected, rtol=1e-9)
        # Llama's norms round their gradients to float32, those of two answers together where they share a prompt.
        assert torch.allclose(slope, wanted, **({"atol": 1e-6} if form == "shared" else {"rtol": 1e-7, "atol": 1e-9}))
        assert figures == pytest.approx(
            {
                "reward accuracy": (a > b).double().mean().item(),
                "reward margin": beta * (a - b).mean().item(),
                "chosen reward": beta * a.mean().item(),
                "rejected reward": beta * b.mean().item(),
                "chosen log-probability": own[::2].mean().item(),
                "rejected log-probability": own[1::2].mean().item(),
            }
        )


def test_kto_is_its_formula_over_the_whole_step(given: tuple[nn.Module, Any]) -> None:
    model, attached = given
    answers, rows, label = sequences(1), rows_of(1), torch.tensor(LABELS)
    longest = max(len(ids) for ids, _ in answers)
    others = []
    for (ids, prompt), (next_ids, start) in zip(answers, [*answers[1:], answers[0]], strict=True):
        answer = next_ids[start:]
        asked = ids[:prompt][-(longest - len(answer)) :]
        others.append((asked + answer, len(asked)))
    own, other = (torch.stack([dense(model, *each) for each in some]) for some in (answers, others))
    with attached.disabled(), torch.no_grad():
        base, other_base = (torch.stack([dense(model, *each) for each in some]) for some in (answers, others))
    z = (other - other_base).mean().clamp(min=0).detach()
    r = own - base
    expected = torch.where(label > 0, 1.5 * (1 - s(0.4 * (r - z))), 0.5 * (1 - s(0.4 * (z - r)))).sum()
    wanted = gradient(expected, attached)
    objective = made("kto", {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5})
    cached = rows.with_numbers("reference", list(torch.stack([base, other_base], 1).numpy()))
    for found_rows, micro, form in ((rows, 5, "padded"), (rows, 2, "packed"), (cached, 1, "packed")):
        found, slope, figures = passed(objective, ask(objective, model, attached), attached, found_rows, micro, form)
        assert torch.allclose(found, expected, rtol=1e-9)
        assert torch.allclose(slope, wanted, rtol=1e-7, atol=1e-9)
        assert figures["KL"] == pytest.approx(z.item())
        margin = 0.4 * (r[label > 0].mean() - r[label == 0].mean()).item()
        assert figures["reward margin"] == pytest.approx(margin)
    assert "rejected reward" not in objective.figures({"rejected reward": torch.zeros(2)})


def test_equal_rewards_count_half() -> None:
    chosen, rejected = torch.tensor([1.0, 2.0, 3.0, -1.0]), torch.tensor([0.0, 2.0, 4.0, -1.0])
    assert preferred(chosen, rejected).tolist() == [1.0, 0.5, 0.0, 0.5]


def test_every_loss_of_dpo_is_compared_with_its_formula() -> None:
    compared = {options.get("loss", "sigmoid") for name, options, *_ in FORMULAS.values() if name == "dpo"}
    assert compared == set(get_args(get_type_hints(Dpo)["loss"])) == set(dpo.FORMULAS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simpo", {}),
        ("dpo", {}),
        ("dpo", {"reference": "each-step"}),
        ("dpo", {"loss": "bco_pair"}),
        ("dpo", {"loss": "bco_pair", "reference": "each-step"}),
        ("kto", {}),
        ("kto", {"reference": "each-step"}),
    ],
)
def test_the_passes_that_a_plan_counts_are_those_that_are_made(
    name: str, options: dict[str, Any], given: tuple[nn.Module, Any]
) -> None:
    model, attached = given
    objective, rows = made(name, options), rows_of(1 if name == "kto" else 2)
    losses, calls = ask(objective, model, attached), []
    hook = model.get_decoder().register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    batch = objective.collate(rows, range(5), pad_id=0, form="packed")
    before = 0
    if losses.constant:
        with losses.as_base():
            for kept, values in losses.constants(batch).items():
                rows = rows.with_numbers(kept, list(values.numpy()))
        before = len(calls)
        batch = objective.collate(rows, range(5), pad_id=0, form="packed")
    calls.clear()
    look_ahead(losses, [(batch, True)], lambda sums: sums)
    losses(batch)
    hook.remove()
    assert (before, calls.count(False), calls.count(True)) == (*vars(objective.forwards()).values(), 1)


@pytest.mark.parametrize("trained", [False, True])
def test_chunked_log_probabilities_are_the_definition(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 1)  # 64 rows at once
    torch.manual_seed(0)
    head = nn.Linear(8, 30).double().requires_grad_(trained)
    hidden, weight = torch.randn(150, 8, dtype=torch.float64, requires_grad=True), torch.randn(150).double()
    targets, seen = torch.randint(0, 30, (150,)), []
    wanted = [hidden, *(head.parameters() if trained else [])]
    expected = torch.autograd.grad((of_targets(head(hidden), targets) * weight).sum(), wanted)
    head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    found = chunked_log_probabilities(head, hidden, targets)
    for one, two in zip(torch.autograd.grad((found * weight).sum(), wanted), expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
    assert max(seen) == 64
    with torch.no_grad():
        assert torch.equal(chunked_log_probabilities(head, hidden, targets), found)
    assert chunked_log_probabilities(head, hidden[:0], targets[:0]).shape == (0,)
