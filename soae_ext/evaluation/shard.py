"""One evaluation by several processes, as `torchrun` starts them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

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
        return self.agree(lambda: value)

    def agree(self, work: Callable[[], T]) -> list[T]:
        """What `work()` gives in all processes, in the order of their ranks; every process must call it.

        If it fails in some, the failure of the first of them is raised in all: none goes on alone.

        Raises:
            FailedElsewhere: as :meth:`gather` does.
        """
        if self.world == 1:
            return [work()]
        failure: Exception | None = None
        value: T | None = None
        try:
            value = work()
        except Exception as error:
            failure = _portable(error)
        messages = self._exchange((failure, value))
        for found, _ in messages:
            if found is not None:
                raise found from failure
        return [part for _, part in messages]

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
            if self.world > 1:
                self._exchange((FailedElsewhere(str(error) or type(error).__name__), None))
            raise
        self.gather(None)

    def _exchange(self, message: tuple[Exception | None, T | None]) -> list[tuple[Exception | None, T]]:
        messages: list[Any] = [None] * self.world
        dist.all_gather_object(messages, message)
        return messages


def _portable(error: Exception) -> Exception:
    """`error`, or one like it that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of the user's raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
