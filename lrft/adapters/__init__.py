"""Adapters beside frozen layers: what they compute, how they are attached, calibrated, saved, and read as PEFT's."""
