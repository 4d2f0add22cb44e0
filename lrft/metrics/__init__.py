"""Metrics of an evaluation: of the loss's own pass over the rows, and of generated answers."""
