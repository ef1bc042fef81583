"""What the two studies say: training at equal gradients, and training with a single step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .claims import Difference, constant, pooled_difference, shown

__all__ = ["EqualRow", "Overfitting", "equal_gradients", "findings", "overfitting"]

Document = dict[str, Any]

# The strongest attack of the study, and the rows that others are compared with.
_JUDGE, _RIVAL, _CONTROL = "APGD-100", "PGD", "the same schedule, no curvature"


@dataclass(frozen=True)
class EqualRow:
    """One way to craft at one budget.

    Attributes:
        name: of the row.
        accuracy: mean over the seeds under the strongest attack; `None` if not measured.
        against_pgd, against_control: difference to PGD training, and to the same schedule without curvature, pooled
            over seeds; `None` where one is not measured.
    """

    name: str
    accuracy: float | None
    against_pgd: Difference | None
    against_control: Difference | None


@dataclass(frozen=True)
class Overfitting:
    """The course of one single-step training: accuracies on the held-out images by epoch.

    Attributes:
        name, seed: of the training.
        pgd, fgsm: after every epoch, in [0, 1].
    """

    name: str
    seed: int
    pgd: tuple[float, ...]
    fgsm: tuple[float, ...]

    @property
    def collapsed(self) -> bool:
        """Whether PGD accuracy ended at half of its best or less, and at less than half of FGSM accuracy."""
        return self.pgd[-1] <= max(self.pgd) / 2 and self.pgd[-1] < self.fgsm[-1] / 2


def equal_gradients(block: Document) -> list[EqualRow]:
    """The ways to craft of one budget."""
    judged = {row["name"]: row["cells"].get(_JUDGE) or [] for row in block["rows"]}
    rows = []
    for name, cells in judged.items():
        shares = [cell["robust"]["accuracy"] for cell in cells if cell]
        against = [
            pooled_difference(cells, judged[rival]) if rival in judged and name not in (rival, _RIVAL) else None
            for rival in (_RIVAL, _CONTROL)
        ]
        rows.append(EqualRow(name, fmean(shares) if shares else None, against[0], against[1]))
    return rows


def overfitting(block: Document) -> list[Overfitting]:
    """The trainings of one radius that are finished."""
    found = []
    for row in block["rows"]:
        for seed, cell in zip(row["seeds"], row["training"] or (), strict=False):
            if cell and cell.get("probe"):
                pgd = tuple(epoch["robust_accuracy"] for epoch in cell["epochs"])
                fgsm = tuple(cell["probe"][str(epoch["epoch"])] for epoch in cell["epochs"])
                found.append(Overfitting(row["name"], seed, pgd, fgsm))
    return found


def findings(document: Document) -> list[str]:
    """Sentences with numbers; nothing of what was not measured."""
    tables = {table["name"]: table for table in document["tables"]}
    lines: list[str] = []
    for name in ("1", "2", "3"):
        for block in tables.get(name, {"blocks": ()})["blocks"]:
            lines += _constant_rows(block)
    for block in tables.get("equal-gradients", {"blocks": ()})["blocks"]:
        lines += _of_budget(block)
    for block in tables.get("single-step", {"blocks": ()})["blocks"]:
        lines += _of_radius(block)
    return lines


def _constant_rows(block: Document) -> Iterator[str]:
    names = [row["name"] for row in block["rows"] if constant(row)]
    if names:
        yield (
            f"{block['title']}: {' and '.join(names)} ended at a network that gives one class to every image, so no "
            "attack changes an answer. That is what this recipe makes of them at this radius, not what the objectives "
            "can do; the claims below leave these rows out."
        )


def _of_budget(block: Document) -> Iterator[str]:
    rows = [row for row in equal_gradients(block) if row.accuracy is not None]
    soat = [row for row in rows if row.name.startswith("SOAT")]
    if not soat:
        return
    differing = [row for row in soat if row.against_pgd and (row.against_pgd[1] > 0 or row.against_pgd[2] < 0)]
    told = "; ".join(f"{row.name} {shown(row.against_pgd)}" for row in differing if row.against_pgd)
    yield (
        f"{block['title']}: differing from PGD training under {_JUDGE} by more than the 95 % interval: "
        f"{told or 'none of the ways of SOAT'}."
    )
    best = max(soat, key=lambda row: row.accuracy or 0.0)
    others = ", ".join(
        f"{row.name} {100 * (row.accuracy or 0):.1f} %" for row in rows if row.name in (_RIVAL, _CONTROL)
    )
    yield f"{block['title']}: of SOAT's ways, {best.name} trains best, {100 * (best.accuracy or 0):.1f} %; {others}."


def _of_radius(block: Document) -> Iterator[str]:
    for run in overfitting(block):
        yield (
            f"{block['title']}, {run.name}, seed {run.seed}: PGD accuracy {100 * max(run.pgd):.1f} % at best and "
            f"{100 * run.pgd[-1]:.1f} % at the end, FGSM accuracy {100 * run.fgsm[-1]:.1f} % at the end: "
            f"{'catastrophic overfitting' if run.collapsed else 'no catastrophic overfitting'}."
        )
