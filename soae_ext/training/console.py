"""What a training run shows on the terminal: a progress bar on stderr and a line for every epoch on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from .loop import TrainingLog
from .sums import Row

__all__ = ["Console"]

_HEADER = "epoch     loss    clean   robust  gradients/image  Krylov dim.  images/s"


class Console:
    """A log that is shown, and passed on to another one; a context manager.

    Where nobody looks any more, because a terminal or a pipe was closed, nothing is shown, and training goes on.

    Args:
        log: gets every row.
        epochs: of the whole run.
    """

    def __init__(self, log: TrainingLog, epochs: int) -> None:
        self._log, self._epochs = log, epochs
        self._bar: Any = None
        self._validated = ""
        self._headed = self._blind = False

    def progress(self, step: int, steps: int, row: Row) -> None:
        """Move the bar to `step` of `steps`; `row` is what was measured since the last row of the log."""
        if self._blind:
            return
        shown = {"loss": _number(row["loss"], ".3f"), "images/s": _number(row["images_per_second"], ".0f")}
        for name, key in (("clean", "clean_accuracy"), ("robust", "robust_accuracy")):
            shown[name] = _share(row[key])
        shown |= {"grad/img": _number(row["gradients_per_image"], ".1f"), "Krylov": _number(row["krylov_mean"], ".1f")}
        text = " ".join(f"{name} {value}" for name, value in shown.items() if value != "-")
        with self._unless_closed():
            if self._bar is None:
                self._bar = tqdm(total=steps, initial=step - 1, unit="step", file=sys.stderr, dynamic_ncols=True)
            self._bar.set_postfix_str(text + self._validated, refresh=False)
            self._bar.update(step - self._bar.n)

    def step(self, row: Row) -> None:
        """Add a row about training batches."""
        self._log.step(row)

    def epoch(self, row: Row) -> None:
        """Add a row about an epoch and print it."""
        self._log.epoch(row)
        clean, robust = _share(row["clean_accuracy"]), _share(row["robust_accuracy"])
        self._validated = "" if clean == "-" else f" | validation {clean}" + ("" if robust == "-" else f", {robust}")
        cells = (
            f"{row['epoch']}/{self._epochs}".rjust(5),
            _number(row["loss"], ".4f").rjust(7),
            clean.rjust(7),
            robust.rjust(7),
            _number(row["gradients_per_image"], ".1f").rjust(15),
            _number(row["krylov_mean"], ".2f").rjust(11),
            _number(row["images_per_second"], ".0f").rjust(8),
        )
        if not self._headed:
            self._print(_HEADER)
        self._headed = True
        self._print("  ".join(cells))

    def rewind(self, step: int, *, epochs: int) -> None:
        """Drop rows about later steps and epochs, and say where the run continues."""
        self._log.rewind(step, epochs=epochs)
        if step:
            self._print(f"continuing after step {step}, with {epochs} of {self._epochs} epochs validated")

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        self._log.sync()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with self._unless_closed():
                self._bar.close()

    def _print(self, line: str) -> None:
        with self._unless_closed():
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # a broken pipe, or a terminal that is gone
            self._blind, self._bar = True, None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | int | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
