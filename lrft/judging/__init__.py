"""Models judged: two on the same rows, by the tasks of lm-evaluation-harness, and by another model."""
