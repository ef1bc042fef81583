"""The goals of bench/targets.json held against the results."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import gmres
from .records import NONE, Results, Row, grid, look, number

UNITS = {"%": (100.0, " %"), "×": (1.0, "×"), "µs": (1.0, " µs")}
UNEXPLAINED = "not explained yet"


@dataclass(frozen=True)
class Target:
    """One goal; every chosen row has to meet it.

    Attributes:
        name: what is asked for.
        file: the JSON without its device and ending, "gmres" for gmres_cpu.json.
        device: "cpu" or "gpu".
        rows: the list in it; "problems" of the comparison gives the rows of all problems.
        value: where in a row the number is.
        unit: "%", "×" or "µs".
        at_least, at_most: the limit, one of the two.
        equals: what a row must hold to be chosen.
        contains, lacks: texts of which a field holds at least one, or none.
        least, most: bounds of a field, both inclusive; `below` is exclusive.
        reason: why it is missed.
    """

    name: str
    file: str
    device: str
    rows: str
    value: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    equals: dict[str, Any] = field(default_factory=dict)
    contains: dict[str, list[str]] = field(default_factory=dict)
    lacks: dict[str, list[str]] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    below: dict[str, float] = field(default_factory=dict)
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.name}: give one of at_least and at_most")
        if self.unit not in UNITS:
            raise ValueError(f"{self.name}: unknown unit {self.unit!r}; use one of {', '.join(UNITS)}")

    def chooses(self, row: Row) -> bool:
        def numeric(name: str) -> float:
            found = look(row, name)
            return float(found) if isinstance(found, (int, float)) else float("nan")

        return (
            all(look(row, name) == value for name, value in self.equals.items())
            and all(any(t in str(look(row, name)) for t in texts) for name, texts in self.contains.items())
            and not any(t in str(look(row, name)) for name, texts in self.lacks.items() for t in texts)
            and all(numeric(name) >= bound for name, bound in self.least.items())
            and all(numeric(name) <= bound for name, bound in self.most.items())
            and all(numeric(name) < bound for name, bound in self.below.items())
        )

    def met(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


@dataclass(frozen=True)
class Verdict:
    """`state` is "met", "missed" or "not measured"; `worst` the worst value of `count` rows, in the row `where`."""

    target: Target
    state: str
    count: int = 0
    missing: int = 0
    worst: float | None = None
    best: float | None = None
    where: str = ""


def load(path: Path) -> list[Target]:
    """Raises `ValueError` for a target that says too little or too much."""
    targets = []
    for stored in json.loads(path.read_text()):
        try:
            targets.append(Target(**stored))
        except TypeError as error:
            raise ValueError(f"{path.name}: {stored.get('name', 'a target without a name')}: {error}") from None
    return targets


def judge(target: Target, results: Results) -> Verdict:
    record = results.get(target.file, target.device)
    if record is None:
        return Verdict(target, "not measured")
    rows = record.get(target.rows) or []
    if target.file == "gmres":
        rows = [gmres.derived(row, record) for row in rows]
    elif target.file == "compare":
        rows = [_beside(problem) | row for problem in rows for row in problem.get("rows", [])]
    found = [(look(row, target.value), row) for row in rows if target.chooses(row)]
    valued = [(float(value), row) for value, row in found if isinstance(value, (int, float))]
    if not valued:
        return Verdict(target, "not measured")
    ordered = sorted(valued, key=lambda pair: pair[0], reverse=target.at_most is not None)
    failing = sum(not target.met(value) for value, _ in valued)
    (worst, row), (best, _) = ordered[0], ordered[-1]
    return Verdict(target, "missed" if failing else "met", len(valued), failing, worst, best, _where(row))


def _beside(problem: Row) -> Row:
    """What a row of the comparison needs to know of its problem."""
    size = 8 if problem.get("dtype") == "float64" else 4
    told = [problem.get(name) for name in ("B", "n", "restart")]
    known = {"problem": problem.get("name"), "dtype": problem.get("dtype")}
    if all(isinstance(value, int) for value in told):
        known["basis_bytes"] = told[0] * told[1] * told[2] * size
    return known


def _where(row: Row) -> str:
    """Which row it is, from what it holds."""
    names = ("problem", "case", "attack", "library", "contender", "name", "impl")
    parts = [str(row[name]) for name in names if row.get(name) and len(str(row[name])) < 80]
    parts += [f"{name}={row[name]}" for name in ("B", "n", "k", "m") if name in row and "problem" not in row]
    return " ".join(parts)


def section(targets: list[Target], results: Results) -> str:
    rows = []
    for target in targets:
        verdict = judge(target, results)
        limit = f"≥ {_with_unit(target.at_least, target)}" if target.at_most is None else (
            f"≤ {_with_unit(target.at_most, target)}"
        )  # fmt: skip
        state = {"met": "met", "missed": "**missed**"}.get(verdict.state, verdict.state)
        reason = (target.reason or UNEXPLAINED) if verdict.state == "missed" else ""
        rows.append([target.device.upper(), target.name, limit, _measured(verdict), state, reason])
    text = (
        "Every row that a target speaks of has to meet it, by its median. The worst is shown, and the best where there "
        "are several."
    )
    return f"## Targets\n\n{text}\n\n" + grid(["", "target", "limit", "measured", "", "why it is missed"], rows)


def _measured(verdict: Verdict) -> str:
    if verdict.worst is None:
        return NONE
    told = f"{_with_unit(verdict.worst, verdict.target)} ({verdict.where})"
    if verdict.count > 1:
        told += f", best {_with_unit(verdict.best, verdict.target)}; {verdict.count - verdict.missing} of "
        told += f"{verdict.count} rows meet it"
    return told


def _with_unit(value: float | None, target: Target) -> str:
    scale, unit = UNITS[target.unit]
    return NONE if value is None else f"{number(value, scale)}{unit}"
