"""The training run as a whole: what it computes, what must not change it, what it leaves behind."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import runs
import torch
from cases import some
from runs import Place
from torch import Tensor, nn

from lrft import recipe
from lrft.data import Rows
from lrft.errors import CheckFailed, DataError, NonFinite, RecipeError, UsageError
from lrft.model.load import load_model
from lrft.objectives.sft import TokenLoss
from lrft.training import run as training
from lrft.training.forward_backward import passes_of_rank
from lrft.training.non_finite import refuse_endless_skips
from lrft.training.run import train
from lrft.training.setup import set_up
from lrft.training.state import Options, Progress, Session
from lrft.utils import files


def made(place: Place, *overrides: str) -> Session:
    return set_up(place.recipe(*overrides), Options())


# --- what a step computes ---


def ragged(place: Place) -> None:
    """Rows with about 200 and about 10 trained tokens, 7 of them: in steps of 4 the second has 3."""
    long = "o" * 210
    answers = [long, "two", "hello world", long, "forty", "two hello two", "time"]
    runs.write_rows(
        place.root / "train.jsonl",
        [{"prompt": f"{i} ", "completion": answer} for i, answer in enumerate(answers)],
    )


def reference(session: Session, ids: Any, rows: Rows | None = None) -> tuple[float, dict[str, Tensor]]:
    """Mean loss over the trained tokens of rows `ids` and its gradients, one row at a time, by the definition."""
    model, trained, rows = (
        session.adapted.attached.model,
        session.adapted.attached.trained(),
        rows or session.inputs.train,
    )
    model.zero_grad()
    tokens = sum(int(rows.trained(int(i))[1:].sum()) for i in ids)
    total = 0.0
    for i in ids:
        row = torch.from_numpy(rows.tokens(int(i)).astype("int64"))
        counts = torch.from_numpy(rows.trained(int(i)).copy())
        logits = model(input_ids=row[None]).logits[0]
        losses = nn.functional.cross_entropy(logits[:-1], row[1:], reduction="none")
        loss = losses[counts[1:]].sum() / tokens
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_gradient_is_that_of_the_mean_over_all_trained_tokens(place: Place, micro: int, packed: bool) -> None:
    ragged(place)
    session = made(place, f"training.micro_batch_size={micro}", f"data.packing={str(packed).lower()}")
    counts = [int(session.inputs.train.trained(i).sum()) for i in range(len(session.inputs.train))]
    assert max(counts) >= 200
    assert min(counts) <= 10
    with torch.no_grad():  # B away from zero, so that A has gradients too
        for name, p in session.adapted.attached.trained().items():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    assert [len(session.inputs.batches.rows(step)) for step in (0, 1)] == [4, 3]
    for step in (0, 1):
        ids = session.inputs.batches.rows(step)
        loss, expected = reference(session, ids)
        session.engine.optimizer.zero_grad()
        tokens = sum(int(session.inputs.train.trained(int(i)).sum()) for i in ids)
        sums = passes_of_rank(session.engine, session.inputs.train, ids, tokens, seed=0, step=step)
        got = sums.values[0].item() / tokens
        assert got == pytest.approx(loss, rel=1e-6)
        grads = {name: p.grad for name, p in session.adapted.attached.trained().items()}
        assert runs.distance(grads, expected) < 1e-5


def test_micro_batch_size_and_packing_change_no_weight(place: Place) -> None:
    """Trust 1."""
    ragged(place)
    # A large epsilon: Adam would blow up the rounding of gradients that are nearly zero.
    keys = ("training.optimizer={adamw: {eps: 1e-3}}", "adapter.dropout=0")
    first = runs.tensors(place.train(*keys, "training.micro_batch_size=1", out="1"))
    others = [("training.micro_batch_size=3",), ("training.micro_batch_size=8",), ("data.packing=true",)]
    others += [("training.micro_batch_tokens=40",), ("training.micro_batch_tokens=40", "data.packing=true")]
    for other in others:
        run = place.train(*keys, *other, out=" ".join(other).replace("=", "-"))
        assert runs.distance(first, runs.tensors(run), "adapter") < 1e-5, other
        assert runs.steps(run) == [4]


def test_recorded_loss_is_the_mean_over_the_steps_own_tokens(place: Place) -> None:
    """Trust 3."""
    ragged(place)
    run = place.train("training.global_batch_size=100", "training.max_steps=1")
    session = made(place)
    expected, _ = reference(session, range(len(session.inputs.train)))  # a fresh LoRA is the base
    (record,) = runs.records(run)
    assert record["loss"] == pytest.approx(expected, rel=1e-6)
    assert record["tokens"] == int(session.inputs.train.lengths.sum())


def test_gradient_checkpointing_changes_no_weight(place: Place) -> None:
    keys = ("training.optimizer={adamw: {eps: 1e-3}}", "adapter.dropout=0.1")
    without = runs.tensors(place.train(*keys))
    for kind in ("light", "medium", "full"):
        checkpointed = runs.tensors(place.train(*keys, f"training.gradient_checkpointing={kind}", out=kind))
        assert runs.distance(without, checkpointed, "adapter") < 1e-5, kind


@pytest.mark.all  # the compiler takes a minute
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own parts
@pytest.mark.parametrize("kind", ["none", "full"])
def test_compiling_changes_no_weight(place: Place, kind: str) -> None:
    ragged(place)
    keys = ("training.optimizer={adamw: {eps: 1e-3}}", f"training.gradient_checkpointing={kind}")
    without = runs.tensors(place.train(*keys))
    compiled = runs.tensors(place.train(*keys, "training.compile=true", out="b"))
    assert runs.distance(without, compiled, "adapter") < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_bf16_trains_with_float32_adapters(place: Place) -> None:
    run = place.train("training.precision=bf16", "training.epochs=8")
    losses = [record["loss"] for record in runs.records(run)]
    assert losses[-1] < losses[0] - 0.2
    assert {t.dtype for t in runs.tensors(run).values()} == {torch.float32}
    assert recipe.load(run / "resolved.yaml").model.precision == "bfloat16"


# --- what must not change it ---

METHODS = {
    "lora": "adapter.method=lora",
    "rslora": "adapter.method=rslora",
    "lora+": "adapter.method=lora+",
    "pissa": "adapter.method=pissa",
    "mora": "adapter.method=mora",
    "mora-1": "adapter.method={mora: {type: 1}}",
    "dora": "adapter.method=dora",
    "pissa+rslora+lora+": "adapter.method=[pissa, rslora, lora+]",
    "mora+dora": "adapter.method=[mora, dora]",
}
NO_DROPOUT = ("pissa",)


@pytest.mark.parametrize("method", some(METHODS, ("lora", "pissa+rslora+lora+", "mora+dora")))
def test_resume_at_every_step_is_exact(place: Place, method: str) -> None:
    """Trust 26, 36. Dropout, accumulation, shuffling, packing, weight decay, validation in between; three epochs."""
    keys = (
        METHODS[method],
        "training.epochs=3",
        "data.packing=true",
        f"adapter.dropout={0.0 if method.startswith(NO_DROPOUT) else 0.2}",
        "training.weight_decay=0.1",
        "evaluation.every=2",
        "evaluation.at_start=true",
        "checkpoint.every=1",
        "checkpoint.keep=99",
    )
    whole = place.train(*keys)
    expected = runs.tensors(whole)
    steps = runs.STEPS * 3 // 2
    assert runs.steps(whole) == list(range(1, steps + 1))
    for step in range(1, steps + 1):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), expected) == []
        assert runs.records(part) == runs.records(whole)
        assert runs.records(part, "eval") == runs.records(whole, "eval")
        progress = [files.read_json(r / "last/../trainer.json")["progress"] for r in (part, whole)]
        assert progress[0] == progress[1]


def test_dropout_and_order_depend_on_the_seed(place: Place) -> None:
    """Else the test above would compare nothing."""
    same = runs.tensors(place.train("adapter.dropout=0.2", out="a"))
    assert runs.differing(same, runs.tensors(place.train("adapter.dropout=0.2", out="b"))) == []
    assert runs.differing(same, runs.tensors(place.train("adapter.dropout=0.0", out="c")))
    assert runs.differing(same, runs.tensors(place.train("adapter.dropout=0.2", "data.shuffle=false", out="d")))
    assert runs.differing(same, runs.tensors(place.train("adapter.dropout=0.2", "training.seed=1", out="e")))


def test_evaluation_and_saving_disturb_nothing(place: Place) -> None:
    """Trust 38."""
    watched = (
        "evaluation.every=1",
        "evaluation.at_start=true",
        "evaluation.samples=2",
        "evaluation.max_new_tokens=3",
        "checkpoint.every=1",
    )
    quiet = runs.tensors(place.train("adapter.dropout=0.2", out="quiet"))
    run = place.train("adapter.dropout=0.2", *watched, out="watched")
    assert runs.differing(quiet, runs.tensors(run)) == []
    evaluations = runs.records(run, "eval")
    assert [record["step"] for record in evaluations] == list(range(runs.STEPS + 1))
    assert [len(record["samples"]) for record in evaluations] == [2] * (runs.STEPS + 1)


def test_validation_loss_does_not_depend_on_how_it_is_measured(place: Place) -> None:
    """Trust 49."""
    ways = (
        "evaluation.micro_batch_size=1",
        "evaluation.micro_batch_size=3",
        "evaluation.micro_batch_size=64",
        "data.packing=true",
    )
    found = []
    for n, way in enumerate(ways):
        run = place.train("training.max_steps=1", "evaluation.every=1", "evaluation.at_start=true", way, out=f"{n}")
        found.append([(record["loss"], record["tokens"]) for record in runs.records(run, "eval")])
    session = made(place)  # a fresh LoRA is the base
    held_out = session.inputs.validation
    assert found[0][0][0] == pytest.approx(reference(session, range(len(held_out)), held_out)[0], rel=1e-6)
    for other in found[1:]:
        assert [tokens for _, tokens in other] == [tokens for _, tokens in found[0]]
        assert [loss for loss, _ in other] == pytest.approx([loss for loss, _ in found[0]], rel=1e-6)


def test_resolved_recipe_repeats_the_run(place: Place) -> None:
    run = place.train("adapter.dropout=0.2", "adapter.method=[dora, rslora]", "adapter.overrides={q_proj: {rank: 2}}")
    again = recipe.load(run / "resolved.yaml", (f"output_dir={place.root / 'again'}",))
    assert again.training.precision == "fp32"
    assert again.model.attention == "sdpa"
    train(again, Options(quiet=True))
    assert runs.differing(runs.tensors(run), runs.tensors(place.root / "again")) == []
    assert runs.records(run) == runs.records(place.root / "again")


# --- what a run refuses to go on with ---


def poison(place: Place) -> None:
    """One NaN in the base's last layer."""
    from safetensors.torch import load_file, save_file

    (path,) = (place.root / "base").glob("*.safetensors")
    weights = load_file(path)
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, path, {"format": "pt"})


def test_runaway_learning_rate_stops_with_step_and_rows(place: Place) -> None:
    with pytest.raises(NonFinite, match=r"became .* at step [2-6]\..*train\.jsonl:\d+") as caught:
        place.train("training.learning_rate=1e30", "training.warmup_steps=0", "checkpoint.every=1")
    assert caught.value.exit_code == 7
    run = place.root / "run"
    assert runs.steps(run)  # the last good ones
    assert all(torch.isfinite(tensor).all() for tensor in runs.tensors(run).values())
    assert caught.value.message in (run / "log.txt").read_text()


def test_gradient_that_overflows_stops_before_the_optimiser(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust 44."""

    def spoil(run: Any) -> None:
        for adapter in run.adapters.values():
            adapter.A.register_hook(lambda gradient: gradient * torch.inf)

    runs.add_parts(monkeypatch, runs.At("before_step", 4, spoil))
    with pytest.raises(NonFinite, match="the norm of the gradient became nan at step 4"):
        place.train("checkpoint.every=1")
    assert runs.steps(place.root / "run")[-1] == 3


@pytest.mark.parametrize("evaluated", ["true", "false"])
def test_poisoned_base_stops_at_the_first_measure(place: Place, evaluated: str) -> None:
    poison(place)
    with pytest.raises(NonFinite, match="loss became nan"):
        place.train("evaluation.every=1", f"evaluation.at_start={evaluated}")
    assert runs.steps(place.root / "run") == []
    json.loads((place.root / "run" / "run.json").read_text())


def test_evaluation_that_becomes_nan_is_never_the_best(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the optimiser step and before the evaluation, the adapter is spoilt."""

    @torch.no_grad()
    def spoil(run: Any) -> None:
        next(iter(run.adapters.values())).B.fill_(torch.nan)

    runs.add_parts(monkeypatch, runs.At("after_step", 3, spoil))
    with pytest.raises(NonFinite, match="validation loss became nan"):
        place.train("evaluation.every=1", "checkpoint.every=1")
    assert runs.steps(place.root / "run")[-1] == 2
    assert (place.root / "run" / "last").resolve().parent.name == "step-000002"


def test_layer_outside_the_forward_pass_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust 21."""

    def with_idle_layer(*arguments: Any) -> Session:
        session = set_up(*arguments)
        session.adapted.attached.layers()["model.layers.1.mlp.up_proj"].enabled = False
        return session

    monkeypatch.setattr(training, "set_up", with_idle_layer)
    with pytest.raises(CheckFailed, match=r"no gradient reaches model\.layers\.1\.mlp\.up_proj\.A") as caught:
        place.train()
    assert caught.value.exit_code == 4


def test_adapter_that_stands_still_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(run: Any) -> None:
        run.adapters["model.layers.0.self_attn.v_proj"].B.grad.zero_()

    runs.add_parts(monkeypatch, runs.At("after_backward", 0, silence))
    with pytest.raises(CheckFailed, match=r"model\.layers\.0\.self_attn\.v_proj did not move in 1 step"):
        place.train()


def test_frozen_tensor_that_moves_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.no_grad()
    def meddle(run: Any) -> None:
        run.model.model.embed_tokens.weight.mul_(1.01)

    runs.add_parts(monkeypatch, runs.At("after_step", 2, meddle))
    with pytest.raises(CheckFailed, match=r"frozen tensors changed in step 2: model\.embed_tokens\.weight"):
        place.train()


def test_a_resumed_run_near_its_end_moves_too_little_to_see(place: Place) -> None:
    """The learning rate's last steps can be below the resolution of float32; that is no fault."""
    keys = ("adapter.method=dora", "training.learning_rate=1e-6", "training.epochs=20", "training.warmup_steps=0")
    whole = place.train(*keys, "checkpoint.every=58", "checkpoint.keep=9")
    part = runs.cut(whole, 58, place.root / "cut")
    place.train(*keys, "checkpoint.every=58", out="cut", resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_packing_is_refused_where_rows_see_each_other(place: Place) -> None:
    """Trust 12."""
    shutil.rmtree(place.root / "base")
    runs.save_base(place.root / "base", "bloom")  # its mask is made without asking where rows begin
    with pytest.raises(CheckFailed, match="packed sequences leak") as caught:
        place.train("data.packing=true")
    assert caught.value.hint == "Set data.packing: false."
    assert not (place.root / "run").exists()


# --- what a run leaves behind ---


@pytest.mark.draws
def test_run_folder_holds_the_whole_story(place: Place) -> None:
    run = place.train("evaluation.every=2", "evaluation.at_start=true", "checkpoint.every=2")
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("recipe.yaml", "resolved.yaml", "run.json", "environment.json", "metrics.jsonl", "log.txt"),
        *("report.md", "loss.png", "probe.safetensors", "checkpoints", "best", "last", ".lock"),
    }
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "loss.png").stat().st_size > 1000
    assert (run / "recipe.yaml").read_bytes() == (place.root / "recipe.yaml").read_bytes()
    evaluations = runs.records(run, "eval")
    best = min((r for r in evaluations if r["step"] > 0), key=lambda r: r["loss"])
    assert (run / "best").resolve().parent.name == f"step-{best['step']:06d}"
    assert (run / "last").resolve().parent.name == "step-000006"
    assert f"{best['loss']:.4f}" in (run / "report.md").read_text()
    told = files.read_json(run / "run.json")["result"]
    assert (told["steps done"], told["best step"]) == (6, best["step"])


def test_last_adapter_gives_the_last_validation_loss(place: Place) -> None:
    """What is saved is what was measured: loaded into a fresh base, it measures the same."""
    from lrft.adapters.storage import load_adapter
    from lrft.evaluation.loss import loss_of

    run = place.train("adapter.method=[pissa, rslora]", "evaluation.every=6")
    (measured,) = runs.records(run, "eval")
    session = made(place)
    model = load_model(place.root / "base", dtype=torch.float32)
    load_adapter(model, run / "last")
    again = loss_of(TokenLoss(model), session.inputs.validation, micro=2, pad_id=0)
    assert again["loss"] == pytest.approx(measured["loss"], rel=1e-5)


def test_a_row_of_weight_two_counts_as_two_rows(place: Place) -> None:
    made = runs.rows(6)
    keys = ("data.validation=none", "training.epochs=3", "training.global_batch_size=7", "training.warmup_steps=0")
    found = []
    for name, rows in {"twice": [*made, made[1]], "weighted": [*made[:1], {**made[1], "weight": 2}, *made[2:]]}.items():
        runs.write_rows(place.root / f"{name}.jsonl", rows)
        found.append(place.train(f"data.train={place.root / name}.jsonl", *keys, out=name))
    assert runs.distance(*(runs.tensors(run) for run in found), "adapter") < 1e-4
    assert json.loads((found[0] / "run.json").read_text())["warnings"] == []
    known = place.train(f"data.validation={place.root}/train.jsonl", "training.max_steps=1", out="known")
    assert "10 validation rows also in the training rows" in json.loads((known / "run.json").read_text())["warnings"][0]
    losses = [[record["loss"] for record in runs.records(run)] for run in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_sources_with_shares_are_drawn_reported_and_resumed(place: Place) -> None:
    runs.write_rows(place.root / "more.jsonl", runs.rows(30, seed=3))
    entries = ", ".join(
        f"{{path: {place.root / name}, weight: {weight}}}" for name, weight in (("train.jsonl", 1), ("more.jsonl", 3))
    )
    keys = (f"data.train=[{entries}]", "data.validation=0.3", "training.max_steps=7", "checkpoint.every=3")
    keys = (*keys, "evaluation.every=7", "evaluation.at_start=true")
    whole = place.train(*keys, out="mixed")
    facts = json.loads((whole / "run.json").read_text())["training"]["sources"]
    drawn = {name: fact["drawn"] for name, fact in facts.items()}
    assert sum(drawn.values()) == 7 * 4
    assert abs(drawn["train.jsonl"] - 7) <= 1
    last = runs.records(whole, "eval")[-1]
    low, high = sorted(last["sources"].values())
    assert low < last["loss"] < high
    assert f"more.jsonl {last['sources']['more.jsonl']:.4f}" in (whole / "log.txt").read_text()
    assert "| step | loss | perplexity | train.jsonl | more.jsonl |" in (whole / "report.md").read_text()
    part = runs.cut(whole, 3, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(whole), runs.tensors(part)) == []
    assert runs.records(part) == runs.records(whole)


def test_early_stopping_ends_the_run_and_a_resume_does_not_go_on(place: Place) -> None:
    keys = (
        "training.early_stopping={patience: 2, min_delta: 100.0}",  # nothing is ever that much better
        "training.epochs=9",
        "evaluation.every=1",
    )
    run = place.train(*keys)
    assert [record["step"] for record in runs.records(run)] == [1, 2, 3]
    assert "early stopping: 2 evaluations" in (run / "log.txt").read_text()
    assert (run / "report.md").is_file()
    before = runs.tensors(run)
    place.train(*keys, resume="last")
    assert [record["step"] for record in runs.records(run)] == [1, 2, 3]
    assert runs.differing(before, runs.tensors(run)) == []


def test_run_without_validation(place: Place) -> None:
    run = place.train("data.validation=none")
    assert runs.records(run, "eval") == []
    assert (run / "best").resolve() == (run / "last").resolve()


@pytest.mark.parametrize(
    ("overrides", "rows", "expected"),
    [
        (("adapter.target_modules=q_prj",), None, RecipeError),
        (("adapter.method=mora", "adapter.rank=400"), None, RecipeError),
        ((), [{"messages": [{"role": "user", "content": "?"}]}], DataError),
        ((), ["nonsense"], DataError),
    ],
)
def test_mistakes_leave_no_folder(
    place: Place, overrides: tuple[str, ...], rows: list[Any] | None, expected: type[Exception]
) -> None:
    if rows is not None:
        runs.write_rows(place.root / "train.jsonl", rows)
    with pytest.raises(expected):
        place.train(*overrides)
    assert not (place.root / "run").exists()


def test_steps_that_fp16_skips_without_end_stop_the_run() -> None:
    """Trust 44. One overflow is ordinary, twenty in a row are not; a step that was made starts the count anew."""
    progress = Progress()
    for made in [False] * 19 + [True] + [False] * 19:
        refuse_endless_skips(progress, made)
    with pytest.raises(NonFinite, match="skipped"):
        refuse_endless_skips(progress, False)


def test_a_checkpoint_before_any_optimiser_state_can_be_taken_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first steps are skipped, as fp16 does, nothing has state yet."""
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.optimizer.AcceleratedOptimizer.step", lambda self, closure=None: None)
        patch.setattr("accelerate.Accelerator.optimizer_step_was_skipped", True)
        with pytest.raises(CheckFailed, match="nothing was trained"):
            place.train("training.max_steps=1", "checkpoint.every=1")
    place.train("training.max_steps=1", "checkpoint.every=1", out="again")
    assert files.read_json(place.root / "run/last/../trainer.json")["optimizer"] == []
    assert files.read_json(place.root / "again/last/../trainer.json")["optimizer"]
    place.train("training.max_steps=1", "checkpoint.every=1", resume="last", accept_changes=True)


def test_resume_takes_an_adapter_link_for_its_checkpoint_and_names_what_there_is(place: Place) -> None:
    keys = ("checkpoint.every=3", "checkpoint.keep=9")
    run = place.train(*keys)
    place.train(*keys, resume=str(run / "last"))
    with pytest.raises(UsageError, match="no checkpoint nope") as error:
        place.train(*keys, resume="nope")
    assert "step-000003" in (error.value.hint or "")
