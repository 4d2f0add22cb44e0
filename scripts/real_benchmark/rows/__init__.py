"""Rows of the real-model benchmark, drawn from seeds: one task a file, each with three sets and a figure of answers."""
