"""The truth about an answer: residuals in float64 by NumPy, whatever the library said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .problems import Array, Problem, apply

SLACK = 1.1
"""How far above its tolerance a residual may be and still count as reached: a library measures in its own precision."""


@dataclass(frozen=True)
class Confirmation:
    """Per system: the true relative residual, whether it meets the tolerance, and what the library claimed."""

    residual: Array  # (B,) ‖b − A x‖ / ‖b‖, where b is zero ‖A x‖; NaN or infinity where x or the system hold one
    reached: Array  # (B,) bool
    claimed: tuple[bool | None, ...]

    @property
    def all_reached(self) -> bool:
        return bool(self.reached.all())

    def counts(self) -> dict[str, Any]:
        pairs = list(zip(self.claimed, self.reached.tolist(), strict=True))
        finite = self.residual[np.isfinite(self.residual)]
        return {
            "systems": len(pairs),
            "reached": sum(ok for _, ok in pairs),
            "claimed": sum(claim is True for claim, _ in pairs),
            "silent": sum(claim is None for claim, _ in pairs),
            "false_success": sum(claim is True and not ok for claim, ok in pairs),
            "false_failure": sum(claim is False and ok for claim, ok in pairs),
            "not_finite": int(len(self.residual) - len(finite)),
            "worst_residual": float(finite.max()) if len(finite) else None,
        }


def confirm(problem: Problem, x: Array, claimed: list[bool | None]) -> Confirmation:
    """Raises `ValueError` for an answer of the wrong shape."""
    if x.shape != problem.b.shape or len(claimed) != problem.batch:
        raise ValueError(f"{problem.name}: x has shape {x.shape}, expected {problem.b.shape}, one claim per system")
    b = problem.b.astype(np.float64)
    arrays = {key: value.astype(np.float64) for key, value in problem.arrays.items()}
    with np.errstate(all="ignore"):
        residual = np.linalg.norm(b - apply(problem.kind, arrays, x.astype(np.float64)), axis=1)
        norm = np.linalg.norm(b, axis=1)
        reached = residual <= SLACK * problem.rtol * norm
        relative = residual / np.where(norm > 0, norm, 1.0)
    reached &= np.isfinite(norm)  # an infinite tolerance is met by anything
    return Confirmation(relative, reached, tuple(claimed))
