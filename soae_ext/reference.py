"""GMRES in pure PyTorch: the fallback where no kernel fits, an oracle for the kernels, and the benchmark's baseline.

Two forms of the Arnoldi step, each written the way it is best written in PyTorch:

* `"mgs"`, the textbook: modified Gram–Schmidt and Givens rotations, one vector and one rotation at a time;
* `"cgs2"`, the smart one: two passes of classical Gram–Schmidt as batched row-vector products (on the CPU several times
  faster than the column form), and the product of all rotations kept as one matrix.

Everything here is independent of the kernels and of `csrc/rules.h`, and follows Saad & Schultz, SIAM J. Sci. Stat.
Comput. 7 (1986), with the verdicts of `soae_ext.gmres.Status`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from soae_ext._solver.driver import ACTIVE, RUNNING, Problem

_CONVERGED, _MAX_ITERS, _STAGNATED, _BREAKDOWN, _NON_FINITE, _STOPPED = range(6)
_CLAIMED, _EXHAUSTED, _BROKEN, _BAD_COLUMN, _FROZEN, _SATURATED = range(1, 7)


def gmres(A: Any, b: Tensor, x0: Tensor | None = None, **options: Any) -> Any:
    """`soae_ext.gmres.gmres` with `backend="reference"`; `orthogonalization` picks the form, see above."""
    from soae_ext import gmres as public  # late: soae_ext.gmres imports this module

    return public.gmres(A, b, x0, backend="reference", **options)


def orthogonalize_mgs(basis: Tensor, j: int, w: Tensor) -> tuple[Tensor, Tensor]:
    """`w` `(B, n)` made orthogonal to `basis[:, :j+1]`, one vector after the other. Returns it and h `(B, j+1)`."""
    column = []
    for i in range(j + 1):
        v = basis[:, i]
        h = (v * w).sum(1)
        w = torch.addcmul(w, h[:, None], v, value=-1)
        column.append(h)
    return w, torch.stack(column, 1)


def orthogonalize_cgs2(basis: Tensor, j: int, w: Tensor) -> tuple[Tensor, Tensor]:
    """`w` `(B, n)` made orthogonal to `basis[:, :j+1]` twice, all vectors at once. Returns it and h `(B, j+1)`."""
    rows = basis[:, : j + 1]
    w = w[:, None]
    h = torch.bmm(w, rows.mT)
    w = torch.baddbmm(w, h, rows, alpha=-1)
    correction = torch.bmm(w, rows.mT)
    w = torch.baddbmm(w, correction, rows, alpha=-1)
    return w[:, 0], (h + correction)[:, 0]


def _power(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exactly, for -1022 <= exponent <= 1023."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _scaled(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`v` `(B, n)` times a power of two that makes its squares safe, the norm of that, and the exponent `(B,)`."""
    limit = 120 if v.dtype == torch.float32 else 1000
    peak = torch.linalg.vector_norm(v, torch.inf, dim=1).double()
    exponent = torch.frexp(peak).exponent.clamp(-limit, limit).where((peak > 0) & peak.isfinite(), 0)
    scaled = v * _power(-exponent).to(v.dtype)[:, None]
    return scaled, torch.linalg.vector_norm(scaled, dim=1, dtype=torch.float64), exponent


class ReferenceEngine:
    """See `soae_ext._solver.driver.Engine`."""

    capturable_step: Callable[[Tensor], None] | None = None

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        batch, n, m = problem.batch, problem.n, problem.restart
        self.shape, self.dtype, self.device = problem.b.shape, problem.b.dtype, problem.b.device
        self.b = problem.b.reshape(batch, n)
        self.x = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        self.direction = torch.zeros_like(self.x)
        self.candidate = self._new(batch, n, dtype=self.dtype)
        self.basis = self._new(batch, m + 1, n, dtype=problem.storage)
        self.stored_unit = 2.0**problem.basis_exponent
        self.images = self._new(batch, m, n, dtype=self.dtype) if problem.keeps_images else None
        self.r = self._new(batch, m, m)
        self.inverse = self._new(batch, m)
        self.g = self._new(batch, m + 1)
        self.subdiagonal = self._new(batch, m)
        self.estimates = self._new(batch, m)
        self.textbook = problem.orthogonalization == "mgs"
        # Textbook: cosines and sines. Smart: the product of all rotations.
        self.rotations = self._new(batch, m, 2) if self.textbook else self._new(batch, m + 1, m + 1)
        self.residual, self.tolerance, self.beta = self._new(batch), self._new(batch), self._new(batch)
        self.max_av, self.max_pivot = self._new(batch), self._new(batch)
        self.hessenberg = self._new(batch, m + 1, m) if problem.keeps_hessenberg else self._new(0)
        self.negligible = 16 * torch.finfo(self.dtype).eps
        # A residual estimate relative to the cycle's start means nothing below this; eps is twice the unit roundoff.
        self.trusted = torch.finfo(problem.storage).eps if problem.compressed else 0.0
        for name in ("status", "outcome", "iterations", "length", "scale", "slow", "claimed"):
            setattr(self, name, self._new(batch, dtype=torch.int32))

    status: Tensor
    outcome: Tensor
    iterations: Tensor
    length: Tensor
    scale: Tensor
    slow: Tensor
    claimed: Tensor

    def _new(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _store(self, v: Tensor) -> Tensor:
        """`v` as it is kept in the basis."""
        return (v * self.stored_unit).to(self.basis.dtype) if self.problem.compressed else v

    def _load(self, stored: Tensor) -> Tensor:
        """Basis vectors in the working precision."""
        return stored.to(self.dtype) / self.stored_unit if self.problem.compressed else stored

    def _feed(self, v: Tensor, wanted: Tensor) -> None:
        self.direction.copy_(torch.where(wanted[:, None], v, 0).view(self.shape))

    # --- the start ---------------------------------------------------------------------------------------------------

    def start_from(self, x0: Tensor) -> None:
        self.x.copy_(x0)
        x = self.x.view(self.b.shape)
        self._feed(x, self.b.isfinite().all(1) & x.isfinite().all(1) & (self.b != 0).any(1))

    def begin(self, ax: Tensor | None) -> None:
        problem, b, x = self.problem, self.b, self.x.view(self.b.shape)
        residual = b.clone() if ax is None else b - ax.reshape(b.shape)
        _, b_norm, exponent = _scaled(b)
        rtol, atol = (torch.as_tensor(t, dtype=torch.float64, device=b.device) for t in (problem.rtol, problem.atol))
        self.tolerance = torch.maximum(rtol * b_norm * _power(exponent), atol)
        zero_b, finite_x = (b == 0).all(1), x.isfinite().all(1)
        regular = ~zero_b & b.isfinite().all(1) & finite_x & residual.isfinite().all(1)
        x.masked_fill_((zero_b | ~finite_x)[:, None], 0)
        scaled, beta, scale = _scaled(residual)
        norm = beta * _power(scale)
        self.residual.copy_(norm.where(regular, torch.nan).masked_fill(zero_b, 0.0))
        verdict = torch.where(norm <= self.tolerance, _CONVERGED, _MAX_ITERS if problem.max_iters == 0 else RUNNING)
        verdict = verdict.where(regular, _NON_FINITE).masked_fill(zero_b, _CONVERGED)
        self.status.copy_(verdict)
        self._start_cycle(self.status == RUNNING, scaled, beta, scale)

    def _start_cycle(self, fresh: Tensor, scaled: Tensor, beta: Tensor, scale: Tensor) -> None:
        """First basis vector from the scaled residual where `fresh`; the others that run keep the one they had."""
        self.beta = beta.where(fresh, self.beta)
        self.scale = scale.where(fresh, self.scale)
        first = scaled / beta.to(self.dtype)[:, None]
        self.basis[:, 0] = self._store(first).where(fresh[:, None], self.basis[:, 0])
        self.g.zero_()
        self.g[:, 0] = self.beta
        self.r.zero_()
        self.r.diagonal(dim1=1, dim2=2).fill_(1.0)
        if not self.textbook:
            self.rotations.zero_()
            self.rotations.diagonal(dim1=1, dim2=2).fill_(1.0)
        for tensor in (self.max_av, self.max_pivot, self.length):
            tensor.zero_()
        running = self.status == RUNNING
        self.outcome = torch.where(running, ACTIVE, _FROZEN).to(torch.int32)
        self._feed(self._load(self.basis[:, 0]), running)

    # --- one Arnoldi step --------------------------------------------------------------------------------------------

    def keep_image(self, j: int, z: Tensor) -> None:
        assert self.images is not None
        self.images[:, j] = z.reshape(self.b.shape)

    def step(self, j: int, w: Tensor) -> None:
        w = w.reshape(self.b.shape)
        bad = (self.outcome == ACTIVE) & ~w.isfinite().all(1)
        self.outcome.masked_fill_(bad, _BAD_COLUMN)
        active = self.outcome == ACTIVE
        w, av, exponent = _scaled(w.where(active[:, None], 0))
        av = av * _power(exponent)
        # Rows of finished systems may hold anything; they are multiplied by a zero w and by nothing else.
        rows = self._load(self.basis[:, : j + 1])
        rows = rows if bool(active.all()) else rows.where(active[:, None, None], 0)
        with torch.autocast(w.device.type, enabled=False):
            w, column = (orthogonalize_mgs if self.textbook else orthogonalize_cgs2)(rows, j, w)
        norm = torch.linalg.vector_norm(w, dim=1, dtype=torch.float64)
        column = column.double() * _power(exponent)[:, None]
        end_step = self._record_column if self.problem.keeps_hessenberg else self._append_column
        end_step(j, active, column, norm * _power(exponent), av)
        going_on = self.outcome == ACTIVE
        self.basis[:, j + 1] = self._store(torch.where(going_on[:, None], w / norm.to(w.dtype)[:, None], 0))
        self._feed(self._load(self.basis[:, j + 1]), going_on)

    def _record_column(self, j: int, active: Tensor, column: Tensor, subdiagonal: Tensor, av: Tensor) -> None:
        """An Arnoldi decomposition keeps H itself and ends by breakdown alone; n vectors leave no further one."""
        self.outcome.masked_fill_(active & ~av.isfinite(), _BAD_COLUMN)
        used = self.outcome == ACTIVE
        self.max_av = torch.maximum(self.max_av, av).where(used, self.max_av)
        breakdown = used & ((subdiagonal <= self.negligible * self.max_av) | (j + 1 >= self.problem.n))
        column = torch.cat([column, subdiagonal.masked_fill(breakdown, 0.0)[:, None]], 1)
        self.hessenberg[:, : j + 2, j] = column.where(used[:, None], 0.0)
        self.iterations += used
        self.length = torch.where(used, j + 1, self.length).to(torch.int32)
        self.outcome.masked_fill_(breakdown, _BROKEN)

    def _append_column(self, j: int, active: Tensor, column: Tensor, subdiagonal: Tensor, av: Tensor) -> None:
        column = torch.cat([column, subdiagonal[:, None]], 1)
        column = self._rotate(j, column)
        pivot = torch.hypot(column[:, j], column[:, j + 1])
        cosine, sine = column[:, j] / pivot, column[:, j + 1] / pivot

        self.iterations += active
        self.max_av = torch.maximum(self.max_av, av).where(active, self.max_av)
        breakdown = active & (subdiagonal <= self.negligible * self.max_av)
        singular = active & (pivot <= self.negligible * torch.maximum(self.max_pivot, pivot))
        smallest = self._smallest_singular_value(j, column[:, :j], pivot)
        saturated = active & ~singular & (smallest <= self.negligible * self.max_av)
        used = active & ~singular & ~saturated
        self.max_pivot = torch.maximum(self.max_pivot, pivot).where(used, self.max_pivot)

        before = self.g[:, j].clone()
        self.r[:, :j, j] = column[:, :j].where(used[:, None], self.r[:, :j, j])
        self.r[:, j, j] = pivot.where(used, self.r[:, j, j])
        self.g[:, j + 1] = (-sine * before).where(used, self.g[:, j + 1])
        self.g[:, j] = (cosine * before).where(used, before)
        self.subdiagonal[:, j] = column[:, j + 1]
        self._store_rotation(j, cosine.where(used, 1.0), sine.where(used, 0.0))
        self.length = torch.where(used, j + 1, self.length).to(torch.int32)

        estimate = self.g[:, j + 1].abs().where(used, before.abs())
        absolute = estimate * _power(self.scale)
        self.estimates[:, j] = absolute.where(active, self.estimates[:, j])
        self.outcome.masked_fill_(active & (self.iterations >= self.problem.max_iters), _EXHAUSTED)
        self.outcome.masked_fill_(used & (absolute <= self.tolerance), _CLAIMED)
        self.outcome.masked_fill_(saturated, _SATURATED)
        self.outcome.masked_fill_(breakdown | singular, _BROKEN)
        if self.problem.compressed:
            self._distrust(active, estimate, subdiagonal)
        # A cycle that gains nothing leaves x alone: its y would be noise in directions that A maps to nearly nothing.
        last = active & ((self.outcome != ACTIVE) | (j + 1 == self.problem.restart))
        self.length.masked_fill_(last & (estimate > 0.999 * self.beta), 0)

    def _distrust(self, active: Tensor, estimate: Tensor, subdiagonal: Tensor) -> None:
        """What a basis of rounded vectors cannot vouch for ends the cycle only; the true residual says the rest."""
        broken = (self.outcome == _BROKEN) & (estimate <= 0.999 * self.beta)
        undecided = (self.outcome == ACTIVE) | (self.outcome == _EXHAUSTED)
        spent = undecided & ((estimate <= self.trusted * self.beta) | (subdiagonal <= self.trusted * self.max_av))
        self.outcome.masked_fill_(active & (broken | spent | (self.outcome == _CLAIMED)), _SATURATED)

    def _smallest_singular_value(self, j: int, column: Tensor, pivot: Tensor) -> Tensor:
        """Of R with this column appended, by incremental condition estimation (Bischof, SIMAX 11, 1990)."""
        x = self.inverse[:, :j]
        alpha = (column * x).sum(1)
        p = (pivot[:, None] * x).square().sum(1) + alpha.square()
        half = (p - 1) / 2
        root = torch.hypot(half, alpha)
        direction = torch.where(p >= 1, torch.stack([half + root, -alpha]), torch.stack([-alpha, root - half]))
        length = torch.hypot(direction[0], direction[1])
        s, c = (direction / length).where(length > 0, x.new_tensor([[0.0], [1.0]]))
        self.inverse[:, j] = (c - s * alpha) / pivot
        self.inverse[:, :j] = s[:, None] * x
        return pivot / ((p + 1) / 2 + root).sqrt()

    def _rotate(self, j: int, column: Tensor) -> Tensor:
        """The earlier rotations applied to a new column `(B, j+2)`."""
        if not self.textbook:
            rotated = torch.bmm(self.rotations[:, : j + 1, : j + 1], column[:, : j + 1, None])[:, :, 0]
            return torch.cat([rotated, column[:, j + 1 :]], 1)
        for i in range(j):
            cosine, sine = self.rotations[:, i, 0], self.rotations[:, i, 1]
            upper = cosine * column[:, i] + sine * column[:, i + 1]
            column[:, i + 1] = cosine * column[:, i + 1] - sine * column[:, i]
            column[:, i] = upper
        return column

    def _store_rotation(self, j: int, cosine: Tensor, sine: Tensor) -> None:
        if self.textbook:
            self.rotations[:, j, 0], self.rotations[:, j, 1] = cosine, sine
        else:
            upper, lower = self.rotations[:, j].clone(), self.rotations[:, j + 1].clone()
            self.rotations[:, j] = cosine[:, None] * upper + sine[:, None] * lower
            self.rotations[:, j + 1] = cosine[:, None] * lower - sine[:, None] * upper

    def active_systems(self, j: int) -> Tensor | None:
        return self.outcome == ACTIVE

    def make_room(self, j: int) -> bool:
        return False

    def post(self, slot: int) -> None:
        """Nothing is waited for here."""

    def idle(self, j: int, *, wait: bool) -> bool:
        return not bool((self.outcome == ACTIVE).any())

    # --- the end of a cycle ------------------------------------------------------------------------------------------

    def _coefficients(self) -> Tensor:
        """y with R y = g in the columns that are used, zero beyond; without the scale of the cycle."""
        m = self.problem.restart
        kept = torch.arange(m, device=self.device) < self.length[:, None]
        g = self.g[:, :m].where(kept, 0)
        triangle = self.r.where(kept[:, None, :], torch.eye(m, dtype=torch.float64, device=self.device))
        y: Tensor = torch.linalg.solve_triangular(triangle, g[:, :, None], upper=True)[:, :, 0]
        return y.where(kept, 0)

    def finish(self) -> None:
        m = self.problem.restart
        y = self._coefficients()
        # A cycle does not go so far that what was rounded away of its basis outweighs what it gains.
        while bool((far := self.trusted * (self.subdiagonal * y).norm(dim=1) > self.beta).any()):
            self.length -= far.to(torch.int32)
            y = self._coefficients()
        kept = torch.arange(m, device=self.device) < self.length[:, None]
        y = (y * _power(self.scale)[:, None]).to(self.dtype)
        vectors = (self._load(self.basis[:, :m]) if self.images is None else self.images).where(kept[:, :, None], 0)
        with torch.autocast(y.device.type, enabled=False):
            update = torch.bmm(y[:, None], vectors)[:, 0]
        if self.problem.M is not None and self.images is None:
            self._feed(update, self.status == RUNNING)
        else:
            self._propose(update)

    def correct(self, z: Tensor) -> None:
        self._propose(z.reshape(self.b.shape))

    def _propose(self, update: Tensor) -> None:
        self.candidate = self.x.view(self.b.shape) + update
        self._feed(self.candidate, self.status == RUNNING)

    def close(self, ax: Tensor, *, stop: bool) -> None:
        running = self.status == RUNNING
        residual = torch.where(running[:, None], self.b - ax.reshape(self.b.shape), 1.0)
        finite_candidate = self.candidate.isfinite().all(1)
        measured = residual.isfinite().all(1) & finite_candidate
        scaled, beta, scale = _scaled(residual)
        norm = (beta * _power(scale)).where(measured, torch.nan)
        accepted = running & self._verdict(norm, measured, finite_candidate, running, stop)
        self.x.view(self.b.shape).copy_(self.candidate.where(accepted[:, None], self.x.view(self.b.shape)))
        self._start_cycle(accepted & (self.status == RUNNING), scaled, beta, scale)

    def _verdict(self, norm: Tensor, measured: Tensor, finite: Tensor, running: Tensor, stop: bool) -> Tensor:
        """Decides what the candidate's residual means. Returns whether it replaces x."""
        before = self.residual.clone()
        bad = self.outcome == _BAD_COLUMN
        accept = torch.where(bad, (self.length > 0) & finite & ~(norm >= before), measured & (norm < before))
        now = norm.where(accept, before)
        full = (self.outcome == _SATURATED) | ((self.outcome == ACTIVE) & (not stop))
        slow = torch.where(full & (now > 0.999 * before), self.slow + 1, 0).to(torch.int32)
        cut_short = (self.outcome == _EXHAUSTED) | stop
        stagnated = ((self.claimed != 0) & ~cut_short & (now > 0.5 * before)) | (slow >= 2)

        verdict = torch.full_like(self.status, _STOPPED if stop else RUNNING)
        verdict[self.iterations >= self.problem.max_iters] = _MAX_ITERS
        verdict[stagnated] = _STAGNATED
        verdict[self.outcome == _BROKEN] = _BREAKDOWN
        verdict[bad | ~measured] = _NON_FINITE
        verdict[now <= self.tolerance] = _CONVERGED
        self.status.copy_(verdict.where(running, self.status))
        self.residual.copy_(now.where(running, self.residual))
        self.claimed = (self.outcome == _CLAIMED).to(torch.int32)
        self.slow = slow
        return accept

    def running(self) -> int:
        return int((self.status == RUNNING).sum())
