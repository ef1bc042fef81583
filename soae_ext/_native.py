"""The compiled backends: which of them there are, and the engine that hands them pointers."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from soae_ext._solver import basis as basis_memory
from soae_ext._solver.basis import GrowingBasis
from soae_ext._solver.caller import GMRES, Caller
from soae_ext._solver.driver import ACTIVE, Engine, Problem
from soae_ext._solver.operators import Dense, Operator

_REBUILD = "SOAE_CUDA=on pip install --force-reinstall --no-cache-dir ."
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_ORTHOGONALIZATIONS = {"mgs": 0, "cgs2": 1}
_LINE = 128  # bytes: basis rows are padded to whole cache lines
_ITS_OWN_STEP = -1  # a step's number, for kernels that are captured once: every system knows where it stands
_LAG = 2  # how many steps late convergence is read on CUDA, so that the host never waits for the newest

try:
    extension: ModuleType | None = importlib.import_module("soae_ext._C")
    missing = ""
except ImportError as error:
    extension, missing = None, str(error)

# Compiled modules that run CUDA sources on host memory, by backend name. Tests add the SIMT build.
host_modules: dict[str, ModuleType] = {}
_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)


def _remedy(kind: str) -> str:
    if extension is None:
        return f"the compiled extension is missing ({missing}). Install it with: pip install ."
    return f"soae_ext was built without CUDA (no nvcc at install). Reinstall with {_REBUILD}"


def _padded(n: int, dtype: torch.dtype) -> int:
    line = _LINE // dtype.itemsize
    return -(-n // line) * line


def choose(backend: str, device: torch.device, caller: Caller = GMRES) -> str:
    """The backend that serves tensors on `device`: `"cuda"`, `"cpu"`, `"reference"` or the name of a host module.

    Raises `ValueError` for an unknown name and `RuntimeError` for one that is missing or does not fit the device.
    """
    function, b = caller
    known = ["auto", "cuda", "cpu", "reference", *host_modules]
    if backend not in known:
        raise ValueError(f"{function}: backend: unknown {backend!r}: use one of {', '.join(map(repr, known))}")
    if backend == "reference":
        return backend
    if backend in host_modules:
        if device.type != "cpu":
            raise RuntimeError(f"{function}: backend: {backend!r} works on CPU tensors, {b} is on {device}")
        return backend
    if backend not in ("auto", device.type):
        raise RuntimeError(
            f"{function}: backend: {backend!r} does not fit {b} on {device}: move {b} and A, or use backend='auto'"
        )
    wanted = device.type
    if extension is not None and hasattr(extension, wanted):
        return wanted
    if backend == "auto":
        reason = _remedy(wanted) if wanted in ("cpu", "cuda") else f"there are no kernels for {device.type} tensors."
        _warn_once(f"{function} runs the slower pure-PyTorch reference on {device.type} tensors: {reason}")
        return "reference"
    raise RuntimeError(f"{function}: backend: {backend!r} is not available: {_remedy(wanted)}")


def with_native_products(problem: Problem, backend: str) -> Problem:
    """The problem with kernels in place of torch for products with a dense matrix per system, where there are any."""
    if backend != "cpu":
        return problem
    A = _native_product(problem.A, problem.b)
    M = None if problem.M is None else _native_product(problem.M, problem.b)
    alone = M is None and problem.callback is None
    return replace(problem, A=A, M=M, sweep=A.cycle if alone and isinstance(A, _DenseProduct) else None)


def _native_product(operator: Operator, b: Tensor) -> Operator:
    if not isinstance(operator, Dense):
        return operator
    matrix, batch = operator.matrix, b.shape[0]
    if matrix.ndim == 2 and batch == 1:
        matrix = matrix[None]
    # A shared matrix is read once for the whole batch by torch; a lazily negated one has the wrong bits in memory.
    readable = matrix.ndim == 3 and (matrix.stride(2) == 1 or matrix.shape[2] == 1) and not matrix.is_neg()
    return _DenseProduct(matrix, b) if readable else operator


class _DenseProduct:
    """v -> A_i v_i by the CPU kernel, into the same memory at every call."""

    def __init__(self, matrix: Tensor, b: Tensor) -> None:
        assert extension is not None
        self.matrix, self.out = matrix, torch.empty(b.shape, dtype=b.dtype)
        self.kernel = extension.cpu.matvec

    def __call__(self, v: Tensor) -> Tensor:
        matrix, out = self.matrix, self.out
        batch, n, _ = matrix.shape
        self.kernel(
            matrix.data_ptr(), v.data_ptr(), out.data_ptr(), batch, n,
            matrix.stride(1), matrix.stride(0), _DTYPES[out.dtype], torch.get_num_threads(),
        )  # fmt: skip
        return out

    def cycle(self, engine: Engine) -> int:
        """All steps of a cycle in one native call; how many they were."""
        assert isinstance(engine, NativeEngine)
        matrix = self.matrix
        taken: int = engine.launch.dense_cycle(
            engine.solve, matrix.data_ptr(), self.out.data_ptr(), matrix.stride(1), matrix.stride(0)
        )
        return taken


class NativeEngine:
    """Arrays and launches of one solve on a compiled backend; see `driver.Engine` and `csrc/gmres.h`."""

    def __init__(self, problem: Problem, backend: str) -> None:
        self.problem = problem
        if backend in host_modules:
            module = host_modules[backend]
            self.launch = module.cuda
        else:
            assert extension is not None
            module = extension
            self.launch = getattr(module, backend)
        b = problem.b
        self.device, self.shape = b.device, b.shape
        self.x = torch.zeros(b.shape, dtype=b.dtype, device=b.device)
        self.grows = backend != "cpu"  # the CPU's memory is there when it is written to
        self._allocate(module)
        self.stream = torch.cuda.current_stream(b.device).cuda_stream if b.is_cuda else 0
        self.poll = poll_for(self.active, self.outcome if problem.compact else None)
        self.capturable_step: Callable[[Tensor], None] | None = self._capturable_step if backend != "cpu" else None

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.problem.workspace.take(name, shape, dtype, self.device)

    def _allocate(self, module: ModuleType) -> None:
        problem, layout = self.problem, module.SYSTEM
        batch, n, m, dtype = problem.batch, problem.n, problem.restart, problem.b.dtype
        ld, image_ld = _padded(n, problem.storage), _padded(n, dtype)
        self.b = self._contiguous("b", problem.b)
        self.direction = self._take("direction", tuple(self.shape), dtype)
        candidate = self._take("candidate", (batch, n), dtype)
        self.growing: GrowingBasis | None = None
        if m + 1 > basis_memory.LONG and not problem.keeps_hessenberg and self.grows:
            self.growing = GrowingBasis(self._take, batch, m + 1, ld, problem.storage)
        basis = self.growing.grow() if self.growing else self._take("basis", (batch, m + 1, ld), problem.storage)
        self.images = self._take("images", (batch, m, image_ld), dtype) if problem.keeps_images else None
        self.estimates = self._take("estimates", (batch, m), torch.float64)
        self.active = self._take("active", (m + 1,), torch.int32)
        records = self._take("systems", (batch, layout["size"] // 8), torch.float64)
        fields = records.view(torch.int32)
        self.tolerance, self.residual = records[:, layout["tolerance"]], records[:, layout["residual"]]
        self.status, self.outcome, self.iterations = (fields[:, layout[f]] for f in ("status", "outcome", "iterations"))
        small = {
            "r": self._take("r", (batch, m * (m + 1) // 2), torch.float64),
            "rotations": self._take("rotations", (batch, m, 2), torch.float64),
            "inverse": self._take("inverse", (batch, m), torch.float64),
            "g": self._take("g", (batch, m + 1), torch.float64),
            "rtol": self._tolerance("rtol", problem.rtol),
            "atol": self._tolerance("atol", problem.atol),
        }
        arrays = {
            **small,
            "b": self.b,
            "x": self.x,
            "candidate": candidate,
            "direction": self.direction,
            "basis": basis,
            "update": basis if self.images is None else self.images,
            "estimates": self.estimates,
            "systems": records,
            "active": self.active,
        }
        solve = module.Solve()
        solve.batch, solve.n, solve.ld, solve.restart, solve.max_iters = batch, n, ld, m, problem.max_iters
        solve.dtype, solve.orthogonalization = _DTYPES[dtype], _ORTHOGONALIZATIONS[problem.orthogonalization]
        solve.device, solve.threads = self.device.index or 0, torch.get_num_threads()
        solve.basis_dtype, solve.basis_exponent = _DTYPES[problem.storage], problem.basis_exponent
        solve.update_rows, solve.update_ld = (m + 1, ld) if self.images is None else (m, image_ld)
        for name, array in arrays.items():
            setattr(solve, name, array.data_ptr())
        if self.growing:
            solve.chunk_shift = self.growing.shift
            solve.set_chunk(0, basis.data_ptr())
        if problem.keeps_hessenberg:
            self._keep_hessenberg(solve, records, layout, basis)
        scratch = self._take("scratch", (self.launch.scratch_bytes(solve),), torch.uint8)
        solve.scratch = scratch.data_ptr()
        self.solve, self.arrays = solve, {**arrays, "scratch": scratch}

    def _keep_hessenberg(self, solve: Any, records: Tensor, layout: dict[str, int], basis: Tensor) -> None:
        """What an Arnoldi decomposition consists of. H is not scratch memory: it becomes part of the result."""
        batch, m, fields = self.problem.batch, self.problem.restart, records.view(torch.int32)
        self.hessenberg = torch.zeros(batch, m + 1, m, dtype=torch.float64, device=self.device)
        self.basis = basis[:, :, : self.problem.n]
        self.beta, self.scale, self.length = (
            records[:, layout["beta"]],
            fields[:, layout["scale"]],
            fields[:, layout["length"]],
        )
        solve.hessenberg = self.hessenberg.data_ptr()

    def _tolerance(self, name: str, value: float | Tensor) -> Tensor:
        out = self._take(name, (self.problem.batch,), torch.float64)
        return out.copy_(value) if isinstance(value, Tensor) else out.fill_(value)

    def _contiguous(self, name: str, v: Tensor) -> Tensor:
        """`v` itself where the kernels can read it, else a copy in the workspace."""
        readable = v.is_contiguous() and not v.is_neg()  # a lazily negated view has the wrong bits in memory
        return v if readable else self._take(name, tuple(v.shape), v.dtype).copy_(v)

    def start_from(self, x0: Tensor) -> None:
        """Put x0 in place, and where its residual matters into `direction`; zeros elsewhere."""
        self.x.copy_(x0)
        self.direction.copy_(x0)
        b_peak, x_peak = self._peak("b_peak", self.b), self._peak("x_peak", self.x)
        # False for zero b, which is solved already, and for a NaN or infinity in either.
        regular = (b_peak > 0) & (b_peak < torch.inf) & (x_peak < torch.inf)
        self.direction.masked_fill_(~regular.view(-1, *[1] * (x0.ndim - 1)), 0.0)

    def begin(self, ax: Tensor | None) -> None:
        self.active.zero_()
        address = 0 if ax is None else self._contiguous("w", ax).data_ptr()
        self.launch.begin(self.solve, address, self.stream)
        self.post(0)

    def _peak(self, name: str, v: Tensor) -> Tensor:
        out = self._take(name, (v.shape[0],), v.dtype)
        torch.linalg.vector_norm(v.flatten(1), torch.inf, dim=1, out=out)
        return out

    def keep_image(self, j: int, z: Tensor) -> None:
        assert self.images is not None
        self.images[:, j, : self.problem.n].copy_(z.reshape(z.shape[0], -1))

    def make_room(self, j: int) -> bool:
        if not self.growing or not self.growing.lacks(j + 1):
            return False
        chunk = self.growing.made
        self.solve.set_chunk(chunk, self.growing.grow().data_ptr())
        return True

    def step(self, j: int, w: Tensor) -> None:
        self.launch.step(self.solve, j, self._contiguous("w", w).data_ptr(), self.stream)
        self.post(j + 1)

    def _capturable_step(self, w: Tensor) -> None:
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.poll else 0
        self.launch.step(self.solve, _ITS_OWN_STEP, self._contiguous("w", w).data_ptr(), stream)

    def finish(self) -> None:
        preconditioned = self.problem.M is not None and self.images is None
        self.launch.finish(self.solve, preconditioned, self.stream)

    def correct(self, z: Tensor) -> None:
        self.launch.correct(self.solve, self._contiguous("w", z).data_ptr(), self.stream)

    def close(self, ax: Tensor, *, stop: bool) -> None:
        self.active.zero_()
        self.launch.close(self.solve, self._contiguous("w", ax).data_ptr(), stop, self.stream)
        self.post(0)

    def post(self, slot: int) -> None:
        if self.poll:
            self.poll.post(slot)

    def idle(self, j: int, *, wait: bool) -> bool:
        """Whether no system is active after step j, as far as is known without waiting for the newest step."""
        if not self.poll:
            return int(self.active[j + 1]) == 0
        slot = j + 1 if wait else j + 1 - _LAG
        return slot > 0 and self.poll.read(slot) == 0

    def active_systems(self, j: int) -> Tensor | None:
        """`(B,)` bool on the host: the systems active after step j, or as far as is known without waiting for it."""
        if not self.poll:
            return self.outcome == ACTIVE
        slot = j + 1 - _LAG
        return self.poll.outcomes_at(slot) == ACTIVE if slot > 0 else None

    def running(self) -> int:
        return self.poll.read(0) if self.poll else int(self.active[0])


def poll_for(active: Tensor, outcome: Tensor | None) -> Poll | None:
    """How the counters get to the host; `None` where they are there already."""
    return Poll(active, outcome) if active.is_cuda else None


class Poll:
    """Brings the device's counters to the host without stopping the stream: pinned memory and one event a step.

    With `outcome` `(B,)` the systems' outcomes too.
    """

    def __init__(self, active: Tensor, outcome: Tensor | None) -> None:
        self.active, self.outcome = active, outcome
        self.mail = torch.empty(active.shape, dtype=active.dtype, pin_memory=True)
        if outcome is not None:
            self.outcomes = torch.empty(_LAG + 1, len(outcome), dtype=outcome.dtype, pin_memory=True)
        make_event: Callable[[], Any] = torch.cuda.Event
        self.events = [make_event() for _ in range(_LAG + 1)]

    def post(self, slot: int) -> None:
        self.mail[slot : slot + 1].copy_(self.active[slot : slot + 1], non_blocking=True)
        if self.outcome is not None:
            self.outcomes[slot % len(self.outcomes)].copy_(self.outcome, non_blocking=True)
        self.events[slot % len(self.events)].record(torch.cuda.current_stream(self.active.device))

    def read(self, slot: int) -> int:
        self.events[slot % len(self.events)].synchronize()
        return int(self.mail[slot])

    def outcomes_at(self, slot: int) -> Tensor:
        """Of one of the last slots that were read."""
        return self.outcomes[slot % len(self.outcomes)]
