"""docs/claims.md, made of the files in docs/claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.page_table import table

from lrft.compare import columns
from lrft.utils.text import duration
from paper_claims.claim import Claim, Facts
from paper_claims.papers import CLAIMS

TOP = """\
# Claims of papers, tried

What papers say of their methods, and whether it shows on a model that one CPU core trains in half a minute: a Llama of
two or three blocks and width 256, which is given 256 random pairs to memorise, or a small task to learn.
`scripts/claims` makes this page; the rules stand in [scripts/paper_claims/papers](../scripts/paper_claims/papers), the
figures in [docs/claims](claims), the recipes in [recipes/claims](../recipes/claims).

**A claim that shows here holds for this model and this data; one that does not may well hold for the paper's.** None of
the papers' own experiments is repeated: theirs are of pretrained models up to thousands of times as large.
"""

SETTING = """\
## The settings

AdamW without decay, the learning rate falls in a line after a tenth of warm-up, float32. Adapters lie beside all linear
layers of the blocks, not beside the head. Seeds change the order of the rows and the start of the adapter; base and
rows are the same for all. The learning rate is chosen by the same loss that is shown, and by its mean over seeds: one
seed that breaks away rules a rate out.

### Pairs

- A pair is two random version-4 UUIDs without hyphens: 32 hex digits each. The key and a colon are the prompt, the
  value is the answer; the loss is that of the answer and its end token. The tokenizer has the 256 pairs of hex digits,
  a colon and two marks.
- The base (1.7 million weights) was trained from random weights on 128 *other* pairs by
  `lrft train recipes/claims/base.yaml` and `lrft merge`: all linear layers and the head in full, 150 steps; it answers
  them all. Its embedding stays random: method `full` trains linear layers. The papers begin with pretrained models.
- 32 pairs a step. The loss is measured on the pairs that are trained: the question is how much is remembered, not what
  is understood.
- Of random digits, 9.8 % are guessed right: one in sixteen, but for those that say the version and the variant.

### Tasks

- Tasks and base are those of [recipes/benchmark](../recipes/benchmark): stories with sums, sentences with one of eight
  labels, instructions over lists of words, in a closed English of some 200 words. 512 rows to train on, 8 a step.
- The base (2 million weights, three blocks) was trained from random weights on 12,000 other lines of that English by
  `lrft train recipes/benchmark/base.yaml` and `lrft merge`. It knows the words, not how a task's answers look: its loss
  on them is far above that of guessing.
- The loss is measured on 256 rows that are not trained.

```bash
scripts/claims run               # the bases, then every comparison, the measures, docs/claims and this page
scripts/claims run mora          # one of them; a comparison that was broken off goes on
scripts/claims                   # this page alone, from docs/claims
```
"""


def page(kept: Mapping[str, Facts]) -> str:
    """The whole page. kept: by the name of a claim; claims that were not tried are left out."""
    tried = [claim for claim in CLAIMS if claim.name in kept]
    parts = [TOP, summary(tried, kept), *(section(claim, kept[claim.name]) for claim in tried), SETTING]
    return "\n".join(parts)


def word(claim: Claim, facts: Facts) -> str:
    return "shows" if claim.judge(facts).shows else "does not show"


def summary(tried: Sequence[Claim], kept: Mapping[str, Facts]) -> str:
    rows = [[f"[{c.title}](#{anchor(c)})", c.paper, word(c, kept[c.name])] for c in tried]
    return table(["claim", "paper", "here"], rows)


def anchor(claim: Claim) -> str:
    """As GitHub makes it of a title."""
    kept = "".join(sign for sign in claim.title.lower() if sign.isalnum() or sign in " -")
    return kept.replace(" ", "-")


def section(claim: Claim, facts: Facts) -> str:
    verdict = claim.judge(facts)
    parts = [
        f"## {claim.title}\n",
        f"**The paper** ({claim.paper}): {claim.says}\n",
        f"**The rule** ([{claim.setting}](#{claim.setting})): {claim.rule}\n",
        f"**Here it {word(claim, facts)}.** By seed ({', '.join(map(str, facts['seeds']))}), {verdict.figures}\n",
        grid(facts),
    ]
    if claim.measures:
        parts.append(measured(claim, facts))
    said = [*facts["warnings"], *(f"{one['run']}: {one['said']}" for one in facts["failed"])]
    if said:
        parts.append("Said by the comparison:\n\n" + "\n".join(f"- {line}" for line in said) + "\n")
    parts.append(made(claim, facts))
    return "\n".join(parts)


def grid(facts: Facts) -> str:
    (run, _, _, *seeds), rows = columns.grid_table(facts)
    return table([run, "at", f"{facts['metric']}, mean ± deviation", *seeds], rows, words=2)


def measured(claim: Claim, facts: Facts) -> str:
    """Of each run at its best point: what was asked of it beside the metric."""
    rows = []
    for row in facts["methods"]:
        about = [row["run"], f"{row['trained']:,}", columns.point_text(row["best"])]
        for measure in claim.measures:
            found = list(facts["measured"][measure.name][row["run"]].values())
            mean = f"{sum(found) / len(found):{measure.form}}"
            about.append(f"{mean} ({', '.join(f'{value:{measure.form}}' for value in found)})")
        rows.append(about)
    titles = [f"{measure.title}, mean (by seed)" for measure in claim.measures]
    return table(["run", "trainable parameters", "best at", *titles], rows)


def made(claim: Claim, facts: Facts) -> str:
    cost, machine = facts["cost"], facts["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "lrft"))
    return (
        f"`scripts/claims run {claim.name}`, {facts['date']}: {sum(facts['runs'].values())} runs in "
        f"{duration(cost['wall_seconds'])}, {cost['cpu_seconds']:,.0f} CPU seconds with merge checks and measures, "
        f"without the base; {machine['cpu']}, {machine['threads']} thread, beside other work; {versions}.\n"
    )
