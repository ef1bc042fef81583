"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_writable", "leftovers", "replacing"]


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it becomes `path` at the end, and is removed if anything fails.

    Args:
        path: the file to write or replace.
        durable: at the end content and name are on the disk, so that neither is lost when the power is.
    """
    temporary = _beside(path)
    try:
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _flush(path.parent)


def leftovers(path: Path) -> list[Path]:
    """Temporary files for `path` (whose name may be a pattern) of processes that were killed while they wrote."""
    return list(path.parent.glob(f".{path.name}.*.tmp"))


def check_writable(path: Path) -> None:
    """Raise `OSError` with a reason unless a file can be written to `path`; leaves nothing behind."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {path.parent}")
    probe = _beside(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to {path}: {error.strerror}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
