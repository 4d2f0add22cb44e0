"""Estimates before a run: memory, time and communication."""
