"""What is measured and what follows a run: `evaluation` and `after`."""

from __future__ import annotations

from lrft import registry
from lrft.recipe.named_entries import one_of
from lrft.recipe.nodes import Node
from lrft.recipe.problems import Problems
from lrft.recipe.schema import EvaluationSection


def best(root: Node, problems: Problems) -> None:
    """evaluation.best names a metric that is measured, and evaluation.answers is for metrics of answers."""
    section = root.child("evaluation")
    if section is None or not isinstance(section.value, dict):
        return
    listed, best, answers = (section.child(key) for key in ("metrics", "best", "answers"))
    entries = listed.value if listed is not None else []
    names = [
        name.value for entry in entries if (name := entry.child("name")) is not None and isinstance(name.value, str)
    ]
    cards = registry.declared("metrics")
    if best is not None and isinstance(best.value, str):
        measured = list(dict.fromkeys(["loss", "perplexity", *(name.rpartition(":")[2] for name in names)]))
        if best.value not in measured:
            text = f"evaluation.best: expected {one_of(measured)}; got '{best.value}'. evaluation.metrics adds others"
            problems.add(best.place, text)
    of_rows = all(name in cards and cards[name].facts.get("of_rows", False) for name in names)
    if answers is not None and of_rows and answers.value != EvaluationSection.model_fields["answers"].default:
        problems.add(
            answers.place, "evaluation.answers has no effect: no metric of evaluation.metrics looks at answers"
        )


def after(root: Node, problems: Problems) -> None:
    """An exporter writes one folder, and what is pushed is what `after` makes."""
    section = root.child("after")
    if section is None or not isinstance(section.value, dict):
        return
    listed, merge, push, source = (section.child(key) for key in ("export", "merge", "push", "push_from"))
    named = [
        name for entry in (listed.value if listed is not None else []) if (name := entry.child("name")) is not None
    ]
    names = [name.value for name in named]
    for k, node in enumerate(named):
        if node.value in names[:k]:
            problems.add(
                node.place, f"after.export: {node.value} is listed twice, and both would write export/{node.value}"
            )
    if source is None or not isinstance(source.value, str) or source.value == "adapter":
        return
    if push is None:
        problems.add(source.place, "after.push_from has no effect: there is no after.push. Remove it, or name one")
    made = ["adapter", *(["merged"] if merge is not None and merge.value is True else []), *names]
    if source.value not in made:
        text = (
            f"after.push_from: expected {one_of(made)}; got '{source.value}'. after.merge and after.export make others"
        )
        problems.add(source.place, text)
