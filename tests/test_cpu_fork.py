"""The CPU kernels in a child of a process that ran them on several threads."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch

from soae_ext import _native
from tests.cpu_harness import CpuSolve, diagonal
from tests.problems import vectors

if _native.extension is None:
    pytest.skip(f"the compiled extension is missing: {_native.missing}", allow_module_level=True)
_C: Any = _native.extension


def _child_is_alive_and_right(solve: CpuSolve, w: np.ndarray, expected: np.ndarray) -> bool:
    """Takes step 0 in a forked child; False if the child hangs, dies or computes something else."""
    direction = solve.direction.numpy()
    child = os.fork()
    if child == 0:  # only launchers and NumPy: torch's own thread pool is as dead as ours would be
        _C.cpu.step(solve.solve, 0, w.ctypes.data, 0)
        os._exit(0 if np.array_equal(direction, expected) else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            return code == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(("batch", "n"), [(16, 5000), (1, 50000)])
def test_a_forked_child_does_not_wait_for_its_parents_threads(batch: int, n: int) -> None:
    b, good = vectors(batch, n, seed=18), diagonal(n, torch.float64)
    solve, ahead = (CpuSolve(b, restart=4, threads=2) for _ in range(2))
    for s in (solve, ahead):
        s.begin(good)
    w = good(solve.direction)
    ahead.step(0, w)  # the thread pool exists now

    assert _child_is_alive_and_right(solve, w.numpy(), ahead.direction.numpy())


class _Solutions(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        b = vectors(4, 9000, seed=index)
        return CpuSolve(b, restart=4, rtol=1e-5, threads=2).run(diagonal(9000, torch.float64)).x


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_data_loader_workers_can_solve() -> None:
    here = [_Solutions()[i] for i in range(4)]

    there = torch.utils.data.DataLoader(
        _Solutions(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
    )

    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
