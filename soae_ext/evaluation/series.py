"""Curves: what a study of one quantity gives, and its form in the JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CURVE_KEYS", "Curve", "Series"]

CURVE_KEYS = ("eps", "gradients", "iterations", "fd_step", "threshold")


@dataclass(frozen=True)
class Series:
    """One line of a curve.

    Attributes:
        name: of the attack or network.
        x: abscissae, ascending.
        y: robust accuracy, a share between 0 and 1.
        low, high: ends of Wilson's 95 % interval of `y`; `None` where there is none.
        extra: further columns, each as long as `x`; NaN where something was not measured.
    """

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    extra: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {"y": self.y, "low": self.low or self.x, "high": self.high or self.x, **self.extra}
        for name, column in columns.items():
            if len(column) != len(self.x):
                raise ValueError(f"{name}: has {len(column)} values, x has {len(self.x)}; give one per point")

    def as_json(self) -> dict[str, Any]:
        """Plain lists; values that are not finite become `None`."""
        return {
            "name": self.name,
            "x": _plain(self.x),
            "y": _plain(self.y),
            "low": None if self.low is None else _plain(self.low),
            "high": None if self.high is None else _plain(self.high),
            "extra": {name: _plain(column) for name, column in self.extra.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Series:
        """The series that :meth:`as_json` wrote."""
        low, high = value.get("low"), value.get("high")
        return cls(
            str(value["name"]),
            _numbers(value["x"]),
            _numbers(value["y"]),
            None if low is None else _numbers(low),
            None if high is None else _numbers(high),
            {str(name): _numbers(column) for name, column in value.get("extra", {}).items()},
        )


@dataclass(frozen=True)
class Curve:
    """Robust accuracy against one quantity.

    Attributes:
        key: one of `CURVE_KEYS`.
        title, x_label, y_label: for people.
        x_log: whether `x` is best drawn on a logarithmic axis.
        series: the lines.
        note: what a reader must know to read it right.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    x_log: bool
    series: list[Series]
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        texts = {name: getattr(self, name) for name in ("key", "title", "x_label", "y_label", "x_log", "note")}
        return {**texts, "series": [line.as_json() for line in self.series]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curve:
        """The curve that :meth:`as_json` wrote."""
        return cls(
            key=str(value["key"]),
            title=str(value["title"]),
            x_label=str(value["x_label"]),
            y_label=str(value["y_label"]),
            x_log=bool(value["x_log"]),
            series=[Series.from_json(line) for line in value["series"]],
            note=str(value.get("note", "")),
        )


def _plain(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
