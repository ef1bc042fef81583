"""What must survive of a training run, and the files that it survives in.

Learning rate, order of the images, augmentation and every random number are functions of (seed, step), so that the
number of the step stands for the states of scheduler, data loader and generators. What is left are the tensors of the
network, its average and the optimizer, and what was measured so far.

A checkpoint is one safetensors file, never a pickle, with a SHA-256 of all of its content. It is on the disk, whole,
before anything that it replaces goes away.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .._files import replacing
from ..evaluation.store import digest
from ..models import save_checkpoint
from ..models.base import Classifier
from ..models.checkpoint import read
from .ema import MovingAverage
from .sums import Row, Sums

__all__ = ["Learner", "Progress", "read_state", "save_weights", "write_state"]

_FORMAT = "1"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: updates made.
        epochs: rows of the log about the epochs that were finished and validated. A checkpoint may stand between the
            last update of an epoch and its validation.
        gradients: spent on all images.
        seconds: spent in steps.
        row, epoch: what was measured since the last row of the log, and in the epoch.
    """

    step: int = 0
    epochs: list[Row] = field(default_factory=list)
    gradients: int = 0
    seconds: float = 0.0
    row: Sums = field(default_factory=Sums)
    epoch: Sums = field(default_factory=Sums)

    def add(self, sums: Sums) -> None:
        """Count one more step."""
        self.step += 1
        self.gradients += int(sums.gradients)
        self.seconds += sums.seconds
        self.row += sums
        self.epoch += sums

    def as_json(self) -> dict[str, Any]:
        """Its fields; JSON keeps every digit of a float."""
        return asdict(self)

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Progress:
        """What :meth:`as_json` gave."""
        return cls(**{**values, "row": Sums(**values["row"]), "epoch": Sums(**values["epoch"])})


@dataclass
class Learner:
    """What learns: a network, its optimizer and its moving average, if there is one.

    Attributes:
        unbounded: names of buffers that are not finite from the start, such as masks.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None = None
    unbounded: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        buffers = self.model.named_buffers()
        self.unbounded = frozenset(name for name, value in buffers if not bool(value.isfinite().all()))

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return self.model if self.average is None else self.average.model

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, as copies on the CPU, and the numbers of the optimizer that are none."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.model.state_dict().items()}
        numbers: dict[str, Any] = {}
        for row, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                where = tensors if isinstance(value, Tensor) else numbers
                where[f"optimizer/{row}/{name}"] = value
        copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        return copies, numbers

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.model.load_state_dict(_below("model", tensors))
        if self.average is not None:
            self.average.model.load_state_dict(_below("average", tensors))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**_below("optimizer", tensors), **_below("optimizer", numbers)}.items():
            row, _, key = name.partition("/")
            state.setdefault(int(row), {})[key] = _laid_out(value, parameters[int(row)])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def write_state(path: Path, learner: Learner, progress: Progress) -> None:
    """Write a checkpoint; what was at `path` is replaced when the new file is on the disk.

    Raises:
        FloatingPointError: something in it is NaN or infinite; nothing is written.
        OSError: it cannot be written, e.g. because the disk is full; what was there before stays.
    """
    tensors, numbers = learner.state()
    judged = {name: value for name, value in tensors.items() if name.partition("/")[2] not in learner.unbounded}
    broken = [name for name, value in judged.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise FloatingPointError(f"{broken[0]} is not finite after step {progress.step}")
    content = json.dumps({"progress": progress.as_json(), "numbers": numbers})
    metadata = {"format": _FORMAT, "content": content, "sha256": _checksum(tensors, content)}
    with replacing(path, durable=True) as temporary:
        temporary.write_bytes(serialize(tensors, metadata))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], Progress]:
    """Tensors, numbers and progress of a checkpoint.

    Raises:
        OSError: it cannot be read.
        ValueError: it is truncated or damaged.
    """
    tensors, metadata = read(path)
    content = metadata.get("content", "")
    if metadata.get("format") != _FORMAT or metadata.get("sha256") != _checksum(tensors, content):
        raise ValueError(f"{path} is damaged, or no checkpoint of a training run")
    values = json.loads(content)
    return tensors, values["numbers"], Progress.of_json(values["progress"])


def save_weights(model: nn.Module, path: Path, notes: dict[str, str]) -> None:
    """Write a network as :func:`soae_ext.models.load_model` takes it, with `notes` as metadata.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    if isinstance(model, Classifier):
        save_checkpoint(model, path, notes)
        return
    # Copies, as a file cannot hold parameters that share their memory.
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
    with replacing(path, durable=True) as temporary:
        temporary.write_bytes(serialize(tensors, notes))


def _checksum(tensors: dict[str, Tensor], content: str) -> str:
    return digest(content, *(part for name in sorted(tensors) for part in (name, tensors[name])))


def _below(part: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(f"{part}/"): value for name, value in values.items() if name.startswith(f"{part}/")}


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """A copy in the memory layout of its parameter, e.g. channels last, in which the optimizer is fast."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape and value.ndim else value.clone()
