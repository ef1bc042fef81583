"""The run directory of `soae reproduce`: whose it is, and its finished cells.

    reproduce.json                      budget, scale, device, threads and versions; nothing else may go on here
    data.json                           checksums of the images that were used
    cells/BLOCK/ROW-seedN/NAME.json     one for every training and every measurement that is finished
    train/BLOCK/ROW-seedN/              run directories of the trainings, see :mod:`soae_ext.training.run`
    parts/                              batches of measurements that are not finished
    probes/                             accuracies after each epoch of trainings that are not finished

A cell appears whole or not at all, so whatever ends a run costs at most a batch of an attack or the steps of a training
since its checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import leftovers, replacing
from ..evaluation.document import strict
from ..evaluation.store import differences, digest

__all__ = ["Folder", "slug"]

_MANIFEST = "reproduce.json"


def slug(name: str) -> str:
    """`name` as a file name: what can be read of it, and a digest, since "+H" and "-H" must not meet."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60]
    return readable if readable == name else f"{readable}-{digest(name)[:8]}"


class Folder:
    """The cells in a run directory.

    Args:
        directory: made by :meth:`claim`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self, fingerprint: Mapping[str, object]) -> None:
        """Raise unless the directory is free, or holds this run.

        Raises:
            ValueError: it holds another run or other files; the message starts with `run_dir`.
        """
        directory, manifest = self.directory, self.directory / _MANIFEST
        if not directory.exists():
            return
        if not directory.is_dir():
            raise ValueError(f"run_dir: {directory} is a file: name a directory")
        if manifest.is_file():
            try:
                kept = json.loads(manifest.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"run_dir: {manifest} cannot be read, so whose it is is not known") from error
            differing = differences(kept, json.loads(json.dumps(dict(fingerprint))))
            if differing:
                raise ValueError(f"run_dir: {directory} holds another run ({'; '.join(differing)}): name another one")
        elif set(directory.iterdir()) - set(leftovers(manifest)):
            raise ValueError(f"run_dir: {directory} holds files and no run: name an empty directory, or one to be made")

    def claim(self, fingerprint: Mapping[str, object]) -> None:
        """Make the directory this run's.

        Raises:
            ValueError: as :meth:`check`.
            OSError: it cannot be written.
        """
        self.check(fingerprint)
        for name in ("cells", "train", "parts", "probes"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        with replacing(self.directory / _MANIFEST, durable=True) as temporary:
            temporary.write_text(json.dumps(dict(fingerprint), indent=2) + "\n", encoding="utf-8")

    def path(self, block: str, row: str, seed: int, name: str) -> Path:
        """The file of a cell."""
        return self.directory / "cells" / slug(block) / f"{slug(row)}-seed{seed}" / f"{slug(name)}.json"

    def training(self, block: str, row: str, seed: int) -> Path:
        """The run directory of a training."""
        return self.directory / "train" / slug(block) / f"{slug(row)}-seed{seed}"

    def parts(self, path: Path) -> Path:
        """Where the batches of the cell `path` are kept until it is finished."""
        return self.directory / "parts" / digest(str(path.relative_to(self.directory)))[:24]

    def probe(self, block: str, row: str, seed: int) -> Path:
        """Where accuracies after each epoch are kept until the training is finished."""
        return self.directory / "probes" / f"{slug(block)}-{slug(row)}-seed{seed}.json"

    def check_data(self, name: str, fingerprint: str) -> None:
        """Keep which images are called `name`, and raise if they were others before.

        Raises:
            ValueError: they were; the message starts with `data`.
            OSError: it cannot be written.
        """
        path = self.directory / "data.json"
        kept = self.read(path) or {}
        if kept.get(name, fingerprint) != fingerprint:
            raise ValueError(
                f"data: {name} are other images than those that {self.directory} was begun with: give those, or name "
                "another --run-dir"
            )
        if name not in kept:
            with replacing(path, durable=True) as temporary:
                temporary.write_text(json.dumps({**kept, name: fingerprint}, indent=1) + "\n", encoding="utf-8")

    def read(self, path: Path) -> dict[str, Any] | None:
        """A finished cell; `None` if it is not finished, or not readable: then it is made anew."""
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, path: Path, cell: Mapping[str, object]) -> None:
        """Keep a finished cell.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=True) as temporary:
            temporary.write_text(json.dumps(strict(cell), indent=1, allow_nan=False) + "\n", encoding="utf-8")
