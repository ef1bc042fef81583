"""`soae doctor`: what was built, what this machine offers, and what to do about what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..doctor import main

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """Print what was built, what hardware is seen, and what to do about each thing that is missing."""

    output: Path | None = None
    """Write the findings here, as JSON."""


def run(options: Options, line: str) -> int:
    """Run the command; the exit status."""
    return main(options.output)
