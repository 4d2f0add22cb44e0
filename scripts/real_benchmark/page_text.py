"""The fixed parts of docs/benchmark-real.md: the design, which was written before any result."""

from __future__ import annotations

from real_benchmark.design import BASELINE, FINAL_SEEDS, NEAR, RATE, ROWS_A_STEP, SCREENED_ON, SEARCH_SEEDS, STEPS, WIDE
from real_benchmark.rows.facts import PAIRS
from real_benchmark.rows.task import TEST, TRAIN, VALIDATION


def numbers(those: tuple[float, ...]) -> str:
    return ", ".join(f"{each:g}" for each in those)


TOP = f"""\
# Methods on a real model

Methods beside LoRA on SmolLM2-135M-Instruct, with as many trainable parameters, each at a learning rate of its own,
judged on rows that nothing has looked at before. [benchmark.md](benchmark.md) has every method on a toy base; this page
has fewer methods, and figures that a search did not choose. `scripts/benchmark real` makes it; the figures are in
[docs/benchmark/real](benchmark/real), the design in
[scripts/real_benchmark/design.py](../scripts/real_benchmark/design.py).

## The design, fixed before any result

- **Three sets of rows.** {TRAIN} to train, {VALIDATION} to choose rates and methods (validation), {TEST} that only the
  final runs are asked (test). Test rows differ in kind: commands have combinations of device, action and room that no
  other row has, intents other phrasings, sentences other names. Of `facts` ({PAIRS} pairs to memorise) the final runs
  train and are asked other pairs than the search.
- **Equal size.** Ranks are chosen by `lrft compare` (`budget: parameters`) to match {BASELINE} of rank 8 on all linear
  layers, 2.44 million numbers. A method whose size no rank sets keeps its own, which the table shows.
- **Equal data.** The same rows, {ROWS_A_STEP} a step, in the same order for a seed; AdamW without decay, a linear
  schedule after a tenth of warm-up, float32. Steps of a final run: {", ".join(f"{n} ({t})" for t, n in STEPS.items())},
  in the smallest tier about a third of it.
- **Equal tries.** Every method has three rates in every search. The middle of the first is {RATE:g} for {BASELINE}; for
  another it is {RATE:g} times the ratio of its rate to {BASELINE}'s on the small base of [benchmark.md](benchmark.md),
  or of the declared rates where it was not measured. Rates: times {numbers(WIDE)} first, then, for each task, times
  {numbers(NEAR)} the best so far.
- **Halving.** All methods of the tier and all rates train a fifth of a run's steps on `{SCREENED_ON}` (seed
  {SEARCH_SEEDS[0]}); the half with the lowest validation loss trains its two best rates for two fifths; the best of
  these go to all tasks. {BASELINE} always does. Short runs favour methods that start fast and high rates, and one task
  speaks for all: a method that was left out was not shown to be worse in a long run.
- **Final runs.** Seeds {", ".join(map(str, FINAL_SEEDS))}, which no search used. The state at the last step counts, so
  the validation rows choose nothing in a final run.
- **Beyond chance.** Differences to {BASELINE} are paired over seeds. A method differs where a paired t test says so
  after Holm's correction for the methods of the task, at 5 %. Intervals in the tables are simultaneous by Bonferroni
  (each at 1 - 5 % / m), so they can be wider than what Holm decides by. With three seeds t has two degrees of freedom:
  only large or very regular differences pass, and "not told apart" is no proof of equality.
  Losses and answers are a family each; the deviation of a figure that counts rows is taken as one row at least.
- **Forgetting.** `general text` is the loss on ten short passages
  ([general.txt](../scripts/real_benchmark/general.txt); four of them in the public domain, six written for this) after
  training, less that of the untouched base. No task trains on such text.
- **Cost.** `time` is that of a median step's token over {BASELINE}'s, `GB` the memory of the process; `merged` is the
  check of `lrft merge`; `exports to` what other tools can load.

The base's weights are 4-bit values expanded to float32, as the package index has them.
"""

FOOT = """\
## Running it

```bash
scripts/benchmark real --budget 12 --dry          # the largest tier that fits 12 CPU hours, stage by stage
scripts/benchmark real --budget 12 --for 45       # 45 minutes of it; the same command goes on where it stopped
scripts/benchmark real --tier half-hour           # a tier by its name
scripts/benchmark real measure                    # what a run takes on this machine, which the plans are made of
scripts/benchmark real --claim memorising         # one of the claims
scripts/benchmark real peers                      # lrft, PEFT + Trainer and TRL on the same rows, rates and seeds
scripts/benchmark real                            # this page alone
```

A stage is one comparison of `lrft compare`. Its figures are kept when it is finished, and its runs removed; a stage
that is kept is not run again. On a GPU with an 8B model: [recipes/benchmark-8b](../recipes/benchmark-8b).
"""
