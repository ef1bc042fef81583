"""The measurements as rows of text."""

from __future__ import annotations

from collections.abc import Sequence

from .measure import Clean, Measurement, WorstCase

__all__ = ["cells", "table"]

_HEAD = ("", "accuracy (95 % interval)", "mean loss", "gradients", "forwards", "Krylov dim. (max)", "seconds")
_QUALITY = ("PSNR", "SSIM")


def cells(
    clean: Clean, measurements: Sequence[Measurement], worst: WorstCase | None = None, *, quality: bool = False
) -> list[list[str]]:
    """Head and rows of the table: clean accuracy first, then the attacks, then their worst case.

    Args:
        clean: on the unperturbed images.
        measurements: of the attacks.
        worst: over all attacks; `None` leaves the row out.
        quality: whether to add PSNR (dB) and SSIM.
    """
    extra = ["-", "-"] if quality else []
    rows = [["clean", str(clean.accuracy), f"{clean.loss:.4f}", "-", "-", "-", "-", *extra]]
    for m in measurements:
        dims = "-" if m.krylov_mean is None else f"{m.krylov_mean:.2f} ({m.krylov_max})"
        row = [m.name, str(m.robust), f"{m.loss:.4f}", f"{m.gradients:.1f}", f"{m.forwards:.1f}", dims]
        looks = [_number(m.mean_psnr, 1), _number(m.mean_ssim, 3)] if quality else []
        rows.append([*row, f"{m.seconds:.1f}", *looks])
    if worst is not None:
        rows.append(["worst case", str(worst.robust), "-", "-", "-", "-", "-", *extra])
    return [[*_HEAD, *(_QUALITY if quality else ())], *rows]


def table(
    clean: Clean, measurements: Sequence[Measurement], worst: WorstCase | None = None, *, quality: bool = False
) -> str:
    """The measurements as lines of text; arguments as in :func:`cells`."""
    head, *rows = cells(clean, measurements, worst, quality=quality)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        aligned = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(head), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
