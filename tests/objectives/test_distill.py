"""Distillation: the loss and its gradient against probabilities written out, and teachers of every kind in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import tiny_tokenizers
import torch
from runs import Place
from torch import Tensor
from torch.nn.functional import cross_entropy
from two_processes import KEYS, launch

import lrft
from lrft.adapters.ensemble import copying
from lrft.cli.main import run_command
from lrft.errors import MissingError, RecipeError, UsageError
from lrft.objectives import cross_entropy as chunks
from lrft.objectives.base import OtherModel
from lrft.objectives.distill import Distill, DistillLoss
from lrft.objectives.packing import Layout

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
LOSSES = [
    {"loss": "forward-kl", "alpha": 1.0},
    {"loss": "reverse-kl", "alpha": 0.3},
    {"loss": "jsd", "beta": 0.2, "alpha": 0.7, "temperature": 2.0},
    {"loss": "forward-kl", "temperature": 3.0, "top_k": 5},
    {"loss": "jsd", "beta": 0.6, "top_k": 1, "temperature": 0.5},
]


def dense(student: Tensor, teacher: Tensor, targets: Tensor, o: Distill) -> Tensor:
    """The definition, from logits (n, vocabulary): every probability by itself, as the papers write it."""
    T = o.temperature
    p = torch.exp(teacher / T)
    if o.top_k is not None:
        p = torch.where(teacher >= teacher.topk(o.top_k).values[:, -1:], p, 0.0)
    p = p / p.sum(-1, keepdim=True)
    q = torch.exp(student / T) / torch.exp(student / T).sum(-1, keepdim=True)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (torch.special.xlogy(a, a) - torch.special.xlogy(a, b)).sum()

    mixture = o.beta * p + (1 - o.beta) * q
    apart = {
        "forward-kl": lambda: kl(p, q),
        "reverse-kl": lambda: kl(q, p),
        "jsd": lambda: o.beta * kl(p, mixture) + (1 - o.beta) * kl(q, mixture),
    }[o.loss]()
    return (1 - o.alpha) * cross_entropy(student, targets, reduction="sum") + o.alpha * T**2 * apart


def taught(options: dict[str, Any], *, direct: bool, extra: int = 0) -> tuple[DistillLoss, Any, list[Tensor], Any]:
    """(loss, student, its trained tensors, teacher) in float64. extra: rows of the teacher's head for no token."""
    student, teacher = tiny.make("llama").double(), tiny.llama(layers=1, vocabulary=tiny.VOCABULARY + extra).double()
    with torch.no_grad():
        teacher.lm_head.weight.mul_(40)
    attached = lrft.attach(student, {"method": "lora", "rank": 4, "target_modules": ["q_proj", "lm_head"]}, seed=0)
    trained = list(attached.trained().values())
    tiny.disturb(trained)
    loss = DistillLoss(student, Distill(teacher="other", **options), direct=direct).train()
    loss.others = {"teacher": OtherModel(teacher.eval(), Layout(direct=direct))}
    return loss, student, trained, teacher


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("options", LOSSES, ids=lambda o: "-".join(map(str, o.values())))
def test_loss_and_gradient_are_those_of_dense_probabilities(
    options: dict[str, Any], direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over chunks that divide the tokens, with a teacher whose head has rows of no token."""
    monkeypatch.setitem(chunks.LOGITS_AT_ONCE, "cpu", 1)
    loss, student, trained, teacher = taught(options, direct=direct, extra=3)
    ids = tiny.tokens(9, 17)
    labels = ids.clone()
    labels[:, :4], labels[1, 9] = -100, -100
    found = loss({"input_ids": ids, "labels": labels})
    chosen = labels[:, 1:] != -100
    assert chosen.sum() > 2 * 50
    logits = student(input_ids=ids).logits[:, :-1][chosen]
    with torch.no_grad():
        wanted = teacher(input_ids=ids).logits[:, :-1][chosen][:, : tiny.VOCABULARY]
    expected = dense(logits, wanted, labels[:, 1:][chosen], loss.options)
    assert torch.allclose(found, expected, **CLOSE)
    for got, own in zip(
        torch.autograd.grad(3 * found, trained), torch.autograd.grad(3 * expected, trained), strict=True
    ):
        assert own.abs().max() > 0
        assert torch.allclose(got, own, **CLOSE)
    with torch.no_grad():
        assert torch.allclose(loss.eval()({"input_ids": ids, "labels": labels}), expected, **CLOSE)
    figures = loss.options.figures(loss.sums)
    own = cross_entropy(logits, labels[:, 1:][chosen])
    assert figures["token_loss"] == pytest.approx(own.item(), rel=1e-10)
    alpha, scale = loss.options.alpha, loss.options.temperature**2
    mixed = (1 - alpha) * figures["token_loss"] + alpha * scale * figures["divergence"]
    assert mixed == pytest.approx(expected.item() / int(chosen.sum()), rel=1e-10)


def test_an_ensemble_learns_by_each_member_and_is_measured_by_the_mean_of_their_probabilities() -> None:
    loss, student, _, teacher = taught({"alpha": 0.4, "temperature": 2.0}, direct=True)
    student = tiny.make("llama").double()
    attached = lrft.attach(student, {"method": {"lora-ensemble": {"members": 2}}, "rank": 4}, seed=0)
    tiny.disturb(list(attached.trained().values()))
    loss.model, loss.copies = student, copying(student)
    ids = tiny.tokens(3, 9)
    batch = {name: torch.cat([ids, ids]) for name in ("input_ids", "labels")}
    members = student.train()(input_ids=batch["input_ids"]).logits[:, :-1].chunk(2)
    wanted, targets = teacher(input_ids=ids).logits[:, :-1].flatten(0, 1).detach(), ids[:, 1:].flatten()
    one, two = (dense(logits.flatten(0, 1), wanted, targets, loss.options) for logits in members)
    assert not torch.allclose(one, two, rtol=1e-4)
    assert torch.allclose(loss.train()(batch), (one + two) / 2, **CLOSE)
    with torch.no_grad():
        student.eval()
        together = (members[0].softmax(-1) + members[1].softmax(-1)).log() - torch.tensor(2.0).double().log()
        expected = dense(together.flatten(0, 1), wanted, targets, loss.options)
        assert torch.allclose(loss.eval()(batch), expected, **CLOSE)


def test_neither_model_makes_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.LOGITS_AT_ONCE, "cpu", 1)
    loss, student, _, teacher = taught({}, direct=True)
    seen: list[int] = []
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    ids = tiny.tokens(9, 17)
    loss({"input_ids": ids, "labels": ids}).backward()
    assert max(seen) == 64
    assert sum(seen) == 2 * 9 * 16 + 2  # each once, and one of each to see how many there are


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place.make(tmp_path_factory.mktemp("distill"))
    runs.save_base(found.root / "teacher", seed=5)
    found.train("training.max_steps=3", out="adapter")
    return found


def keys(place: Place, teacher: str = "teacher", **options: Any) -> tuple[str, ...]:
    named = {"distill": {"teacher": str(place.root / teacher), **options}}
    return (f"training.objective={json.dumps(named)}", "training.max_steps=4")


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in runs.records(run)]


def test_an_adapter_teaches_as_its_merged_model_does(place: Place) -> None:
    """In one base with the adapter that is trained, which changes nothing of what the teacher answers."""
    lrft.merge(place.root / "adapter" / "best", place.root / "merged")
    both = [place.train(*keys(place, name, alpha=1.0), out=f"by-{name}") for name in ("adapter", "merged")]
    assert losses(both[0])[-1] < 0.9 * losses(both[0])[0]
    assert losses(both[0]) == pytest.approx(losses(both[1]), rel=1e-4)
    assert runs.distance(runs.tensors(both[0]), runs.tensors(both[1]), "adapter") < 1e-3


def test_packed_rows_and_small_passes_change_nothing(place: Place) -> None:
    ways = (("data.packing=true",), ("data.packing=false",), ("training.micro_batch_size=1",))
    made = [place.train(*keys(place), *way, out=f"way-{n}") for n, way in enumerate(ways)]
    for other in made[1:]:
        assert losses(other) == pytest.approx(losses(made[0]), rel=1e-5)


@pytest.mark.parametrize("teacher", ["teacher", "adapter"])
def test_a_resumed_run_ends_in_the_same_bits(place: Place, teacher: str) -> None:
    every = ("checkpoint.every=1", "checkpoint.keep=9", "adapter.dropout=0.2")
    straight = place.train(*keys(place, teacher), *every, out=f"straight-{teacher}")
    runs.cut(straight, 2, place.root / f"cut-{teacher}")
    again = place.train(*keys(place, teacher), *every, out=f"cut-{teacher}", resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(again)) == []


def test_a_teacher_that_has_changed_is_not_resumed_with(place: Place, tmp_path: Path) -> None:
    runs.save_base(tmp_path / "teacher", seed=5)
    every = ("checkpoint.every=1", "checkpoint.keep=9")
    named = f"training.objective={json.dumps({'distill': {'teacher': str(tmp_path / 'teacher')}})}"
    straight = place.train(named, "training.max_steps=2", *every, out="before")
    runs.cut(straight, 1, place.root / "changed")
    runs.save_base(tmp_path / "teacher", seed=6)
    with pytest.raises(UsageError, match=r"training\.objective\.distill\.teacher: was \w{16}, is now \w{16}"):
        place.train(named, "training.max_steps=2", *every, out="changed", resume="last")


def test_what_teaches_is_neither_trained_nor_saved_nor_counted(place: Place) -> None:
    run = place.train(*keys(place), out="counted")
    plain = place.train("training.max_steps=4", out="plain")
    assert runs.tensors(run).keys() == runs.tensors(plain).keys()
    said = [json.loads((each / "run.json").read_text()) for each in (run, plain)]
    assert said[0]["adapter"] == said[1]["adapter"]
    assert said[0]["training"]["teacher"].startswith(str(place.root / "teacher"))
    assert " parameters, frozen in float32" in said[0]["training"]["teacher"]


def test_the_base_as_its_own_teacher_is_loaded_once_and_agrees_with_itself(place: Place) -> None:
    """At the start the divergence is zero: the loss is (1 - alpha) times the token loss of the base."""
    own = ("evaluation.at_start=true", "evaluation.every=2")
    runs_of = [place.train(*keys(place, "base", alpha=0.25), *own, out="own"), place.train(*own, out="sft")]
    start, sft = (runs.records(run, "eval")[0] for run in runs_of)
    assert start["loss"] == pytest.approx(0.75 * sft["loss"], rel=1e-6)
    assert start["figures"]["token_loss"] == pytest.approx(sft["loss"], rel=1e-6)
    assert start["figures"]["divergence"] == pytest.approx(0, abs=1e-6)
    assert runs.records(runs_of[0])[0]["figures"]["divergence"] == pytest.approx(0, abs=1e-6)
    assert runs.records(runs_of[0])[-1]["figures"]["divergence"] > 1e-4
    said = json.loads((runs_of[0] / "run.json").read_text())["training"]["teacher"]
    assert said.endswith("the base itself")


def test_a_teacher_that_cannot_answer_is_refused_before_anything_is_loaded(place: Place, tmp_path: Path) -> None:
    other = tiny_tokenizers.spaced()
    tiny.save(tiny.llama(vocabulary=len(other)), tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    short = runs.save_base(tmp_path / "short", seed=3)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    small = runs.save_base(tmp_path / "small", seed=4)
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    elsewhere = Place.make(tmp_path / "elsewhere")
    runs.save_base(elsewhere.root / "base", seed=9)
    elsewhere.train("training.max_steps=1", out="adapter")
    wrong = {
        "other": r"another vocabulary than model\.name: \d+ and \d+ tokens, of which \d+ differ, such as '",
        "short": r"has 64 positions, and the longest row has 95 tokens: set data\.max_length: 64",
        "small": r"has logits for 9 tokens, and the vocabulary goes up to \d+",
        "elsewhere/adapter": r"an adapter over a base with fingerprint \w{16}, and model\.name has \w{16}\. Merge it",
    }
    for name, said in wrong.items():
        with pytest.raises(RecipeError, match=rf"training\.objective\.distill\.teacher: .*{said}"):
            place.train(f"training.objective.distill.teacher={tmp_path / name}", out="refused")
    with pytest.raises(
        MissingError, match=r"argument \d+  training\.objective\.distill\.teacher: there is no folder .*bass"
    ):
        place.train(f"training.objective.distill.teacher={place.root / 'bass'}", out="refused")
    assert not (place.root / "refused").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("distill", r"training\.objective: distill requires teacher, as in {distill: {teacher: \.\.\.}}"),
        ("{distill: {teacher: x, beta: 0.3}}", r"distill\.beta is only for loss: jsd; loss is forward-kl"),
        (
            "{distill: {teacher: x, loss: reverse-kl, top_k: 9}}",
            r"distill\.top_k is only for loss: forward-kl or jsd; loss is reverse-kl",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: str, said: str, place: Place) -> None:
    with pytest.raises(RecipeError, match=said):
        place.recipe(f"training.objective={options}")


def test_a_method_that_adds_to_the_token_loss_is_refused(place: Place) -> None:
    with pytest.raises(RecipeError, match=r"adds to the loss, which training\.objective: distill does not take up"):
        place.train(*keys(place), "adapter.method=ba-lora", out="ba")


def test_every_command_knows_a_run_with_a_teacher(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train(*keys(place, "teacher"), "evaluation.every=2", "evaluation.samples=1", out="commands")
    taught = place.train(*keys(place, "adapter"), "evaluation.every=2", out="commands-adapter")
    assert run_command(["eval", str(taught), "--no-generate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == pytest.approx(
        runs.records(taught, "eval")[-1]["figures"], rel=1e-4
    )
    recipe = str(run / "resolved.yaml")
    for command in (
        ["check", recipe],
        ["plan", recipe, "--json"],
        ["eval", str(run), "--no-generate", "--json"],
        ["verify", str(run)],
        ["report", str(run)],
    ):
        assert run_command(command) == 0, capsys.readouterr()
        said = capsys.readouterr().out
        if command[0] == "eval":
            last = runs.records(run, "eval")[-1]
            assert json.loads(said)["loss"] == pytest.approx(last["loss"], rel=1e-5)
            assert json.loads(said)["figures"] == pytest.approx(last["figures"], rel=1e-4)
        if command[0] == "plan":
            weights = json.loads(said)["memory"]["one device"]
            assert weights["others"] == weights["weights"]


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "strategy"), [("teacher", "ddp"), ("adapter", "fsdp")])
def test_two_processes_train_what_one_trains(place: Place, teacher: str, strategy: str) -> None:
    one = place.train(*KEYS, *keys(place, teacher), out=f"one-{strategy}")
    two = launch(place, f"two-{strategy}", *keys(place, teacher), f"distributed.strategy={strategy}")
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-5
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
