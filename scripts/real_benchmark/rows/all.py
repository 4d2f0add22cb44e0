"""The tasks by name."""

from __future__ import annotations

from real_benchmark.rows import commands, facts, intents, sentences, sums

TASKS = {module.TASK.name: module.TASK for module in (commands, intents, sums, sentences, facts)}
