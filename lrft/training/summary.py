"""The words of a run's first and last screen, and the facts of its report."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lrft.adapters.targets import module_names
from lrft.model.quantized import count as count_parameters
from lrft.utils.text import command, count

if TYPE_CHECKING:
    from lrft.training.state import Trainer

Row = tuple[str, list[str]]


def start(trainer: Trainer) -> list[Row]:
    """What is about to be trained, on one screen."""
    return [
        (
            "run",
            [
                shown(trainer),
                *([trainer.checks["resumed"]] if "resumed" in trainer.checks else []),
            ],
        ),
        ("model", model_line(trainer)),
        ("adapter", adapter_lines(trainer)),
        ("data", trainer.prepared.report.lines()),
        ("training", training_lines(trainer)),
        ("checks", check_lines(trainer)),
    ]


def end(trainer: Trainer) -> list[Row]:
    """What came out of it, and what to do with it."""
    p, out = trainer.progress, shown(trainer)
    done = count(p.step, "step")
    if p.best_loss is not None:
        began = f" (start {p.start_loss:.4f})" if p.start_loss is not None else ""
        done += f"   best validation loss {p.best_loss:.4f} at step {p.best_step:,}{began}"
    return [
        ("done", [done]),
        ("saved", [f"best/ and last/ in {out}"]),
        ("checked", check_lines(trainer)),
        ("next", next_commands(out, merges(trainer))),
    ]


def next_commands(out: str, mergeable: bool) -> list[str]:
    """To be pasted into a shell. out: the run's folder, as the recipe writes it."""
    merged = [command("lrft", "merge", out, expand=True)] if mergeable else []
    return [*merged, command("lrft", "eval", out, "--data", "test.jsonl", expand=True)]


def shown(trainer: Trainer) -> str:
    """The run's folder, as the recipe writes it."""
    return trainer.recipe.masked(trainer.recipe.output_dir)


def model_line(trainer: Trainer) -> list[str]:
    trained = sum(p.numel() for p in trainer.attached.trained().values())
    frozen, kind = count_parameters(trainer.attached.model) - trained, trainer.base_info["quantization"]
    words = f"frozen in {trainer.base_info['dtype']}" + ("" if kind == "none" else f", linear layers in {kind}")
    return [f"{trainer.base_info['name']}   {frozen / 1e6:,.1f} M parameters, {words}"]


def adapter_lines(trainer: Trainer) -> list[str]:
    sites = trainer.attached.sites
    names = " + ".join(entry["name"] for entry in trainer.attached.methods)
    ranks = spread(site.rank for site in sites)
    factor = f"   factor {spread(site.scale for site in sites)}" if trainer.composition.scale_owner else ""
    rates = "".join(
        f"   lr of {role} = {ratio:g} x" for role, ratio in trainer.composition.lr_factors().items() if ratio != 1
    )
    depths = {site.depth for site in sites if site.depth is not None}
    trained = sum(p.numel() for p in trainer.attached.trained().values())
    everything = count_parameters(trainer.attached.model)
    where = f" in {count(len(depths), 'layer')}" if depths else ""
    return [
        f"{names}   rank {ranks}{factor}{rates}",
        f"{count(len(sites), 'module')}{where}: {' '.join(module_names(site.name for site in sites))}   "
        f"{trained / 1e6:,.2f} M trained ({trained / everything:.2%})",
        f"becomes: {becomes(trainer)}",
    ]


def merges(trainer: Trainer) -> bool:
    """Whether there are weights that say what the adapters do."""
    return all(adapter.mergeable for adapter in trainer.attached.modules.values())


def becomes(trainer: Trainer) -> str:
    """What the result can be exported to, by what the adapters themselves say."""
    if not merges(trainer):
        return "stays an adapter: no weight can hold it"
    forms = [form for adapter in trainer.attached.modules.values() if (form := adapter.peft()) is not None]
    if len(forms) < len(trainer.attached.modules):
        return "merged only"
    converted = any(form.A.shape[0] != site.rank for form, site in zip(forms, trainer.attached.sites, strict=True))
    ranks = spread(form.A.shape[0] for form in forms)
    return f"PEFT LoRA of rank {ranks} after conversion, or merged" if converted else "PEFT LoRA as is, or merged"


def training_lines(trainer: Trainer) -> list[str]:
    t, plan = trainer.recipe.training, trainer.plan
    world = trainer.accelerator.num_processes
    passes = -(-t.global_batch_size // (trainer.micro * world))
    epochs = plan.total_steps / plan.steps_per_epoch
    again = "" if t.gradient_checkpointing == "none" else f"   {t.gradient_checkpointing} checkpointing"
    shares = ", the base divided among them" if trainer.strategy.together else ""
    return [
        f"{epochs:.4g} epoch{'s' * (epochs != 1)} = {count(plan.total_steps, 'step')} of "
        f"{count(t.global_batch_size, 'row')}: {trainer.micro} per pass x {count(passes, 'pass', 'passes')} x "
        f"{count(world, 'process', 'processes')}{shares}",
        f"learning rate {t.learning_rate:g} {t.lr_scheduler.name}   {trainer.compute}   seed {t.seed}"
        f"{'   packed' if trainer.packed else ''}{again}",
    ]


def check_lines(trainer: Trainer) -> list[str]:
    end_token = trainer.prepared.report.end_token_trained
    return [
        *(text for name, text in trainer.checks.items() if name != "resumed"),
        "end token is trained" if end_token else "end token is not trained",
    ]


def spread(values: Any) -> str:
    """One value, or the range with the most common one: "16", "4 to 64 (mostly 16)"."""
    counts = Counter(values)
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return f"{min(counts):g} to {max(counts):g} (mostly {counts.most_common(1)[0][0]:g})"


def facts(trainer: Trainer) -> dict[str, Any]:
    """run.json: what the report shows."""
    p, recipe, sites = trainer.progress, trainer.recipe, trainer.attached.sites
    trained = sum(param.numel() for param in trainer.attached.trained().values())
    return {
        "title": shown(trainer),
        "model": trainer.base_info,
        "adapter": {
            "methods": [e["name"] for e in trainer.attached.methods],
            "rank": spread(site.rank for site in sites),
            "factor": spread(site.scale for site in sites),
            "modules": len(sites),
            "targets": module_names(site.name for site in sites),
            "trained parameters": trained,
            "becomes": becomes(trainer),
        },
        "data": trainer.prepared.report.to_dict(),
        "training": {
            "steps": trainer.plan.total_steps,
            "global batch size": recipe.training.global_batch_size,
            "learning rate": recipe.training.learning_rate,
            "scheduler": recipe.training.lr_scheduler.name,
            "seed": recipe.training.seed,
            "processes": trainer.accelerator.num_processes,
        },
        "checks": trainer.checks,
        "result": {
            "steps done": p.step,
            "tokens seen": p.tokens,
            "validation loss at the start": p.start_loss,
            "best validation loss": p.best_loss,
            "best step": p.best_step,
        },
        "warnings": trainer.reporter.warnings,
    }
