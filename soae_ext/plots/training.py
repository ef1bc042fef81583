"""Charts that compare training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from ..training.log import Log
from .style import LIGHT, MARKERS, Theme, new_figure, style_axes

__all__ = ["training_chart"]

_PANELS = (
    ("loss", "training loss"),
    ("clean_accuracy", "clean accuracy"),
    ("robust_accuracy", "robust accuracy"),
)
# With more points than this, a marker at each would hide the line.
_MARKED = 12


def training_chart(runs: Mapping[str, Log], theme: Theme = LIGHT) -> Figure:
    """Training loss, clean and robust validation accuracy of several runs, against epochs and against gradients spent.

    The loss is that of the rows of steps, the accuracies those of the epochs. A dozen markers tell the lines apart
    without colour; a ring stands around the best robust accuracy. Quantities that no run measured are left out.

    Args:
        runs: the logs by the name of their run.
        theme: colours.

    Raises:
        ValueError: no run has a row yet.
    """
    panels = [panel for panel in _PANELS if any(_has(log, panel[0]) for log in runs.values())]
    if not panels:
        raise ValueError("no run has logged anything yet")
    figure = new_figure(9.0, 0.6 + 2.4 * len(panels), theme)
    grid = figure.subplots(len(panels), 2, sharex="col", sharey="row", squeeze=False)
    for number, log in enumerate(runs.values()):
        colour, marker = theme.lines[number % len(theme.lines)], MARKERS[number % len(MARKERS)]
        for (quantity, _), row in zip(panels, grid, strict=True):
            for axes, abscissa in zip(row, ("epoch", "gradients"), strict=True):
                _draw(axes, log, abscissa, quantity, colour, marker)
    for (quantity, label), (left, right) in zip(panels, grid, strict=True):
        style_axes(left, theme)
        style_axes(right, theme)
        left.set_ylabel(label)
        if quantity != "loss":
            left.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
            left.set_ylim(*_limits(runs, quantity))
    left, right = grid[-1]
    left.set_xlabel("epochs")
    left.set_xlim(left=0)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("gradients spent")
    right.set_xlim(left=0)
    right.xaxis.set_major_formatter(EngFormatter(sep="\N{THIN SPACE}"))
    figure.align_ylabels(grid[:, 0])
    _legend(figure, runs, theme)
    return figure


def _has(log: Log, quantity: str) -> bool:
    rows = [*log.epochs, *log.steps] if quantity == "loss" else log.epochs
    return any(row[quantity] is not None for row in rows)


def _draw(axes: Axes, log: Log, abscissa: str, quantity: str, colour: str, marker: str) -> None:
    rows = log.epochs
    if quantity == "loss" and log.steps:
        # The mean of an epoch would stand at its end, above the loss that was reached there.
        rows = log.steps if abscissa == "gradients" else _with_epochs(log)
    x, y = _points(rows, abscissa, quantity)
    every = max(1, math.ceil(len(x) / _MARKED))
    marked = sorted(range(len(x))[len(x) - 1 :: -every]) if x else []  # the last one always
    axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=4.5, markevery=marked)
    if quantity == "robust_accuracy" and x:
        best = int(np.argmax(y))
        axes.plot(x[best], y[best], marker="o", markersize=11, fillstyle="none", color=colour)


def _points(rows: list[dict[str, Any]], abscissa: str, quantity: str) -> tuple[list[float], list[float]]:
    measured = [row for row in rows if row[abscissa] is not None and row[quantity] is not None]
    return [row[abscissa] for row in measured], [row[quantity] for row in measured]


def _with_epochs(log: Log) -> list[dict[str, Any]]:
    """The rows of steps with the epochs as fractions, which the first finished epoch tells the length of."""
    first = next((row for row in log.epochs if row["epoch"]), None)
    if first is None:
        return []
    return [{**row, "epoch": row["step"] * first["epoch"] / first["step"]} for row in log.steps]


def _limits(runs: Mapping[str, Log], quantity: str) -> tuple[float, float]:
    """Of all runs, with some room, and at least 10 points of accuracy: noise must not look like a difference."""
    values = [row[quantity] for log in runs.values() for row in log.epochs if row[quantity] is not None]
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), (0.1 - (high - low)) / 2, 0.005)
    return max(-0.02, low - room), min(1.02, high + room)


def _legend(figure: Figure, runs: Mapping[str, Log], theme: Theme) -> None:
    """Above the panels, where it hides nothing; one entry for each run."""
    handles = [
        Line2D([], [], color=theme.lines[n % len(theme.lines)], marker=MARKERS[n % len(MARKERS)])
        for n in range(len(runs))
    ]
    names = list(runs)
    if any(_has(log, "robust_accuracy") for log in runs.values()):
        ring = Line2D([], [], color=theme.muted, marker="o", markersize=10, fillstyle="none", linestyle="none")
        handles, names = [*handles, ring], [*names, "best robust accuracy"]
    figure.legend(
        handles, names, loc="outside upper left", fontsize=9, frameon=False, labelcolor=theme.text,
        ncols=min(len(names), 5 if max(map(len, names)) < 22 else 3),
    )  # fmt: skip
