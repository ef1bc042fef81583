"""How much memory a solve may take."""

from __future__ import annotations

from pathlib import Path

import torch

SHARE = 0.8  # of what is available


def available_bytes(device: torch.device) -> int | None:
    """What could be allocated now; `None` where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    told = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * told["MemAvailable"] if "MemAvailable" in told else None


class Guard:
    """Lets solves through until `limit` bytes are spoken for; `limit=None` lets all through."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    @classmethod
    def of(cls, device: torch.device, gib: float | None, processes: int = 1) -> Guard:
        """`gib` if given, else a share of what is available, divided among `processes` on this device."""
        if gib is not None:
            return cls(int(gib * 2**30 / processes))
        found = available_bytes(device)
        return cls(None if found is None else int(SHARE * found / processes))

    def refusal(self, needed: int) -> str | None:
        """Why a solve that needs so many bytes is left out; `None` if it fits."""
        if self.limit is None or needed <= self.limit:
            return None
        return f"not measured: needs {needed / 2**30:.2f} GiB, {self.limit / 2**30:.2f} GiB may be used"
