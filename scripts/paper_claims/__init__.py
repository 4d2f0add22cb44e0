"""Claims of papers, tried on a model that is small enough for one CPU core.

claim: what a claim is -> pairs: the base, the tokenizer, the data (benchmarking.base: those of the tasks) -> asking:
what `lrft` says of a run, first_step: the first step of a run, made again -> few_numbers: a rule that two claims share
-> papers: what papers say and how it is judged -> running: `lrft compare` and what is kept of it -> page:
docs/claims.md
"""
