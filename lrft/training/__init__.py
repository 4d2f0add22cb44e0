"""The training run: set-up, loop, checkpoints, checks."""
