"""Adapters on frozen layers: computation, attachment, calibration, storage, PEFT import and export."""
