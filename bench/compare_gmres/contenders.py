"""Who takes part, and the subprocess that speaks for each: bench/peers/protocol.py is the other side."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent.parent
OURS = "this project"


@dataclass(frozen=True)
class Contender:
    name: str
    script: str
    peer: str | None = None  # folder of its environment; None is this interpreter
    variant: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")

    def python(self, peers: Path) -> Path:
        return Path(sys.executable) if self.peer is None else peers / self.peer / "bin" / "python"


CONTENDERS = (
    Contender(OURS, "soae_gmres.py", variant="fused"),
    Contender("PyTorch, CGS2", "soae_gmres.py", variant="pytorch cgs2"),
    Contender("PyTorch, MGS", "soae_gmres.py", variant="pytorch mgs"),
    Contender("SciPy, loop", "scipy_gmres.py", "scipy", devices=("cpu",)),
    Contender("JAX, batched", "jax_gmres.py", "jax", "batched"),
    Contender("JAX, incremental", "jax_gmres.py", "jax", "incremental"),
    Contender("Warp", "warp_gmres.py", "warp"),
    Contender("CoLA", "cola_gmres.py", "cola"),
    Contender("xitorch", "xitorch_gmres.py", "xitorch"),
    Contender("CuPy, loop", "cupy_gmres.py", "cupy", devices=("cuda",)),
)


class PeerError(RuntimeError):
    """The runner answered with an error, died, or took too long."""


def missing(contender: Contender, peers: Path, device: str) -> str | None:
    """Why it cannot take part, or None."""
    if device not in contender.devices:
        return f"runs on {' and '.join(contender.devices)} only"
    if contender.python(peers).exists():
        return None
    reason = peers / f"{contender.peer}.failed"
    if reason.exists():
        return f"not installed: {reason.read_text().strip()}"
    return "not installed: run bench/setup_peers.sh"


class Peer:
    """A running contender. A context manager; `ask` raises `PeerError`."""

    def __init__(self, contender: Contender, peers: Path, device: str, threads: int, log: Path) -> None:
        self.contender, self.log = contender, log.open("ab")
        environment = {**os.environ, "COMPARE_DEVICE": device, "PYTHONUNBUFFERED": "1"}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
        environment["JAX_PLATFORMS"] = device
        environment["WARP_CACHE_PATH"] = str(peers / "warp" / "kernels")
        self.process = subprocess.Popen(
            [str(contender.python(peers)), str(BENCH / "peers" / contender.script), contender.variant],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment, cwd=BENCH.parent,
        )  # fmt: skip
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.pending = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()  # the runner's loop ends with its input
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.selector.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()

    def ask(self, verb: str, limit: float = 60.0, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps({"do": verb, **arguments}) + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerError("its process ended") from None
        reply: dict[str, Any] = json.loads(self._line(verb, limit))
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def _line(self, verb: str, limit: float) -> bytes:
        deadline = time.monotonic() + limit
        while b"\n" not in self.pending:
            if not self.selector.select(max(0.0, deadline - time.monotonic())):
                self.process.kill()
                raise PeerError(f"{verb} took more than {limit:.0f} s")
            assert self.process.stdout is not None
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise PeerError(f"its process ended with status {self.process.wait()}")
            self.pending += chunk
        line, _, self.pending = self.pending.partition(b"\n")
        return line
