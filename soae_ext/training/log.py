"""The log of a training run: CSV for spreadsheets, JSON lines for programs, TensorBoard where it is installed.

`steps.csv` has a row every few steps, `epochs.csv` one for every epoch; `log.jsonl` has the rows of both, each with its
`kind`, in the order in which they came. Accuracies of steps are those of the batches that were trained on, accuracies
of epochs those of the validation images. Rows are only ever added; when a run continues from a checkpoint, those that
were written after it are cut off, so that the log is that of a run which was never interrupted (but for `TIMINGS`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from .._files import replacing

__all__ = ["COLUMNS", "TIMINGS", "Log", "RunLog", "read_log"]

Row = Mapping[str, float | int | None]

# What a row holds; None where it was not measured. `gradients` (spent on all images together) and `seconds` (of steps)
# are counted from the start of the run; the rest are means since the row before of the same kind, `lr` the last value.
COLUMNS = (
    "step",
    "epoch",
    "loss",
    "lr",
    "clean_accuracy",
    "robust_accuracy",
    "gradients",
    "gradients_per_image",
    "krylov_mean",
    "images_per_second",
    "seconds",
)
TIMINGS = ("images_per_second", "seconds")

_JSON = "log.jsonl"
_TABLES = {"step": "steps.csv", "epoch": "epochs.csv"}
_HEADER = ",".join(COLUMNS) + "\n"
_TENSORBOARD = "tensorboard"


class RunLog:
    """Writes the log into a directory; a context manager.

    Args:
        directory: of the run; must exist.
        tensorboard: write event files too, if TensorBoard is installed.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = True) -> None:
        self.directory = directory
        self._tensorboard = tensorboard
        self._events: Any = None

    def step(self, row: Row) -> None:
        """Add a row about the training batches since the last one.

        Raises:
            ValueError: `row` has a name that is none of `COLUMNS`, or lacks `step`.
        """
        self._add("step", row)

    def epoch(self, row: Row) -> None:
        """Add a row about an epoch and its validation; see :meth:`step`."""
        self._add("epoch", row)

    def rewind(self, step: int, *, epochs: int) -> None:
        """Cut off rows about later steps than `step`, and what a process that was killed did not write to its end.

        Args:
            step: of the checkpoint.
            epochs: number of its last epoch that was validated: a row about a later one is cut off, though the
                checkpoint has all of its steps.
        """

        def stays(kind: str, row: Mapping[str, Any]) -> bool:
            return int(row["step"]) <= step and (kind != "epoch" or int(row["epoch"]) <= epochs)

        def stays_in_json(line: str) -> bool:
            row = json.loads(line)
            return stays(row["kind"], row)

        def stays_in_table(kind: str, line: str) -> bool:
            return line == _HEADER or stays(kind, _of_line(line))

        _cut(self.directory / _JSON, stays_in_json)
        for kind, name in _TABLES.items():
            _cut(self.directory / name, partial(stays_in_table, kind))
        if self._events is not None:
            self._events.close()
        self._events = self._writer(purge_step=step + 1)

    def sync(self) -> None:
        """Wait until everything logged so far is on the disk: call it before a checkpoint that follows it is."""
        for name in (_JSON, *_TABLES.values()):
            if (self.directory / name).is_file():
                with (self.directory / name).open("ab") as file:
                    os.fsync(file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Finish the event files."""
        if self._events is not None:
            self._events.close()
        self._events = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, kind: str, row: Row) -> None:
        unknown = set(row) - set(COLUMNS)
        if unknown or not isinstance(row.get("step"), int):
            raise ValueError(f"row: expected `step` and others of {', '.join(COLUMNS)}; got {', '.join(row)}")
        values = {name: row.get(name) for name in COLUMNS}
        table = self.directory / _TABLES[kind]
        header = "" if table.is_file() and table.stat().st_size else _HEADER
        _append(table, header + _line(values.values()))
        finite = {name: value if _is_finite(value) else None for name, value in values.items()}
        _append(self.directory / _JSON, json.dumps({"kind": kind, **finite}, allow_nan=False) + "\n")
        self._add_events(kind, values)

    def _add_events(self, kind: str, values: Row) -> None:
        if self._events is None:
            self._events = self._writer()
        group = {"step": "train", "epoch": "validation"}[kind]
        for name, value in values.items():
            if self._events is not None and name != "step" and _is_finite(value):
                self._events.add_scalar(f"{group}/{name}", value, values["step"])

    def _writer(self, **options: int) -> Any:
        """A writer of event files; `None` without TensorBoard."""
        if not self._tensorboard:
            return None
        try:
            module = import_module("torch.utils.tensorboard")
        except ImportError:
            self._tensorboard = False
            return None
        return module.SummaryWriter(str(self.directory / _TENSORBOARD), **options)


@dataclass(frozen=True)
class Log:
    """What a run logged: the rows of its steps and of its epochs, with the names in `COLUMNS`."""

    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]


def read_log(directory: Path) -> Log:
    """The log of the run in `directory`, also of one that is still running.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; names the line.
    """
    path = directory / _JSON
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no run: there is no {_JSON} in it")
    rows: dict[str, list[dict[str, Any]]] = {"step": [], "epoch": []}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break  # the process that writes it is not done, or was killed
        try:
            row = json.loads(line)
            rows[row["kind"]].append({name: row[name] for name in COLUMNS})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {number} is damaged") from error
    return Log(rows["step"], rows["epoch"])


def _is_finite(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)


def _line(values: Iterable[object]) -> str:
    """One line of CSV; every float with as many digits as tell it from all others, `None` empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _of_line(line: str) -> dict[str, str]:
    """A line of CSV by column."""
    return dict(zip(COLUMNS, line.rstrip("\n").split(","), strict=True))


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _cut(path: Path, keep: Callable[[str], bool]) -> None:
    """Leave the lines of a file that come before the first one that is damaged or not to `keep`."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept: list[str] = []
    with suppress(KeyError, TypeError, ValueError):
        for line in lines:
            if not line.endswith("\n") or not keep(line):
                break
            kept.append(line)
    if len(kept) < len(lines):
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
