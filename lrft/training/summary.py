"""Start and end summaries of a run, and run.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lrft.adapters.adapter import Site
from lrft.adapters.attached import Attached
from lrft.adapters.beside import tied_rows
from lrft.adapters.peft_export import NO_TYPE, PeftFolder, peft_folder, written_rank
from lrft.adapters.targets import module_names
from lrft.loading.evaluation_interval import evaluation_interval
from lrft.model.conversion import DEQUANTIZED_FROM
from lrft.model.quantized import count as count_parameters
from lrft.recipe import Recipe
from lrft.runs.after_training import shown
from lrft.runs.verdict import BEST, BY_METRIC, LAST, START, STARTED_FROM, worse_than_base
from lrft.training import sources
from lrft.utils import threads
from lrft.utils.text import Row, amount, command, count

if TYPE_CHECKING:
    from lrft.training.engine import Engine
    from lrft.training.state import Adapted, Base, Inputs, Session


def start(session: Session) -> list[Row]:
    """The start summary."""
    checks = session.notes.checks
    return [
        ("run", [output_dir(session.recipe), *([checks["resumed"]] if "resumed" in checks else [])]),
        ("model", model_line(session.base, session.adapted.attached)),
        *((option, [other.said]) for option, other in session.engine.losses.others.items()),
        ("adapter", adapter_lines(session.adapted, session.base.info["quantization"])),
        ("data", [*session.inputs.prepared.report.lines(), *sources.lines(session.recipe, session.inputs)]),
        ("training", training_lines(session.recipe, session.inputs, session.base, session.engine)),
        ("checks", check_lines(session)),
        *([("after", shown(session.recipe))] if shown(session.recipe) else []),
    ]


def end(session: Session) -> list[Row]:
    """The end summary, with next commands."""
    p, out, stream = session.progress, output_dir(session.recipe), session.inputs.prepared.stream
    done, worse = count(p.step, "step"), worse_than_base(result(session))
    if worse:
        done += f"   {worse}"
    elif p.best_loss is not None:
        began = f" (start {p.start_loss:.4f})" if p.start_loss is not None else ""
        best = session.recipe.evaluation.best
        what = "best validation loss" if best == "loss" else f"best {best} at step {p.best_step:,}: validation loss"
        at = f" at step {p.best_step:,}" if best == "loss" else ""
        done += f"   {what} {p.best_loss:.4f}{at}{began}"
    return [
        ("done", [done]),
        *([("streamed", [f"{count(stream.epoch, 'epoch')} done; {stream.counts}"])] if stream else []),
        ("saved", [f"last/ in {out}; no best/" if worse else f"best/ and last/ in {out}"]),
        ("checked", check_lines(session)),
        ("next", [command("lrft", "report", out)] if worse else next_commands(out, mergeable(session.adapted))),
    ]


def next_commands(out: str, merges: bool) -> list[str]:
    """To be pasted into a shell. out: the run's folder, as the recipe writes it."""
    merged = [command("lrft", "merge", out, expand=True)] if merges else []
    return [*merged, command("lrft", "eval", out, "--data", "test.jsonl", expand=True)]


def output_dir(recipe: Recipe) -> str:
    """The run's folder, as the recipe writes it."""
    return recipe.masked(recipe.output_dir)


def model_line(base: Base, attached: Attached) -> list[str]:
    frozen, kind = count_parameters(attached.model) - trainable(attached), base.info["quantization"]
    made_of = base.info.get(DEQUANTIZED_FROM)
    how = "" if made_of is None else f"dequantised from {made_of}, "
    how += f"frozen in {base.info['dtype']}" + ("" if kind == "none" else f", linear layers in {kind}")
    how += ", blocks streamed" if base.placement == "streamed" else ""
    new = base.info.get("added_tokens", {})
    said = f"{count(len(new), 'new token')}: {' '.join(new)}; their rows are the mean of all others" if new else ""
    return [f"{base.info['name']}   {amount(frozen)} parameters, {how}", *([said] if said else [])]


def trainable(attached: Attached) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in attached.trained().values())


def adapter_lines(adapted: Adapted, quantization: str) -> list[str]:
    attached, composition = adapted.attached, adapted.composition
    sites = attached.sites
    names = " + ".join(entry["name"] for entry in attached.methods)
    ranks = spread(site.rank for site in sites)
    factor = f"   scale {spread(site.scale for site in sites)}" if composition.scale_owner else ""
    rates = "".join(f"   lr of {role} = {ratio:g} x" for role, ratio in composition.lr_factors().items() if ratio != 1)
    depths = {site.depth for site in sites if site.depth is not None}
    where = f" in {count(len(depths), 'layer')}" if depths else ""
    modules = " ".join(module_names(site.name for site in sites))
    trained, everything = trainable(attached), count_parameters(attached.model)
    return [
        f"{names}   rank {ranks}{factor}{rates}",
        f"{count(len(sites), 'module')}{where}: {modules}   "
        f"{amount(trained, 2)} trainable parameters ({trained / everything:.2%})",
        *attached.beside.names.lines(tied_rows(attached.beside)),
        *(f"left out: {line}" for line in adapted.left_out),
        f"exports to: {exports_to(adapted, quantization)}",
    ]


def mergeable(adapted: Adapted) -> bool:
    """Whether the adapters can be merged, and the base's files can hold the merged weights."""
    return all(adapter.mergeable for adapter in adapted.attached.modules.values()) and not adapted.unmergeable


def exports_to(adapted: Adapted, quantization: str) -> str:
    """Export formats of the result, as declared by the adapters, and reasons for unavailable ones."""
    attached = adapted.attached
    if not all(adapter.mergeable for adapter in attached.modules.values()):
        return "not mergeable: use as an adapter"
    found = peft_folder(attached, {"quantization": quantization})
    exports = [] if found.refused else [peft_form(attached.sites, found)]
    exports += [] if adapted.unmergeable else ["merged model"]
    return "; ".join(
        [
            "merged model only" if exports == ["merged model"] else " or ".join(exports) or "lrft adapter only",
            *([f"not exportable to PEFT: {found.refused}"] if found.refused not in ("", NO_TYPE) else []),
            *([f"merging into this base is not possible: {adapted.unmergeable}"] if adapted.unmergeable else []),
        ]
    )


def peft_form(sites: Sequence[Site], found: PeftFolder) -> str:
    """What PEFT calls the folder, and whether a LoRA has the adapter's own tensors."""
    if found.kind != "LORA":
        return f"PEFT {found.kind}"
    ranks = {site.name: written_rank(site.name, found.config) for site in sites}
    converted = any(ranks[site.name] != site.rank for site in sites)
    return f"PEFT LoRA of rank {spread(ranks.values())} (converted)" if converted else "PEFT LoRA (unchanged)"


def training_lines(recipe: Recipe, inputs: Inputs, base: Base, engine: Engine) -> list[str]:
    t, batches, world = recipe.training, inputs.batches, engine.world
    passes = -(-t.global_batch_size // (engine.micro * world))
    each = f"{engine.micro} per pass x {count(passes, 'pass', 'passes')}"
    if engine.tokens is not None:
        each = f"passes of up to {count(engine.tokens, 'token')}"
    epochs = batches.total_steps / batches.steps_per_epoch
    rounds = "" if inputs.prepared.stream is not None else f"{epochs:.4g} epoch{'s' * (epochs != 1)} = "
    checkpointing = "" if t.gradient_checkpointing == "none" else f"   {t.gradient_checkpointing} checkpointing"
    divided = ", base sharded" if engine.strategy.together else ""
    return [
        f"{rounds}{count(batches.total_steps, 'step')} of "
        f"{count(t.global_batch_size, 'row')}: {each} x {count(world, 'process', 'processes')}{divided}",
        f"learning rate {t.learning_rate:g} {t.lr_scheduler.name}   {base.compute}   seed {t.seed}"
        f"{'   packed' if engine.layout.packed else ''}{checkpointing}",
        *default_lines(recipe),
        *([threads.note()] if threads.note() else []),
        *evaluation_lines(recipe, inputs),
    ]


def default_lines(recipe: Recipe) -> list[str]:
    """Where values come from that the recipe does not give, and a method or an objective declares."""
    rate = "training.learning_rate"
    return [
        f"the learning rate is the {origin}" if key == rate else f"{key} is {value}, the {origin}"
        for key, (value, origin) in recipe.declared().items()
    ]


def evaluation_lines(recipe: Recipe, inputs: Inputs) -> list[str]:
    """How often the run evaluates, and on how much."""
    every = evaluation_interval(recipe, inputs.prepared, inputs.batches)
    if every is None or inputs.validation is None:
        return []
    often = "every step" if every == 1 else f"every {every:,} steps"
    return [f"evaluates {often} on all {count(len(inputs.validation), 'validation row')}"]


def check_lines(session: Session) -> list[str]:
    report = session.inputs.prepared.report
    end_token = "end token is trained" if report.end_token_trained else "end token is not trained"
    return [
        *(text for name, text in session.notes.checks.items() if name != "resumed"),
        *([] if report.whole else [end_token]),
    ]


def spread(values: Iterable[float]) -> str:
    """One value, or the range with the most common one: "16", "4 to 64 (mostly 16)"."""
    counts = Counter(values)
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return f"{min(counts):g} to {max(counts):g} (mostly {counts.most_common(1)[0][0]:g})"


def facts(session: Session) -> dict[str, Any]:
    """run.json: what the report shows."""
    recipe, attached = session.recipe, session.adapted.attached
    return {
        "title": output_dir(recipe),
        "model": session.base.info,
        "adapter": {
            "methods": [e["name"] for e in attached.methods],
            "rank": spread(site.rank for site in attached.sites),
            "scale": spread(site.scale for site in attached.sites),
            "modules": len(attached.sites),
            "target_modules": module_names(site.name for site in attached.sites),
            "trainable parameters": trainable(attached),
            **({"trained in full": list(attached.modules_to_save)} if attached.modules_to_save else {}),
            **({"trained beside": lines} if (lines := attached.beside.names.lines()) else {}),
            **({"left out": session.adapted.left_out} if session.adapted.left_out else {}),
            "exports to": exports_to(session.adapted, session.base.info["quantization"]),
        },
        "data": session.inputs.prepared.report.to_dict(),
        "training": {
            "objective": recipe.training.objective.name,
            **{option: other.said for option, other in session.engine.losses.others.items()},
            "steps": session.inputs.batches.total_steps,
            "global batch size": recipe.training.global_batch_size,
            "learning rate": recipe.training.learning_rate,
            "scheduler": recipe.training.lr_scheduler.name,
            "seed": recipe.training.seed,
            "processes": session.engine.world,
            **({"sources": drawn} if (drawn := sources.drawn(recipe, session.inputs)) else {}),
        },
        "checks": session.notes.checks,
        "result": result(session),
        "warnings": session.trackers.console.warnings,
    }


def result(session: Session) -> dict[str, Any]:
    """How far the run came, and its validation losses; None for those that were not measured."""
    progress, started = session.progress, session.recipe.adapter.start_from
    return {
        **({STARTED_FROM: session.recipe.masked(started)} if started else {}),
        "steps done": progress.step,
        "tokens seen": progress.tokens,
        START: progress.start_loss,
        BEST: progress.best_loss,
        **({BY_METRIC: True} if progress.best_score is not None else {}),
        "best step": progress.best_step,
        LAST: progress.last_loss,
    }
