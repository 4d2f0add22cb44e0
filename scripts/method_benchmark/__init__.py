"""The standing benchmark: every method at equal parameters, on three small tasks.

language: a small closed English -> tasks: rows of the three tasks and of what the base is trained on -> base: its
tokenizer and weights -> files: the comparisons -> page: docs/benchmark.md
"""
