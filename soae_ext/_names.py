"""Names that a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = ["unknown_name"]


def unknown_name(value: object, choices: Sequence[str]) -> str:
    """The complaint that `value` is none of `choices`, with the nearest of them if one is near."""
    folded = {choice.lower(): choice for choice in choices}
    nearest = difflib.get_close_matches(str(value).lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean '{folded[nearest[0]]}'? " if nearest else ""
    return f"unknown name '{value}'; {hint}choose from {', '.join(choices)}"
