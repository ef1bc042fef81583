"""How many images may be attacked at once: `batch_size="auto"`, and the batches of the command line.

A network's memory for one image is taken from one forward pass: the bytes of everything that its operations return.
A gradient needs no more than `_PASSES` times that: the activations that the backward pass keeps, their gradients, and
as much again for what the operations use inside. Nothing is freed in this count, so it is an upper bound, usually a
generous one. On a CPU the available memory is the operating system's figure, or what the control group of a container
leaves if that is less; on CUDA it is what the driver has free and PyTorch holds unused. Half of it is planned for, and
never more than `largest_plan`: beyond a few dozen images a CPU gains nothing from larger batches.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["available_bytes", "gradient_bytes", "largest_plan"]

_PASSES = 3
# Where the system does not say what is free.
_UNKNOWN = 2**30
# With the interpreter and its libraries, below 4 GiB.
_CPU_PLAN = 3 * 2**30


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]  # no types in torch
    """Adds up the bytes of the tensors that operations return; a view of what an operation was given adds nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # no types in torch
        self.bytes: int = 0
        self._alive: list[Tensor] = []  # so that no address is used twice
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            if _address(tensor) not in self._counted | given:
                self._counted.add(_address(tensor))
                self._alive.append(tensor)
                self.bytes += tensor.untyped_storage().nbytes()
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def gradient_bytes(model: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Bytes that one gradient of `model` at one image `(1, *shape)` takes at most; costs one forward pass."""
    with torch.no_grad(), _Outputs() as outputs:
        model(image)
    return _PASSES * int(outputs.bytes)


def largest_plan(device: torch.device) -> int:
    """Memory in bytes that a batch may be planned to take on `device` at most, whatever is free.

    A constant of the machine, so that batches chosen by it are the same in every run: half the memory of a GPU, and
    3 GiB on a CPU.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 2
    return _CPU_PLAN


def available_bytes(device: torch.device) -> int:
    """Memory in bytes that can be had on `device` now."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [amount for amount in (_system_bytes(), _container_bytes()) if amount is not None]
    return min(found, default=_UNKNOWN)


def _system_bytes(file: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        return max(limit - int((folder / "memory.current").read_text(encoding="ascii")), 0)
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return None
