"""What all figures share: colours for light and dark pages, axes, and files that appear whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .._files import replacing

__all__ = ["DARK", "LIGHT", "MARKERS", "Theme", "check_format", "new_figure", "save", "style_axes"]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. `lines` keep apart for colour-blind readers; markers tell them apart without colour."""

    text: str
    muted: str
    grid: str
    background: str
    lines: tuple[str, ...]


LIGHT = Theme(
    text="#1b1f24",
    muted="#57606a",
    grid="#d8dee4",
    background="#ffffff",
    lines=("#0b62a8", "#c2410c", "#0f766e", "#a21caf", "#7a5d00", "#475569", "#be123c", "#4338ca"),
)
DARK = Theme(
    text="#e6edf3",
    muted="#9aa7b4",
    grid="#30363d",
    background="#161b22",
    lines=("#6cb6ff", "#ff9b5e", "#4fd1b5", "#e879f9", "#e3c341", "#a8b3c2", "#fb7185", "#a5b4fc"),
)


def check_format(path: Path) -> None:
    """Raise `ValueError` unless the ending of `path` names a picture format that can be written."""
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"unknown picture format '{path.suffix}'; use .png, .pdf or .svg")


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """An empty figure of so many inches, on the background of `theme`."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.background)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, theme: Theme, grid: Literal["both", "x", "y"] = "both") -> None:
    """Quiet axes in the colours of `theme`: two spines, a light grid behind the data."""
    axes.set_facecolor(theme.background)
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color=theme.grid, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.grid)
    axes.tick_params(which="both", colors=theme.muted, labelsize=9, length=0)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)
    axes.title.set_color(theme.text)


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`, whole or not at all; the format follows from its ending."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=130)
