"""The benchmark on a real model: methods of equal size, rates searched on one set of rows, figures of another.

rows: five tasks -> design: what is fixed before any result -> plan: what fits a budget -> stages: one comparison file
each, from what the stages before have found -> running: `lrft compare`, then judge: figures on the test rows -> kept:
docs/benchmark/real -> statistics, page, picture: docs/benchmark-real.md. claims: papers' claims as more comparisons.
peers: the same rows by other trainers.
"""
