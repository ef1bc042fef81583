"""Drives the launchers of csrc/gmres.h directly, on CPU tensors (SIMT) or CUDA tensors.

Every array starts poisoned: NaN in floating point, 0xFF bytes in integers. What a kernel leaves out is seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

Operator = Callable[[torch.Tensor], torch.Tensor]

# The variants of csrc/cuda/plan.h for a basis in the working precision, in chunks of 16 bytes; the last is split-n.
BLOCK_CAPACITY = [64, 256, 768, 1536, 3072, 768, 2560, 768, 768, 3072, 2560]
CLUSTERS = (5, 6, 10)
RINGS = {7: 2, 8: None, 9: 4, 10: 6}  # and the kernel that does the same arithmetic on rows that it loads
CAPACITY = [chunks * (2 if variant in CLUSTERS else 1) for variant, chunks in enumerate(BLOCK_CAPACITY)]
SPLIT = len(CAPACITY)
LOADING = [*(variant for variant in range(SPLIT) if variant not in RINGS), SPLIT]
# Those for a basis in half of it, in chunks of 16 stored bytes; the fourth is a cluster of two. The next is split-n.
HALF_CAPACITY = [128, 384, 1536, 3072, 384]
HALF_SPLIT = len(HALF_CAPACITY)
PIECE = 256  # of split-n
SCHEDULES = [("in-order", 0), ("reversed", 0), ("shuffled", 1)]

RUNNING = -1
CONVERGED, MAX_ITERS, STAGNATED, BREAKDOWN, NON_FINITE, STOPPED = range(6)
ACTIVE, CLAIMED, EXHAUSTED, BROKEN, BAD_COLUMN, FROZEN, SATURATED = range(7)
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device, offset: int = 0) -> torch.Tensor:
    """A contiguous tensor of 0xFF bytes; `offset` elements past an aligned address."""
    count = int(np.prod(shape))
    raw = torch.full(((count + offset) * dtype.itemsize,), 0xFF, dtype=torch.uint8, device=device)
    return raw.view(dtype)[offset:].view(shape)


class KernelSolve:
    """One solve: b (B, n), its arrays, and the cycle loop that the launchers expect."""

    def __init__(
        self,
        module: ModuleType,
        b: torch.Tensor,
        *,
        x0: torch.Tensor | None = None,
        restart: int,
        max_iters: int = 1000,
        rtol: float | np.ndarray = 1e-10,
        atol: float = 0.0,
        orthogonalization: str = "mgs",
        arnoldi: bool = False,
        basis_dtype: torch.dtype | None = None,
        offset: int = 0,
        device_index: int = 0,
    ) -> None:
        self.module = module
        self.launchers: Any = module.cuda
        batch, n = b.shape
        dtype, device = b.dtype, b.device
        self.batch, self.n, self.restart, self.dtype = batch, n, restart, dtype
        self.one_sweep = orthogonalization == "mgs"
        self.storage = basis_dtype or dtype
        granule = 128 // self.storage.itemsize
        self.ld = (n + granule - 1) // granule * granule
        self.basis_exponent = int(np.log2(n**0.5)) if self.storage == torch.float16 else 0

        def vector() -> torch.Tensor:
            return poisoned(batch, n, dtype=dtype, device=device, offset=offset)

        def doubles(*shape: int) -> torch.Tensor:
            return poisoned(*shape, dtype=torch.float64, device=device)

        self.b, self.x, self.candidate, self.direction = vector(), vector(), vector(), vector()
        self.b.copy_(b)
        self.has_x0 = x0 is not None
        self.x.copy_(x0 if x0 is not None else torch.zeros_like(b))
        self.basis = poisoned(batch, restart + 1, self.ld, dtype=self.storage, device=device)
        self.r = doubles(batch, restart * (restart + 1) // 2)
        self.rotations = doubles(batch, restart, 2)
        self.inverse = doubles(batch, restart)
        self.g = doubles(batch, restart + 1)
        self.estimates = doubles(batch, restart)
        self.rtol, self.atol = doubles(batch), doubles(batch)
        self.rtol.copy_(torch.as_tensor(np.broadcast_to(np.asarray(rtol, dtype=np.float64), (batch,)).copy()))
        self.atol.fill_(atol)
        layout = module.SYSTEM
        self.layout = layout
        self.systems = poisoned(batch, layout["size"], dtype=torch.uint8, device=device)
        self.active = torch.zeros(restart + 1, dtype=torch.int32, device=device)

        solve = module.Solve()
        solve.batch, solve.n, solve.ld, solve.restart, solve.max_iters = batch, n, self.ld, restart, max_iters
        solve.dtype, solve.basis_dtype = DTYPES[dtype], DTYPES[self.storage]
        solve.basis_exponent = self.basis_exponent
        solve.orthogonalization = {"mgs": 0, "cgs2": 1}[orthogonalization]
        solve.device, solve.threads = device_index, 1
        names = ("b", "x", "candidate", "direction", "basis", "r", "rotations", "inverse", "g", "estimates")
        for name in (*names, "rtol", "atol", "systems", "active"):
            setattr(solve, name, getattr(self, name).data_ptr())
        solve.update, solve.update_rows, solve.update_ld = self.basis.data_ptr(), restart + 1, self.ld
        # Arnoldi mode; the contract asks for zeros here
        self.h = torch.zeros(batch, restart + 1, restart, dtype=torch.float64, device=device) if arnoldi else None
        if self.h is not None:
            solve.hessenberg = self.h.data_ptr()
        self.scratch = poisoned(self.launchers.scratch_bytes(solve), dtype=torch.uint8, device=device)
        solve.scratch = self.scratch.data_ptr()
        self.solve = solve
        self.stream = 0

    def vectors(self) -> torch.Tensor:
        """The basis, padding included, in float64."""
        return self.basis.double() * 2.0**-self.basis_exponent

    # ---- views of the per-system records ----

    def _ints(self, name: str) -> torch.Tensor:
        return self.systems.view(torch.int32)[:, self.layout[name]]

    def _reals(self, name: str) -> torch.Tensor:
        return self.systems.view(torch.float64)[:, self.layout[name]]

    @property
    def outcome(self) -> torch.Tensor:
        return self._ints("outcome")

    @property
    def status(self) -> torch.Tensor:
        return self._ints("status")

    @property
    def length(self) -> torch.Tensor:
        return self._ints("length")

    @property
    def iterations(self) -> torch.Tensor:
        return self._ints("iterations")

    @property
    def residual(self) -> torch.Tensor:
        return self._reals("residual")

    # ---- the launchers ----

    def begin(self, operator: Operator) -> None:
        self.active.zero_()
        ax = operator(self.x.clone()) if self.has_x0 else None
        self.launchers.begin(self.solve, 0 if ax is None else ax.data_ptr(), self.stream)

    def step(self, j: int, w: torch.Tensor) -> None:
        self.launchers.step(self.solve, j, w.data_ptr(), self.stream)

    def finish(self, preconditioned: bool = False) -> None:
        self.launchers.finish(self.solve, preconditioned, self.stream)

    def correct(self, z: torch.Tensor) -> None:
        self.launchers.correct(self.solve, z.data_ptr(), self.stream)

    def close(self, ax: torch.Tensor, stop: bool = False) -> None:
        self.active.zero_()
        self.launchers.close(self.solve, ax.data_ptr(), stop, self.stream)

    def decompose(self, operator: Operator) -> None:
        """The steps of an Arnoldi decomposition."""
        self.begin(operator)
        for j in range(self.restart):
            self.step(j, operator(self.direction))
            if int(self.active[j + 1]) == 0:
                break

    def cycle(self, operator: Operator, in_place: bool = False) -> None:
        """One cycle. `in_place`: the operator's output overwrites its input."""

        def output() -> torch.Tensor:
            w = operator(self.direction)
            return self.direction.copy_(w) if in_place else w

        for j in range(self.restart):
            self.step(j, output())
            if int(self.active[j + 1]) == 0:
                break
        self.finish()
        self.close(output())

    def run(self, operator: Operator, in_place: bool = False) -> SimpleNamespace:
        """Cycles until no system runs."""
        self.begin(operator)
        cycles = 0
        while int(self.active[0]) > 0:
            self.cycle(operator, in_place)
            cycles += 1
        return SimpleNamespace(
            x=self.x.clone(),
            status=self.status.tolist(),
            iterations=self.iterations.tolist(),
            residual=self.residual.clone(),
            cycles=cycles,
        )


class Problem:
    """B systems with A v = d v + c (v shifted by one), and right-hand sides; float64 until a kernel takes it."""

    def __init__(
        self,
        batch: int,
        n: int,
        dtype: torch.dtype,
        *,
        seed: int = 0,
        coupling: float = 0.3,
        scale_a: float = 1.0,
        scale_b: float = 1.0,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        rand = torch.rand(2, batch, n, dtype=torch.float64, generator=generator)
        self.batch, self.n, self.dtype = batch, n, dtype
        self.diagonal = (rand[0] + 1.5).to(device) * scale_a
        self.coupling = coupling * scale_a
        self.b = ((rand[1] - 0.5).to(device) * scale_b).to(dtype)

    def exact(self, v: torch.Tensor, system: int | None = None) -> torch.Tensor:
        """A v of every system, or of one of them for each row of v."""
        diagonal = self.diagonal if system is None else self.diagonal[system]
        product: torch.Tensor = diagonal * v.double() + self.coupling * v.double().roll(1, dims=1)
        return product

    def first(self, batch: int) -> Problem:
        """The first systems alone."""
        part = copy.copy(self)
        part.batch = min(batch, self.batch)
        part.diagonal, part.b = self.diagonal[:batch], self.b[:batch]
        return part

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        return self.exact(v).to(self.dtype)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(self.b.double() - self.exact(x), dim=1)
        return norms

    def solve(self) -> torch.Tensor:
        """The exact solutions, rounded."""
        eye = torch.eye(self.n, dtype=torch.float64)
        matrices = torch.diag_embed(self.diagonal) + self.coupling * eye.roll(1, dims=0)
        x: torch.Tensor = torch.linalg.solve(matrices, self.b.double())
        return x.to(self.dtype)


def hessenberg(s: KernelSolve, system: int) -> np.ndarray:
    """H of the current cycle, from R and the rotations: column j is the product of the transposed rotations on R_j."""
    steps = int(s.iterations[system])
    r, rotations = s.r[system].cpu().numpy(), s.rotations[system].cpu().numpy()
    h = np.zeros((steps + 1, steps))
    for j in range(steps):
        h[: j + 1, j] = r[j * (j + 1) // 2 :][: j + 1]
        for i in range(j, -1, -1):
            c, sn = rotations[i]
            h[i, j], h[i + 1, j] = c * h[i, j] - sn * h[i + 1, j], sn * h[i, j] + c * h[i + 1, j]
    return h


def check_arnoldi(s: KernelSolve, problem: Problem, systems: int | None = None) -> None:
    """V orthonormal and zero-padded, A V = V H, and the last estimate, after the first cycle's steps; of all systems
    or of the first few."""
    eps = torch.finfo(s.dtype).eps
    beta = problem.b.double().norm(dim=1)
    for i in range(min(s.batch, systems or s.batch)):
        steps = int(s.length[i])
        kept = steps + (1 if int(s.outcome[i]) == ACTIVE else 0)  # after a breakdown there is no next vector
        rows = s.basis[i, :kept]
        assert (rows[:, s.n :] == 0).all()
        v = rows[:, : s.n].double().cpu().numpy()
        gram = v @ v.T - np.eye(kept)
        # One sweep loses orthogonality as fast as the residual falls (Paige, Rozloznik, Strakos 2006), two do not.
        fallen = float(beta[i]) / float(s.estimates[i, kept - 2]) if s.one_sweep and kept > 1 else 1.0
        assert np.abs(gram).max() <= 10 * eps * (np.sqrt(kept) + fallen), "the basis is not orthonormal"

        w = problem.exact(rows[:steps, : s.n], system=i)
        h = hessenberg(s, i)[:, :steps]
        error = w.cpu().numpy().T - v.T @ h[:kept]
        assert np.abs(error).max() <= 40 * eps * np.abs(h).max(), "A V is not V H"

        q, _ = np.linalg.qr(h, mode="complete")  # its last column spans what H cannot reach
        left = abs(float(beta[i]) * q[0, -1])
        assert abs(float(s.estimates[i, steps - 1]) - left) <= 10 * eps * float(beta[i])


def check_rounded_arnoldi(s: KernelSolve, problem: Problem) -> None:
    """What was stored is the basis: A V = V H holds for it but for the rounding of each new vector, after the first
    cycle's steps. Where the types are the same, `check_arnoldi` asks for more."""
    eps, roundoff = torch.finfo(s.dtype).eps, torch.finfo(s.storage).eps / 2
    stored = s.vectors()
    for i in range(s.batch):
        steps = int(s.length[i])
        kept = steps + (1 if int(s.outcome[i]) == ACTIVE else 0)
        assert (stored[i, :kept, s.n :] == 0).all()
        v = stored[i, :kept, : s.n]
        assert ((v.norm(dim=1) - 1).abs() <= 1.01 * roundoff).all()
        if kept > steps:
            assert torch.equal(s.direction[i].double(), v[-1].to(s.direction.device))
        first = problem.b[i].double() / problem.b[i].double().norm()
        assert float((v[0] - first).norm()) <= 1.01 * roundoff

        h = torch.from_numpy(hessenberg(s, i)[:, :steps])
        error = problem.exact(v[:steps], system=i).cpu() - (v.T.cpu() @ h[:kept]).T
        allowed = 1.01 * roundoff * h.diagonal(-1) + 40 * eps * h.abs().max()
        assert (error.norm(dim=1)[: kept - 1] <= allowed[: kept - 1]).all(), "A V is not V H up to the last rounding"


def least_squares_oracle(problem: Problem, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Residual norms after each step (B, steps) and the last iterate (B, n) of GMRES from zero, in float64."""
    b = problem.b.double()
    beta = b.norm(dim=1)
    v = [b / beta[:, None]]
    av = []
    for _ in range(steps):
        w = problem.exact(v[-1])
        av.append(w)
        for _ in range(2):
            for u in v:
                w = w - (u * w).sum(dim=1, keepdim=True) * u
        v.append(w / w.norm(dim=1, keepdim=True))
    estimates = np.empty((problem.batch, steps))
    x = np.empty((problem.batch, problem.n))
    for i in range(problem.batch):
        basis = torch.stack([u[i] for u in v[:steps]], 1).cpu().numpy()
        images = torch.stack([u[i] for u in av], 1).cpu().numpy()
        target = b[i].cpu().numpy()
        q, _ = np.linalg.qr(images)
        left = target.copy()
        for k in range(steps):
            for _ in range(2):
                left -= q[:, k] * (q[:, k] @ left)
            estimates[i, k] = np.linalg.norm(left)
        y, *_ = np.linalg.lstsq(images, target, rcond=None)
        x[i] = basis @ y
    return estimates, x
