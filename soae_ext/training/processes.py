"""The processes that train together, each on its part of every batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..evaluation.shard import Shard

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Processes", "make_fabric"]

T = TypeVar("T")


def make_fabric(device: str = "cpu", precision: str = "32-true") -> Fabric:
    """Lightning Fabric on one device, or on one for each of the processes that `torchrun` started.

    Args:
        device: `"cpu"`, `"cuda"`, or, in a single process, one GPU such as `"cuda:1"`.
        precision: of the recipe.

    Raises:
        ImportError: lightning-fabric is not installed.
        ValueError: there is no such device; the message starts with `device`.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise ImportError(
            'training needs lightning-fabric: pip install lightning-fabric, or pip install ".[full]"'
        ) from error
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ValueError(f"device: expected cpu, cuda or cuda:NUMBER, got '{device}'")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: '{device}', but torch sees {torch.cuda.device_count()} CUDA GPUs")
    local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    options: dict[str, Any] = {"accelerator": kind, "precision": precision}
    if world > 1:
        options |= {"strategy": "ddp", "devices": local, "num_nodes": world // local}
    else:
        options["devices"] = [int(number)] if number and kind == "cuda" else 1
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every process
    return Fabric(**options)


class Processes:
    """What the processes do together.

    Networks are not wrapped in DistributedDataParallel: objectives run a network several times, and differentiate it
    twice, before a step is complete, which its hooks do not allow for. Gradients are averaged here when they are
    complete, in one message, which is what it does with a network that fits one of its buckets.

    Args:
        fabric: launched if it is not yet.
    """

    def __init__(self, fabric: Fabric) -> None:
        fabric.launch()
        self.fabric = fabric
        self.device = fabric.device
        self.shard = Shard(fabric.global_rank, fabric.world_size)

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.shard.leader

    def agree(self, work: Callable[[], T]) -> list[T]:
        """What `work()` gives in all processes; if it fails in one, all of them raise its error."""
        return self.shard.agree(work)

    def lead(self, work: Callable[[], T]) -> T:
        """What `work()` gives in the leader, which alone does it; if it fails, all processes raise its error."""
        done: list[T] = []
        self.agree(lambda: done.append(work()) if self.leader else None)
        if self.shard.world == 1:
            return done[0]
        return self.fabric.broadcast(done[0] if self.leader else cast(T, None))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, in double precision."""
        if self.shard.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors by their means over the processes, with one message for each type."""
        if self.shard.world == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.is_floating_point():
                kinds.setdefault(tensor.dtype, []).append(tensor)
        for group in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            parts = torch.split(flat.div_(self.shard.world), [tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def equalize(self, model: nn.Module) -> None:
        """Give all processes the parameters and buffers that the leader has."""
        if self.shard.world > 1:
            for value in model.state_dict().values():
                part = value.contiguous()
                dist.broadcast(part, 0)
                value.copy_(part)
