"""Results of batches on disk, from which an interrupted evaluation continues."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, uint8

from .._files import replacing

__all__ = ["Store", "differences", "digest"]

_MANIFEST = "run.json"


def digest(*parts: object) -> str:
    """SHA-256 in hexadecimal of tensors (their values, shape and type) and of the text of anything else."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            # bfloat16 has no NumPy type, but bytes have.
            found.update(part.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().tobytes())
        else:
            found.update(str(part).encode())
        found.update(b"\0")
    return found.hexdigest()


class Store:
    """A directory with one safetensors file for every batch of every job of one run.

    A file appears whole or not at all, and carries a checksum of its content and the key of what was computed: what
    cannot be read, was damaged or was computed otherwise counts as missing.

    Args:
        directory: made if it does not exist.
        fingerprint: what the results of the run depend on, name by name; kept in the directory.
        fresh: drop the results of an earlier run that the directory holds.

    Raises:
        ValueError: the directory holds another run's results, or is no such directory.
        OSError: it cannot be made, read or written.
    """

    def __init__(self, directory: Path, fingerprint: Mapping[str, str | int | float | None], *, fresh: bool = False):
        self.directory = directory
        manifest = directory / _MANIFEST
        if directory.exists() and not manifest.is_file() and not _is_empty(directory):
            raise ValueError(f"{directory} is in the way and holds no results of a run; move it, or write elsewhere")
        if fresh and directory.is_dir():
            self.remove()
        if manifest.is_file():
            try:
                kept = json.loads(manifest.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{manifest} cannot be read; drop the results with --fresh") from error
            differing = differences(kept, fingerprint)
            if differing:
                raise ValueError(
                    f"{directory} holds the results of another run ({'; '.join(differing)}): "
                    "drop them with --fresh, or choose another --output"
                )
            return
        directory.mkdir(exist_ok=True)
        with replacing(manifest) as temporary:
            temporary.write_text(json.dumps(dict(fingerprint), indent=2) + "\n", encoding="utf-8")

    def load(self, job: str, batch: int, key: str) -> dict[str, Tensor] | None:
        """The tensors of one batch, or `None` unless they are there, whole, and were saved under the same `key`."""
        try:
            with safe_open(self._path(job, batch), framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no dict
        except (OSError, SafetensorError):
            return None
        whole = metadata.get("key") == key and metadata.get("sha256") == _checksum(tensors)
        return tensors if whole else None

    def save(self, job: str, batch: int, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of one batch.

        Raises:
            OSError: the disk is full, or the directory cannot be written.
        """
        path = self._path(job, batch)
        path.parent.mkdir(exist_ok=True)
        content = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with replacing(path) as temporary:
            temporary.write_bytes(serialize(content, {"key": key, "sha256": _checksum(content)}))

    def remove(self) -> None:
        """Delete the directory; the manifest last, so that an interrupted deletion leaves a directory of this run."""
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        shutil.rmtree(self.directory)

    def _path(self, job: str, batch: int) -> Path:
        # Jobs that differ in case or in a character that file names lack must not share a folder.
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", job).strip("-.")[:80]
        return self.directory / f"{readable}-{digest(job)[:12]}" / f"{batch:06}.safetensors"


def _is_empty(directory: Path) -> bool:
    """Whether there is nothing in it but what a process left that was killed while it wrote the manifest."""
    return directory.is_dir() and all(re.fullmatch(rf"\.{_MANIFEST}\.\d+\.tmp", p.name) for p in directory.iterdir())


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return digest(*(part for name in sorted(tensors) for part in (name, tensors[name])))


def differences(kept: Mapping[str, object], fingerprint: Mapping[str, object]) -> list[str]:
    """What differs between the fingerprint of a run that was kept and that of this one, in words."""
    return [
        f"{name}: {_short(kept.get(name))} there, {_short(fingerprint.get(name))} here"
        for name in dict.fromkeys([*fingerprint, *kept])
        if kept.get(name) != fingerprint.get(name)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
