"""A Krylov basis that grows with the steps: a long restart costs the memory of the vectors that are written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rows from which on a basis is cut in chunks: below, one allocation is no loss and every row is where it is expected.
LONG = 128
# A chunk holds 2^SHIFT rows, or more where there would be more chunks than a solve has places for (csrc/gmres.h).
SHIFT = 5
MOST_CHUNKS = 128

Take = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


class GrowingBasis:
    """Chunks of a basis `(batch, rows, ld)`, each taken from the workspace when its first row is to be written."""

    def __init__(self, take: Take, batch: int, rows: int, ld: int, dtype: torch.dtype) -> None:
        self.take, self.batch, self.rows, self.ld, self.dtype = take, batch, rows, ld, dtype
        self.shift = SHIFT
        while rows > MOST_CHUNKS << self.shift:
            self.shift += 1
        self.made = 0

    def grow(self) -> Tensor:
        """The next chunk, `(batch, rows, ld)`."""
        rows = min(1 << self.shift, self.rows - (self.made << self.shift))
        name = f"basis{self.made}" if self.made else "basis"
        self.made += 1
        return self.take(name, (self.batch, rows, self.ld), self.dtype)

    def lacks(self, row: int) -> bool:
        """Whether there is no memory for a row yet."""
        return row >> self.shift >= self.made
