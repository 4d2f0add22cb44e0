"""What a conversion of a value is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Conversion = Callable[[Any, Any, Path], Any]
"""value, what the table gives with it, folder of the configuration -> the value of a recipe. Raises `Unsaid` (no
counterpart) or `Nothing` (nothing is asked for), with the reason."""
OFF = "off, as by default"
