"""Memory that outlives a solve, and the lock that keeps two solves out of it at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_ALIGNMENT = 256  # bytes: what cudaMalloc gives, and enough for any vector load


class Workspace:
    """Scratch memory that consecutive solves share.

    Pass one `Workspace()` to many calls of `gmres` and `arnoldi`, and each of them reuses what the ones before
    allocated: buffers grow to fit and never shrink, and a second solve of equal size allocates its result tensors only
    (on a compiled backend). Results never alias it. One solve at a time: nested or concurrent use raises
    `RuntimeError`.

    Args:
        graphs: on CUDA, `gmres` captures one step, A and M included, in a CUDA graph in every solve, and replays it for
            all iterations but the first: one launch instead of as many as A makes. A and M are then called twice
            in Python, and count as often as they are replayed. They must put all of their work on the current stream,
            always the same work on the same memory, and must not synchronise. Steps are launched one by one with a
            callback, `flexible=True` or `compact=True`.
    """

    def __init__(self, *, graphs: bool = False) -> None:
        self.graphs = graphs
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Workspace({self.nbytes / 2**20:.1f} MiB)"

    @property
    def nbytes(self) -> int:
        """Bytes held at present."""
        return sum(buffer.numel() for buffer in self._buffers.values())

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous tensor of that shape, uninitialised or holding what its last user left; 256-byte aligned."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get((name, device))
        if buffer is None or buffer.numel() < size + _ALIGNMENT:
            self._buffers.pop((name, device), None)  # released before the larger one is taken
            buffer = None
            with torch.inference_mode(False):  # an inference tensor could not be written to outside inference mode
                buffer = torch.empty(size + _ALIGNMENT, dtype=torch.uint8, device=device)
            if buffer.data_ptr() == 0:
                raise RuntimeError("workspace: tensors have no memory here (FakeTensorMode): call it with real tensors")
            self._buffers[name, device] = buffer
        start = -buffer.data_ptr() % _ALIGNMENT
        return buffer[start : start + size].view(dtype).view(tuple(shape))

    @contextmanager
    def exclusive(self, function: str = "gmres") -> Iterator[None]:
        """Held for the length of one solve by `function`."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                f"{function}: workspace: already used by another solve (nested or in another thread): give each its "
                "own Workspace()"
            )
        try:
            yield
        finally:
            self._lock.release()
