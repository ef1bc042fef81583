"""The sanity section of an evaluation: is what it reports to be believed?

    checks = sanity_section(
        SanityContext(
            model=runner.model, data=data, attacks=attacks, measurements=measurements, eps=eps, norm=norm, seed=seed,
            device=runner.device, referee=options.referee, batch_size=runner.batch_size, run=runner.run,
            network=runner.network,
        )
    )

In an evaluation of several processes every process makes the section, since `run` shares the work between them.
`document["sanity"] = [found.as_json() for found in checks]` is the section in the report, failures first.
"""

from __future__ import annotations

import torch

from . import comparisons, curvature, invariants, masking, referee, solver
from .check import Check, Verdict, failures_first
from .context import SanityContext

__all__ = ["Check", "SanityContext", "Verdict", "sanity_section"]

_CHECKS = (
    *invariants.CHECKS,
    *curvature.CHECKS,
    *solver.CHECKS,
    *comparisons.CHECKS,
    *masking.CHECKS,
    *referee.CHECKS,
)


def sanity_section(context: SanityContext) -> list[Check]:
    """Make every check: failures first, then what passed, was not run, or does not apply.

    The checks attack at most `context.images` images (and 16 to 64 for those that look at single attacks, gradients or
    curvature); only the referee takes them all. What they run through `context.run` can be resumed.

    Raises:
        OSError, FailedElsewhere: as `context.run` does. Any other failure of a check is its verdict "not run".
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    # Algorithms that give the same bits every time: a check must not fail for the order of a sum.
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        return failures_first([check(context) for check in _CHECKS])
    finally:
        cudnn.deterministic, cudnn.benchmark = before
