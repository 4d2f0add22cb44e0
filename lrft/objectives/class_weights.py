"""Factors of labels that a recipe gives."""

from __future__ import annotations

from collections.abc import Sequence


def given_weights(given: str | tuple[float, ...], names: Sequence[str]) -> tuple[float, ...]:
    """Those of `class_weights`, empty for none. Raises ValueError unless there is one for each of `names`."""
    if isinstance(given, str):
        return ()
    if len(given) != len(names) or min(given) < 0:
        wanted = f"{len(names)} labels ({', '.join(names)})"
        raise ValueError(f"class_weights has {len(given)} numbers; expected one, not negative, for each of {wanted}")
    return given
