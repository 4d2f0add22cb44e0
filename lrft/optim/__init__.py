"""Optimisers, their state, and the learning rate over the steps."""
