"""The compiled module (csrc/binding.cpp). Pointers and streams are plain integers."""

from typing import Any, Protocol

class Solve:
    batch: int
    n: int
    ld: int
    restart: int
    max_iters: int
    dtype: int
    orthogonalization: int
    device: int
    threads: int
    basis_dtype: int
    basis_exponent: int
    update_rows: int
    update_ld: int
    b: int
    x: int
    candidate: int
    direction: int
    basis: int
    chunk_shift: int
    update: int
    r: int
    rotations: int
    inverse: int
    g: int
    estimates: int
    hessenberg: int
    rtol: int
    atol: int
    systems: int
    active: int
    scratch: int
    def __init__(self) -> None: ...
    def set_chunk(self, chunk: int, address: int) -> None: ...

class Launchers(Protocol):
    def scratch_bytes(self, solve: Solve) -> int: ...
    def begin(self, solve: Solve, ax: int, stream: int) -> None: ...
    def step(self, solve: Solve, j: int, w: int, stream: int) -> None: ...
    def finish(self, solve: Solve, preconditioned: bool, stream: int) -> None: ...
    def correct(self, solve: Solve, z: int, stream: int) -> None: ...
    def close(self, solve: Solve, ax: int, stop: bool, stream: int) -> None: ...

class CpuLaunchers(Launchers, Protocol):
    def dense_cycle(self, solve: Solve, matrices: int, out: int, row_stride: int, matrix_stride: int) -> int: ...
    def matvec(
        self,
        matrices: int,
        v: int,
        out: int,
        batch: int,
        n: int,
        row_stride: int,
        matrix_stride: int,
        dtype: int,
        threads: int,
    ) -> None: ...

class CudaLaunchers(Launchers, Protocol):
    """A build without CUDA has no attribute `cuda`."""

    def runtime_version(self) -> int: ...
    def driver_version(self) -> int: ...
    def force_variant(self, variant: int, blocks: int = 0) -> None: ...
    def plan(self, solve: Solve) -> tuple[int, int]: ...

SYSTEM: dict[str, int]
cpu: CpuLaunchers
cuda: CudaLaunchers

def build_info() -> dict[str, Any]: ...
