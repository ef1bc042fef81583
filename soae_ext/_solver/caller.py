"""Who speaks in an error message."""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """A public function, and what it calls the batch of vectors that it works on."""

    function: str
    batch: str


GMRES = Caller("gmres", "b")
