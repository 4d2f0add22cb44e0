"""Distributed training: launching, strategies, gradient exchange."""
