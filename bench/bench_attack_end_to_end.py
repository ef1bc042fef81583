"""SOAE from images to adversarial images: where the time goes, beside the paper's way, and what saves gradients.

    python bench/bench_attack_end_to_end.py [--quick] [--threads N] [--cifar10 DIR] [--output run.json]

**Cases.** SOAE on batches against the same attack one image at a time (papers_way.py: difference products, NumPy
Arnoldi and triangular solve), with equally many gradients of each image: 1,000 shipped digits and the shipped network,
and 128 images of CIFAR-10 (`--cifar10`, a folder of parquet files; random pixels without) with a ResNet-18. That has
random weights, which changes no time. Both are split into operator (gradients and products), solver and rest. No attack
stops early and no solve before its last dimension, so that both always do all of the work. `ratio` is the time of the
paper's way over ours, in turns.

**Gains.** What saves gradients or time, one at a time: each row is the same attack, or the same systems, with and
without. `ratio` is time without over time with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gains
import measure
import papers_way
import torch
from torch import Tensor, nn

from soae_ext.attacks import SOAE
from soae_ext.attacks import soae as soae_module
from soae_ext.data import load_data, load_digits
from soae_ext.models import digits_network, resnet18

FD_STEP = {28: 1e-3, 32: 1e-3 * (3072 / 784) ** 0.5}  # what SOAE takes by itself


class Case:
    """One network and its images, and the attacks that cost the same on them: `dimensions` + 1 gradients a step."""

    def __init__(
        self, name: str, model: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, dimensions: int, batch: int
    ) -> None:
        self.name, self.model, self.x, self.y = name, model.requires_grad_(False), x, y
        self.eps, self.steps, self.dimensions = eps, steps, dimensions
        # A solve pays one more product for the true residual.
        common: dict[str, Any] = {"steps": steps, "threshold": 0.0, "early_stop": False, "batch_size": batch}
        self.ours = {
            "differences": SOAE(eps, hvp="finite-difference", max_dim=dimensions - 1, **common),
            "exact products": SOAE(eps, max_dim=dimensions // 2 - 1, **common),
        }

    def papers_way(self) -> tuple[Tensor, papers_way.Spent]:
        return papers_way.attack(
            self.model, self.x, self.y, eps=self.eps, steps=self.steps, dimensions=self.dimensions,
            fd_step=FD_STEP[self.x.shape[-1]],
        )  # fmt: skip


def cases(quick: bool, cifar10: Path | None) -> list[Case]:
    digits = load_digits().first(40 if quick else 1000)
    found = [
        Case(
            "small CNN, digits", digits_network(), digits.images, digits.labels,
            eps=0.3, steps=2, dimensions=10, batch=250,
        )
    ]  # fmt: skip
    torch.manual_seed(0)
    count = 4 if quick else 128
    if cifar10 is not None:
        data = load_data(f"cifar10:{cifar10}").first(count)
        x, y, name = data.images, data.labels, "ResNet-18, CIFAR-10"
    else:
        x, y, name = torch.rand(count, 3, 32, 32), torch.arange(count) % 10, "ResNet-18, random pixels"
    found.append(Case(name, resnet18().eval(), x, y, eps=8 / 255, steps=1, dimensions=4, batch=32))
    return found


@contextmanager
def stopwatch() -> Iterator[papers_way.Spent]:
    """Counts what SOAE spends in its operators and in its solver meanwhile."""
    spent = papers_way.Spent()
    make, solve = soae_module.hessian_operator, soae_module.solve_to_residual

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            spent.operator += time.perf_counter() - began
            return result

        return run

    class Operator:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.inner = timed(make)(*arguments, **options)
            self.apply = timed(self.inner)
            self.gradient, self.loss = self.inner.gradient, self.inner.loss

        def __call__(self, v: Tensor) -> Tensor:
            return self.apply(v)

    def solver(*arguments: Any) -> Any:
        before, began = spent.operator, time.perf_counter()
        result = solve(*arguments)
        spent.solver += time.perf_counter() - began - (spent.operator - before)
        return result

    soae_module.hessian_operator, soae_module.solve_to_residual = Operator, solver
    try:
        yield spent
    finally:
        soae_module.hessian_operator, soae_module.solve_to_residual = make, solve


def ours(case: Case, attack: SOAE) -> papers_way.Spent:
    with stopwatch() as spent:
        began = time.perf_counter()
        result = attack(case.model, case.x, case.y)
        spent.total = time.perf_counter() - began
    spent.gradients = int(result.gradient_calls.sum())
    return spent


def compare(case: Case, rounds: int) -> list[dict[str, Any]]:
    """The rows of a case, of runs that are taken in turns."""
    for attack in case.ours.values():  # compiles
        attack(case.model, case.x, case.y)
    theirs = []
    mine: dict[str, list[papers_way.Spent]] = {name: [] for name in case.ours}
    for _ in range(rounds):
        theirs.append(case.papers_way()[1])
        for name, attack in case.ours.items():
            mine[name].append(ours(case, attack))
    rows = []
    for name, runs in mine.items():
        row = {
            "name": f"{case.name}, {name}",
            "images": len(case.x),
            "attack": repr(case.ours[name]),
            "ours": summary(runs),
            "papers_way": summary(theirs),
            "ratio": measure.ratio([run.total for run in theirs], [run.total for run in runs]),
            "target": 6.0 if "small" in case.name else 1.3,
            "gradients_per_image": {
                "ours": runs[0].gradients / len(case.x), "papers_way": theirs[0].gradients / len(case.x),
            },
        }  # fmt: skip
        rows.append(row)
        print(describe(row), flush=True)
    return rows


def summary(runs: list[papers_way.Spent]) -> dict[str, Any]:
    split = {part: sum(run.split()[part] for run in runs) / len(runs) for part in ("operator", "solver", "rest")}
    return {"seconds": measure.spread([run.total for run in runs]), "split": split}


def describe(row: dict[str, Any]) -> str:
    parts = []
    for who in ("ours", "papers_way"):
        total = sum(row[who]["split"].values())
        shares = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in row[who]["split"].items())
        parts.append(f"{who} {row[who]['seconds']['median']:.2f} s ({shares})")
    r, g = row["ratio"], row["gradients_per_image"]
    return (
        f"{row['name']}: {r['median']:.2f}x ({r['p10']:.2f}-{r['p90']:.2f}), target {row['target']}x; "
        f"{'; '.join(parts)}; gradients {g['ours']:.1f}, {g['papers_way']:.1f}"
    )


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10 as parquet files")
    options = parser.parse_args()
    machine = measure.start(options)
    rounds = 2 if options.quick else 3
    rows = [row for case in cases(options.quick, options.cifar10) for row in compare(case, rounds)]
    measured = gains.measure_all(quick=options.quick)
    if options.output is not None:
        command = measure.command("bench/bench_attack_end_to_end.py")
        measure.write_json(options.output, {"command": command, "machine": machine, "cases": rows, "gains": measured})


if __name__ == "__main__":
    main()
