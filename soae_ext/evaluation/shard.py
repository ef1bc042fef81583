"""One evaluation by several processes, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

__all__ = ["FailedElsewhere", "Shard"]

T = TypeVar("T")

# A process waits for the others while they work on their batches; torchrun ends all when one of them dies.
_PATIENCE = timedelta(days=7)


class FailedElsewhere(Exception):
    """Another process of the evaluation failed; the message is what it reports."""


@dataclass(frozen=True)
class Shard:
    """The part of the work that is this process's: number `rank` of `world`.

    Batches are dealt round-robin, and results, which are on the CPU, are exchanged through gloo, also where the
    processes compute on GPUs. The default is the whole work.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Shard:
        """The shard that `torchrun` gave this process, connected to the others; the whole work without `torchrun`.

        Connects once per process: further calls return the same part.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or "RANK" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leader(self) -> bool:
        """Whether this is the process that prints and writes the reports."""
        return self.rank == 0

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine, and of its GPU."""
        return int(os.environ.get("LOCAL_RANK", "0")) if self.world > 1 else 0

    def mine(self, count: int) -> range:
        """Which of `count` batches are this process's."""
        return range(self.rank, count, self.world)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks; every process must call it.

        Raises:
            FailedElsewhere: another process left the block of :meth:`together` with an exception instead.
        """
        if self.world == 1:
            return [value]
        messages: list[tuple[str | None, T | None]] = [(None, None)] * self.world
        dist.all_gather_object(messages, (None, value))
        for failure, _ in messages:
            if failure is not None:
                raise FailedElsewhere(failure)
        return [part for _, part in messages]  # type: ignore[misc]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes leave together: if one fails, the others get `FailedElsewhere` where they wait.

        The block ends with a meeting, so a failure after the last exchange is noticed as well.
        """
        try:
            yield
        except FailedElsewhere:
            raise
        except Exception as error:
            self._announce(str(error) or type(error).__name__)
            raise
        self.gather(None)

    def _announce(self, failure: str) -> None:
        if self.world > 1:
            dist.all_gather_object([None] * self.world, (failure, None))
