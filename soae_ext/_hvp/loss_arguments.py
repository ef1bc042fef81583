"""The arguments of a loss taken apart: what is a tensor, what belongs to one sample, what is constant."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from soae_ext._hvp.fingerprint import tensor_token

Args = tuple[Any, ...]


class LossArguments:
    """The arguments of a loss taken apart: tensors, which become inputs of the graph, and all the rest."""

    def __init__(self, args: Args, batch: int) -> None:
        self.tensors: list[Tensor] = []
        self.constants: dict[str, Any] = {}
        self.per_sample: list[bool] = []
        self._args = args
        for i, arg in enumerate(args):
            self._collect(f"argument {i}", arg, is_per_sample(arg, batch))

    def _collect(self, path: str, value: Any, per_sample: bool) -> None:
        if isinstance(value, Tensor):
            self.tensors.append(value.contiguous() if per_sample else value)
            self.per_sample.append(per_sample)
        elif isinstance(value, list | tuple):
            self.constants[path] = (type(value), len(value))
            for i, item in enumerate(value):
                self._collect(f"{path}[{i}]", item, False)
        elif isinstance(value, dict):
            self.constants[path] = (type(value), tuple(value))
            for key, item in value.items():
                self._collect(f"{path}[{key!r}]", item, False)
        else:
            self.constants[path] = value

    def specification(self) -> Hashable:
        """What the graph bakes in about the tensors, but for the number of samples."""
        tokens = [tensor_token(t[0] if each else t) for t, each in zip(self.tensors, self.per_sample, strict=True)]
        return (*tokens, *self.per_sample)

    def padded(self, size: int) -> list[Tensor]:
        """The tensors for a batch of ``size`` samples."""
        return [pad(t, size) if each else t for t, each in zip(self.tensors, self.per_sample, strict=True)]

    def rebuild(self, tensors: Sequence[Tensor]) -> Args:
        """The arguments with other tensors in the places of these."""
        remaining = iter(tensors)
        return tuple(self._replace(arg, remaining) for arg in self._args)

    def _replace(self, value: Any, tensors: Iterator[Tensor]) -> Any:
        if isinstance(value, Tensor):
            return next(tensors)
        if isinstance(value, dict):
            return type(value)((key, self._replace(item, tensors)) for key, item in value.items())
        if isinstance(value, list | tuple):
            items = [self._replace(item, tensors) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value


def is_per_sample(arg: Any, batch: int) -> bool:
    """Whether an argument of the loss has one entry per sample: a plain tensor, passed directly, of leading size B.

    Parameters, tensors that require grad and everything inside a list, tuple or dict are shared by the batch.
    """
    shared = not isinstance(arg, Tensor) or isinstance(arg, nn.Parameter) or arg.requires_grad
    return not shared and arg.dim() > 0 and arg.shape[0] == batch


def take(args: Args, index: Tensor, batch: int) -> Args:
    """The arguments for the samples ``index``."""
    return tuple(arg[index.to(arg.device)] if is_per_sample(arg, batch) else arg for arg in args)


def pad(tensor: Tensor, size: int) -> Tensor:
    """A batch of ``size`` samples: copies of the first one are appended."""
    missing = size - tensor.shape[0]
    return tensor if missing == 0 else torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])])
