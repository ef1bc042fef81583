"""`soae plot`: training runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from matplotlib.ticker import EngFormatter
from tyro.conf import Positional, arg

from .._files import check_writable
from ..plots import DARK, LIGHT, check_format, save, training_chart
from ..training.log import Log, read_log
from .errors import CommandError, blaming

__all__ = ["Options", "run"]

_ENGINEERING = EngFormatter(places=1, sep=" ")  # 4,800,000 as 4.8 M


@dataclass(frozen=True)
class Options:
    """Compare training runs: loss, clean and robust accuracy, against epochs and against the gradients spent.

    Prints the best and the last epoch of every run; --output draws the curves. Runs may still be going on.
    Exit status: 0 done, 2 bad input.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Directories of runs, as `soae train --run-dir` makes them; NAME=DIRECTORY gives a run another name."""
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Draw the curves here (.png, .pdf, .svg)."""
    dark: bool = False
    """Draw for a dark page."""


def run(options: Options, line: str) -> int:
    """Run the command; the exit status.

    Args:
        options: of the command line.
        line: the command line, for the record.

    Raises:
        CommandError: bad input; nothing is written then.
    """
    if not options.runs:
        raise CommandError("RUN: name the directory of at least one run")
    if options.output is not None:
        with blaming("--output"):
            check_format(options.output)
            check_writable(options.output)
    logs = {}
    for name, directory in _named(options.runs).items():
        with blaming("RUN"):
            logs[name] = read_log(directory)
            if not logs[name].steps and not logs[name].epochs:
                raise ValueError(f"{directory} has not logged anything yet; wait for its first steps")
    print(_table(logs))
    if options.output is not None:
        with blaming("--output"):
            save(training_chart(logs, DARK if options.dark else LIGHT), options.output)
    return 0


def _named(runs: Sequence[str]) -> dict[str, Path]:
    """The directories by name: the given one, or as much of the end of the path as tells it from the others."""
    given: list[tuple[str | None, Path]] = []
    for text in runs:
        label, equals, rest = text.partition("=")
        named = bool(equals and label and rest) and not Path(text).exists()
        given.append((label, Path(rest)) if named else (None, Path(text)))
    whole = [path.resolve() for _, path in given]
    for path in whole:
        if whole.count(path) > 1:
            raise CommandError(f"RUN: {path} is named twice")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    found: dict[str, Path] = {}
    for (chosen, directory), path in zip(given, whole, strict=True):
        name = chosen or str(Path(*path.parts[-depth:]))
        if name in found:
            raise CommandError(f"RUN: the name '{name}' is taken; choose another")
        found[name] = directory
    return found


def _table(logs: dict[str, Log]) -> str:
    """The best epoch of every run by robust accuracy (without one by clean accuracy), and the last."""
    lines: list[tuple[str, ...]] = [("", "epoch", "gradients", "loss", "clean", "robust")]
    for name, log in logs.items():
        best = _best(log.epochs)
        if best is not None and best is not log.epochs[-1]:
            lines.append((f"{name}, best", *_cells(best)))
        lines.append((f"{name}, last", *_cells((log.epochs or log.steps)[-1], finished=bool(log.epochs))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _best(epochs: list[dict[str, Any]]) -> dict[str, Any] | None:
    for quantity in ("robust_accuracy", "clean_accuracy"):
        measured = [row for row in epochs if row[quantity] is not None]
        if measured:
            return max(measured, key=lambda row: float(row[quantity]))
    return None


def _cells(row: dict[str, Any], *, finished: bool = True) -> tuple[str, ...]:
    """Numbers of a row; accuracies only of finished epochs, whose images were not trained on."""
    shares = [
        "-" if row[name] is None or not finished else f"{100 * row[name]:.1f} %"
        for name in ("clean_accuracy", "robust_accuracy")
    ]
    epoch = f"{row['epoch']:g}" if finished else f"step {row['step']}"
    gradients = "-" if row["gradients"] is None else _ENGINEERING(row["gradients"])
    return epoch, gradients, "-" if row["loss"] is None else f"{row['loss']:.4f}", *shares
