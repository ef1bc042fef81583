"""Being asked to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """While this context manager is entered, SIGTERM and SIGINT only set `received`, so that a step can be finished.

    So does SIGHUP, which a terminal that is closed sends, unless it is ignored already (`nohup`).

    A second SIGINT interrupts at once where `impatient`; several processes get several signals for one Ctrl-C, and
    have to wait for each other. Outside of the main thread, and if not `enabled`, signals do what they did.
    """

    def __init__(self, *, enabled: bool = True, impatient: bool = True) -> None:
        self.received = False
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._impatient = impatient
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if self._enabled:
            numbers = [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            self._before = {each: signal.signal(each, self._receive) for each in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if number == signal.SIGINT and self._impatient:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
