"""The numbers that the paper prints, as its text has them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["accuracy", "dimensions", "numbers", "quality", "rows"]

# How Tables IV and V call the data sets.
_DATA = {"mnist": "mnist", "cifar10": "cifar10", "imagenet-sample": "imagenet", "imagenet100": "imagenet"}
_ATTACKS = {"FGSM": "FGSM", "PGD": "PGD", "Auto": "AutoAttack", "SOAE": "SOAE"}


@cache
def numbers() -> dict[str, Any]:
    """All tables by their number; accuracies in percent."""
    text = Path(__file__).with_name("paper.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def accuracy(table: str, network: str | None, row: str, column: str | None) -> float | None:
    """A share of Tables I to III, in [0, 1]; `None` where the paper has no such row or column."""
    if table not in ("1", "2", "3") or network is None or column is None:
        return None
    entry = numbers()[table]
    row = row.partition(",")[0]  # "SOAT, paper, -H^-1 g" stands beside the paper's SOAT
    values = entry["rows"].get(network, {}).get(row)
    if values is None or column not in entry["columns"]:
        return None
    share: float = values[entry["columns"].index(column)] / 100
    return share


def rows(table: str, network: str | None) -> list[str]:
    """Names of the rows of Tables I to III; nothing for other tables or networks."""
    return [] if table not in ("1", "2", "3") else list(numbers()[table]["rows"].get(network, {}))


def dimensions(data: str) -> list[int]:
    """The row of Table IV for one of our data sets: five m, the smallest threshold first."""
    found: list[int] = numbers()["4"]["rows"][_DATA[data]]
    return found


def quality(data: str, column: str | None) -> tuple[float, float] | None:
    """PSNR in dB and SSIM of Table V for one of our data sets and the paper's name of a column."""
    if column not in _ATTACKS:
        return None
    psnr, ssim = numbers()["5"]["rows"][_DATA[data]][_ATTACKS[column]]
    return psnr, ssim
