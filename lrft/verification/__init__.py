"""Verification of merged models and of finished runs."""
