"""Claim: the attack costs O(T (m n n_h + m^2 n)) on a network n - n_h - C (Eq. 25).

    python bench/claims/cost.py

Counts, which no machine changes: gradients of each image by SOAE's own accounting and by counting the backward passes
that the network really makes; multiplications of the matrix products. Times of one outer step of
one process in CPU seconds (least of several): the m products, and the solver alone, on a diagonal operator. The fit
t = a m n n_h + b m n + c m^2 n has non-negative coefficients and weighs relative errors. Networks: softplus, C = 10.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Loss, loss_of, parser, save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from soae_ext.attacks import SOAE
from soae_ext.gmres import GMRESResult, Workspace, gmres
from soae_ext.hvp import hessian_operator

BATCH = 16
PIXELS = (256, 1024, 4096)
HIDDEN = (128, 512, 2048)
DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)


def network(n: int, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(n, hidden), nn.Softplus(), nn.Linear(hidden, 10)).eval()


def images(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = round(n**0.5)
    return torch.rand(BATCH, 1, side, side, generator=generator), torch.arange(BATCH) % 10


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Least CPU time of a call, in rounds of at least 5 ms."""
    function()
    calls = 1
    while True:
        start = time.process_time()
        for _ in range(calls):
            function()
        taken = time.process_time() - start
        if taken > 5e-3:
            break
        calls *= 2
    least = taken
    for _ in range(repeats - 1):
        start = time.process_time()
        for _ in range(calls):
            function()
        least = min(least, time.process_time() - start)
    return least / calls


class Backwards:
    """Counts the samples whose gradient passes a module on its way to the images."""

    def __init__(self, model: nn.Module) -> None:
        self.samples = 0
        model.register_full_backward_pre_hook(self._count)

    def _count(self, module: nn.Module, gradient: tuple[Tensor, ...]) -> None:
        self.samples += len(gradient[0])


class Multiplications(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


def counted(n: int, hidden: int) -> list[dict[str, Any]]:
    """Gradients of a whole attack with one-sided differences: T (m + 2), one product being a check of the residual."""
    x, y = images(n)
    rows = []
    for steps, m in itertools.product((1, 2, 4, 8), (1, 2, 4, 8)):
        model = network(n, hidden)
        backwards = Backwards(model)
        attack = SOAE(
            0.03, steps=steps, max_dim=m, threshold=0.0, hvp="finite-difference", early_stop=False,
        )  # fmt: skip
        result = attack(model, x, y)
        rows.append({
            "T": steps, "m": m, "gradients_per_image": float(result.gradient_calls.float().mean()),
            "backward_passes_per_image": backwards.samples / BATCH, "formula": steps * (m + 2),
        })  # fmt: skip
    return rows


def multiplications() -> list[dict[str, Any]]:
    """Of a gradient and of an exact product, per image, in units of n n_h."""
    rows = []
    for n, hidden in itertools.product(PIXELS, HIDDEN):
        x, y = images(n)
        model = network(n, hidden)
        with Multiplications() as counter:
            H = hessian_operator(loss_of(model), x, y, method="finite-difference")
        gradient = counter.count / BATCH / (n * hidden)
        with Multiplications() as counter:
            H(x)
        difference = counter.count / BATCH / (n * hidden)
        H = hessian_operator(loss_of(model), x, y, method="double-backward")
        with Multiplications() as counter:
            H(x)
        exact = counter.count / BATCH / (n * hidden)
        row = {"n": n, "n_h": hidden, "gradient": gradient, "difference": difference, "exact_product": exact}
        rows.append(row)
    return rows


def times(repeats: int) -> list[dict[str, Any]]:
    """One outer step is a gradient, m products, m steps of the solver, and a product that checks the residual."""
    rows = []
    for n in PIXELS:
        x, y = images(n)
        diagonal = torch.randn(n, generator=torch.Generator().manual_seed(0)).view_as(x[0])
        workspace = Workspace()

        def solve(A: Callable[[Tensor], Tensor], b: Tensor, m: int, workspace: Workspace = workspace) -> GMRESResult:
            return gmres(A, b, rtol=0.0, restart=m, max_iters=m, workspace=workspace)

        def alone(m: int, x: Tensor = x, d: Tensor = diagonal) -> GMRESResult:
            return solve(lambda v: d * v, x, m)

        for hidden in HIDDEN:
            loss = loss_of(network(n, hidden))

            def step(m: int, loss: Loss = loss, x: Tensor = x, y: Tensor = y) -> GMRESResult:
                H = hessian_operator(loss, x, y, method="finite-difference")
                return solve(H, H.gradient, m)

            H = hessian_operator(loss, x, y, method="finite-difference")
            product = seconds(lambda H=H, x=x: H(x), repeats)
            for m in DIMENSIONS:
                if not all(bool((run(m).iterations == m).all()) for run in (step, alone)):
                    continue  # a Krylov space that ended early
                whole, solver = seconds(lambda m=m: step(m), repeats), seconds(lambda m=m: alone(m), repeats)
                row = {"n": n, "n_h": hidden, "m": m, "product_s": product, "step_s": whole, "solver_alone_s": solver}
                rows.append(row)
    return rows


def fitted(rows: list[dict[str, Any]], key: str, terms: dict[str, Callable[[dict[str, Any]], float]]) -> dict[str, Any]:
    """Non-negative least squares on relative errors; by trying every subset of the terms."""
    t = np.array([row[key] for row in rows])
    A = np.array([[term(row) for term in terms.values()] for row in rows]) / t[:, None]
    best: tuple[float, np.ndarray] = (np.inf, np.zeros(len(terms)))
    for size in range(1, len(terms) + 1):
        for chosen in itertools.combinations(range(len(terms)), size):
            c = np.zeros(len(terms))
            c[list(chosen)] = np.linalg.lstsq(A[:, chosen], np.ones(len(t)), rcond=None)[0]
            error = float(np.square(A @ c - 1).sum())
            if (c >= 0).all() and error < best[0]:
                best = (error, c)
    off = np.abs(A @ best[1] - 1)
    return {
        "seconds_per_unit": dict(zip(terms, best[1].tolist(), strict=True)),
        "relative_error": {
            "median": float(np.median(off)),
            "p90": float(np.quantile(off, 0.9)),
            "max": float(off.max()),
        },
        "points": len(rows),
    }


def exponents(rows: list[dict[str, Any]], key: str, variables: tuple[str, ...]) -> dict[str, float]:
    """Slopes of log time in the logarithms of the variables."""
    A = np.array([[1.0, *(np.log(row[v]) for v in variables)] for row in rows])
    slope = np.linalg.lstsq(A, np.log([row[key] for row in rows]), rcond=None)[0]
    return dict(zip(variables, slope[1:].tolist(), strict=True))


def main() -> None:
    options = parser(__doc__, "cost")
    options.add_argument("--repeats", type=int, default=3)
    arguments: argparse.Namespace = options.parse_args()
    torch.set_num_threads(arguments.threads)
    gradients = counted(256, 128)
    print("counts equal the formula:", all(r["gradients_per_image"] == r["formula"] for r in gradients), gradients[-1])
    work = multiplications()
    print(work[0], work[-1])
    rows = times(arguments.repeats)
    terms: dict[str, Callable[[dict[str, Any]], float]] = {
        "m n n_h": lambda r: r["m"] * r["n"] * r["n_h"] * BATCH,
        "m^2 n": lambda r: r["m"] ** 2 * r["n"] * BATCH,
        "m n": lambda r: r["m"] * r["n"] * BATCH,
        "m": lambda r: r["m"],
    }
    fits = {
        "Eq. 25: m n n_h + m^2 n": fitted(rows, "step_s", {k: terms[k] for k in ("m n n_h", "m^2 n")}),
        "with m n and m": fitted(rows, "step_s", terms),
        "solver alone: m^2 n": fitted(rows, "solver_alone_s", {"m^2 n": terms["m^2 n"]}),
        "solver alone: m^2 n + m n + m": fitted(rows, "solver_alone_s", {k: terms[k] for k in ("m^2 n", "m n", "m")}),
    }
    large = [r for r in rows if r["m"] >= 8 and r["n"] >= 1024]
    content = {
        "batch": BATCH, "gradient_counts": gradients, "multiplications": work, "times": rows, "fits": fits,
        "exponents_of_solver_where_m>=8_n>=1024": exponents(large, "solver_alone_s", ("m", "n")),
        "exponents_of_product": exponents([r for r in rows if r["m"] == 4], "product_s", ("n", "n_h")),
        "solver_share_of_step": [
            {"n": r["n"], "n_h": r["n_h"], "m": r["m"], "share": r["solver_alone_s"] / r["step_s"]} for r in rows
        ],
    }  # fmt: skip
    for name, fit in fits.items():
        print(name, fit)
    print({k: v for k, v in content.items() if k.startswith("exponents")})
    save(arguments, "O(T (m n n_h + m^2 n)) (Eq. 25)", content)


if __name__ == "__main__":
    main()
