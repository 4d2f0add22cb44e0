"""Claims of papers, tried on a model that is small enough for one CPU core.

pairs: the base, the tokenizer, the data -> claims: what papers say and how it is judged -> running: `lrft compare` and
what is kept of it -> page: docs/claims.md
"""
