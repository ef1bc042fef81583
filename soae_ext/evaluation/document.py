"""The JSON document of an evaluation: everything that was measured, and where it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .._files import replacing
from ..attacks import SOAE, Attack
from ..data import ImageData
from .accuracy import paired_difference
from .measure import Clean, Measurement, WorstCase

__all__ = ["attack_entries", "attack_options", "data_entry", "example_entries", "strict", "write_json"]


def strict(value: Any) -> Any:
    """`value` as JSON has it: infinite numbers and NaN become null, paths and other things text, tensors lists."""
    if isinstance(value, Mapping):
        return {str(key): strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [strict(part) for part in value]
    if isinstance(value, Tensor):
        return strict(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_json(document: Mapping[str, object], path: Path) -> None:
    """Write `document` to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(strict(document), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def attack_options(attack: Attack) -> dict[str, object]:
    """The options of an attack, the name of its class, and of SOAE the plan that they come to."""
    plan = {"plan": attack.plan()._asdict()} if isinstance(attack, SOAE) else {}
    return {"class": type(attack).__name__, **asdict(attack), **plan}


def attack_entries(attacks: Mapping[str, Attack], measurements: Sequence[Measurement]) -> list[dict[str, object]]:
    """One entry for each attack.

    `paired_vs` holds, for every other attack, the difference of the robust accuracies (this minus the other) on the
    same images with its 95 % interval: where that lies below 0, this attack is the stronger one. `krylov_dims` has the
    mean of each iteration (null where no image was left), for the first restart and those after it in turn.
    """
    entries = []
    for m in measurements:
        entry = {**m.as_json(), "options": attack_options(attacks[m.name])}
        if isinstance(entry["krylov_dims"], dict) and m.krylov_dims is not None:
            used = m.krylov_dims > 0
            means = m.krylov_dims.double().sum(0) / used.sum(0)
            entry["krylov_dims"] = {**entry["krylov_dims"], "per_step": means}
        entry["paired_vs"] = {
            other.name: _difference(~m.success, ~other.success) for other in measurements if other is not m
        }
        entries.append(entry)
    return entries


def _difference(first: Tensor, second: Tensor) -> dict[str, object]:
    difference, low, high = paired_difference(first, second)
    return {"difference": difference, "interval_95": [low, high]}


def data_entry(data: ImageData) -> dict[str, object]:
    """What was attacked."""
    classes = list(data.classes) if data.classes else None
    shape = list(data.images.shape[1:])
    return {"name": data.name, "images": len(data), "shape": shape, "sha256": data.fingerprint, "classes": classes}


def example_entries(
    data: ImageData, clean: Clean, measurements: Sequence[Measurement], worst: WorstCase
) -> dict[str, object]:
    """Image by image: label, and whether it is classified correctly (1) or not (0)."""
    return {
        "label": data.labels,
        "clean_correct": clean.correct.int(),
        "robust": {m.name: (~m.success).int() for m in measurements},
        "worst_case": worst.correct.int(),
    }
