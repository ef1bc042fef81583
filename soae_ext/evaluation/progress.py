"""Progress bars on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """One bar that counts images; a context manager.

    Args:
        total: images of all jobs together; `None`: the bar begins anew with every job.
        shown: whether there is a bar at all.
    """

    def __init__(self, total: int | None = None, *, shown: bool = True) -> None:
        self._anew = total is None
        self._bar: Any = tqdm(total=total, unit="image", file=sys.stderr, dynamic_ncols=True, disable=not shown)

    def start(self, name: str, images: int) -> None:
        """A job begins that will process this number of images."""
        if self._anew:
            self._bar.reset(total=images)
        self._bar.set_description(name)

    def advance(self, images: int) -> None:
        """This number of images is done."""
        self._bar.update(images)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
