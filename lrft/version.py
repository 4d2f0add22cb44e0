"""The version of lrft."""

__version__ = "0.1.0"
