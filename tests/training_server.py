"""Trains in child processes that are killed, on request; a server, so that torch is imported once.

Every line on stdin is a request {"run_dir", "operation"?, "seconds"?, "step"?, "full"?}: the child is killed just
before its file operation of that number in the directory, or after so many seconds, or gets SIGTERM after that step;
"full" makes the disk full from that operation on. The answer is a line {"status", "operations", "output"}.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import lightning_fabric  # noqa: F401 - here, so that no child has to
import torch

from tests.training_runs import train

torch.set_num_threads(1)


class Faults:
    """Counts the file operations in a directory and does something at one of them."""

    def __init__(self, request: dict) -> None:
        self.request, self.count = request, 0
        self.write, self.fsync = Path.write_bytes, os.fsync
        Path.write_bytes = lambda path, content: self.in_halves(path, content)
        os.fsync = lambda descriptor: (self.operation(), self.fsync(descriptor))[1]
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        if (writes or event in ("os.rename", "os.remove")) and str(arguments[0]).startswith(self.request["run_dir"]):
            self.operation()

    def operation(self) -> None:
        self.count += 1
        if self.count == self.request.get("operation"):
            os.kill(os.getpid(), signal.SIGKILL)

    def in_halves(self, path: Path, content: bytes) -> None:
        self.write(path, content[: len(content) // 2])
        self.operation()
        if self.count >= self.request.get("full", 1 << 60):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.write(path, content)


def child(request: dict, channel: int) -> None:
    faults = Faults(request)
    lines: list[str] = []

    def progress(step: int, steps: int, row: dict) -> None:
        if step == request.get("step"):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        history = train(Path(request["run_dir"]), progress=progress, warn=lines.append)
        lines.append("finished" if history.finished else f"stopped after step {history.step}")
    except BaseException as error:
        lines.append(f"{type(error).__name__}: {error}")
    os.write(channel, json.dumps({"operations": faults.count, "output": lines}).encode())
    os._exit(0)


def answer(request: dict) -> dict:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        child(request, writer)
    os.close(writer)
    if "seconds" in request:
        time.sleep(request["seconds"])
        os.kill(process, signal.SIGKILL)  # it may have ended, but was not waited for: the number is still its own
    with os.fdopen(reader, "rb") as channel:
        said = channel.read()
    _, status = os.waitpid(process, 0)
    return {"status": os.waitstatus_to_exitcode(status), **(json.loads(said) if said else {})}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
