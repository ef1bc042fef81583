"""The directory of a training run: whose it is, and which checkpoints are in it.

    run.json                          what the run depends on; nothing else may be trained here
    checkpoint-00001234.safetensors   the newest two, number = updates made
    best.safetensors                  the network of the best validation so far
    model.safetensors                 the network at the end
    .lock                             held by the process that trains

There is no moment at which losing the process, the power or the space on the disk costs more than the steps since the
newest checkpoint: files are replaced whole, and only when their successors are on the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._files import leftovers, replacing
from ..evaluation.store import differences
from ..models.checkpoint import read
from .state import Learner, Progress, read_state, save_weights, write_state

__all__ = ["Best", "RunDirectory"]

_MANIFEST, _LOCK = "run.json", ".lock"
_CHECKPOINT = "checkpoint-{:08}.safetensors"
_KEPT = 2


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        step, epoch: after which.
        accuracy: robust accuracy, or clean accuracy if nothing attacked the images.
    """

    step: int
    epoch: int
    accuracy: float


class RunDirectory:
    """A directory that holds one run and is locked by this process; close it, or use it as a context manager.

    Args:
        directory: made if it does not exist.
        fingerprint: what the result of the run depends on, name by name.
        resume: continue the run that the directory holds, if it holds one.
        warn: called with a line about anything that was found damaged.

    Raises:
        ValueError: the directory holds another run, other files, this run without `resume`, or is in use; the message
            starts with `run_dir`.
        OSError: it cannot be made or written.
    """

    def __init__(
        self, directory: Path, fingerprint: Mapping[str, object], *, resume: bool, warn: Callable[[str], None]
    ) -> None:
        self.directory = directory
        self._warn = warn
        _refuse_foreign(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(directory)
        try:
            self._claim(fingerprint, resume)
        except BaseException:
            self.close()
            raise

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any], Progress] | None:
        """The newest checkpoint that is whole; `None` if none was written yet.

        Damaged ones are set aside as `*.damaged`.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        damaged: list[Path] = []
        reasons: list[str] = []
        for path in self._checkpoints():
            try:
                found = read_state(path)
            except (OSError, ValueError) as error:
                damaged.append(path)
                reasons.append(str(error))
                continue
            for other, reason in zip(damaged, reasons, strict=True):
                self._warn(f"{reason}: continuing from {path.name}")
                other.replace(other.with_name(other.name + ".damaged"))
            self._prune()
            return found
        if damaged:
            raise ValueError(f"run_dir: every checkpoint is damaged ({'; '.join(reasons)}): train in another directory")
        return None

    def save(self, learner: Learner, progress: Progress) -> None:
        """Write a checkpoint, then delete those that are too old.

        Raises:
            OSError, FloatingPointError: it cannot be written; the others stay.
        """
        path = self.directory / _CHECKPOINT.format(progress.step)
        with _explained(path):
            write_state(path, learner, progress)
        self._prune()

    def best(self) -> Best | None:
        """What the file of the best network says of it; `None` if there is none."""
        path = self.directory / "best.safetensors"
        if not path.is_file():
            return None
        try:
            _, notes = read(path)
            return Best(int(notes["step"]), int(notes["epoch"]), float(notes["accuracy"]))
        except (KeyError, OSError, ValueError) as error:
            self._warn(f"{path.name} cannot be read ({error}): the next validation replaces it")
            return None

    def save_best(self, model: nn.Module, best: Best, notes: Mapping[str, str]) -> None:
        """Replace the best network.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        path = self.directory / "best.safetensors"
        with _explained(path):
            # Every digit: it is compared with the accuracies to come, also after a resume.
            save_weights(model, path, {**notes, **{name: repr(value) for name, value in asdict(best).items()}})

    def save_result(self, model: nn.Module, notes: Mapping[str, str]) -> None:
        """Write the network at the end of the run.

        Raises:
            OSError: it cannot be written.
        """
        path = self.directory / "model.safetensors"
        with _explained(path):
            save_weights(model, path, dict(notes))

    def close(self) -> None:
        """Let others in."""
        os.close(self._lock)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self, fingerprint: Mapping[str, object], resume: bool) -> None:
        """Make the directory this run's, or make sure that it is; one in which nothing was saved may change hands."""
        manifest, wanted = self.directory / _MANIFEST, json.dumps(dict(fingerprint), indent=2)
        if manifest.is_file():
            differing = self._differing(manifest, json.loads(wanted))
            if differing and self._has_saved():
                unseeded = len(differing) == 1 and differing[0].startswith("weights")
                remedy = "call torch.manual_seed before the network is made, or " if unseeded else ""
                what = f"{self.directory} holds another run ({'; '.join(differing)})"
                raise ValueError(f"run_dir: {what}: {remedy}name another directory")
            if self._has_saved() and not resume:
                raise ValueError(
                    f"run_dir: {self.directory} holds this run already: continue it with --resume (resume=True), "
                    "or name another directory"
                )
        for path in leftovers(self.directory / "*"):
            path.unlink(missing_ok=True)
        with replacing(manifest, durable=True) as temporary:
            temporary.write_text(wanted + "\n", encoding="utf-8")

    def _differing(self, manifest: Path, fingerprint: Mapping[str, object]) -> list[str]:
        """What differs from the run that the directory is of."""
        try:
            kept = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"run_dir: {manifest} cannot be read, so whose it is is not known") from error
        if "objective" not in kept:
            raise ValueError(f"run_dir: {self.directory} holds something else than training: name another directory")
        return differences(kept, fingerprint)

    def _has_saved(self) -> bool:
        return any(".safetensors" in path.name for path in self.directory.iterdir() if not path.name.startswith("."))

    def _prune(self) -> None:
        """Delete the checkpoints that are too old."""
        for old in self._checkpoints()[_KEPT:]:
            old.unlink(missing_ok=True)

    def _checkpoints(self) -> list[Path]:
        """The newest first."""
        names = {path: re.fullmatch(r"checkpoint-(\d+)\.safetensors", path.name) for path in self.directory.iterdir()}
        steps = {path: int(match[1]) for path, match in names.items() if match}
        return sorted(steps, key=steps.__getitem__, reverse=True)


def _refuse_foreign(directory: Path) -> None:
    """Raise unless the directory holds a run, or nothing but what a process left that was killed while it made one."""
    if not directory.exists() or (directory / _MANIFEST).is_file():
        return
    if not directory.is_dir():
        raise ValueError(f"run_dir: {directory} is a file: name a directory")
    ours = {_LOCK, *(path.name for path in leftovers(directory / _MANIFEST))}
    if any(path.name not in ours for path in directory.iterdir()):
        raise ValueError(f"run_dir: {directory} holds files and no run: name an empty directory, or one to be made")


def _locked(directory: Path) -> int:
    """A descriptor that holds the lock of the directory; the system lets go of it when the process ends."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(f"run_dir: {directory} is in use: another process is training there") from error
    return descriptor


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say, in an error of the system, which file it is about and what is left."""
    try:
        yield
    except OSError as error:
        text = f"{error.strerror or error} (older checkpoints are intact: make room, then resume)"
        raise OSError(error.errno, text, str(path)) from error
