"""What a step of adversarial training costs: second-order examples beside PGD's, and whole steps beside other loops.

    python bench/bench_training.py [--quick] [--threads N] [--peers DIR] [--output run.json]

crafting: SOAE in several modes, each beside PGD with as many gradients as it spent (an exact Hessian-vector product
    counts 2, a difference 1), on the same images. `ratio` is SOAE's time over PGD's.
steps: crafting, loss, backward pass and SGD update, in images per second; beside them the same PGD-7 training with
    torchattacks (if DIR holds it: pip install --no-deps --target DIR torchattacks) and with the plain loop of older
    libraries, which differentiates by the parameters too. `ratio` is images per second over that of this project's PGD.

Everything is timed in turns on one network that is put back to the same parameters; each row has the 10-90 % range.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext.attacks import PGD, SOAE
from soae_ext.data import load_digits
from soae_ext.models import digits_network, resnet18
from soae_ext.training import (
    SCORPIO,
    SOAR,
    SOAT,
    STN,
    TRADES,
    ASODTraining,
    PGDTraining,
    Standard,
    TrainingObjective,
)

STEPS = 7


@dataclass(frozen=True)
class Case:
    """A network, a batch for it and the radius of the ball."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float


def cases(quick: bool, device: torch.device) -> list[Case]:
    data = load_digits()
    size = 64 if quick else 128
    small = Case("small CNN, 28 x 28", digits_network(), data.images[:size], data.labels[:size], 0.3)
    found = [small]
    if device.type == "cuda":
        torch.manual_seed(0)
        x, y = torch.rand(128, 3, 32, 32), torch.randint(10, (128,))
        found.append(Case("ResNet-18, 32 x 32", resnet18(), x, y, 8 / 255))
    return [Case(c.name, c.model.to(device), c.x.to(device), c.y.to(device), c.eps) for c in found]


def attacks(eps: float) -> dict[str, SOAE]:
    """Without early stop, so that every image costs what the batch is planned for."""
    plain = {"early_stop": False, "max_dim": 5, "threshold": 0.0}
    return {
        "SOAT's default, 10 gradients": SOAT(eps).attack,
        "paper's setting, 4 steps, differences": SOAT.paper(eps).attack,
        "4 steps of 5 exact products": SOAE(eps, steps=4, **plain),
        "4 steps of 5 differences": SOAE(eps, steps=4, hvp="finite-difference", **plain),
        "4 steps, trust region, 2 dimensions": SOAE(
            eps, steps=4, direction="trust-region", max_dim=2, early_stop=False
        ),
        "4 steps, Frank-Wolfe, 2 dimensions": SOAE(eps, steps=4, direction="frank-wolfe", max_dim=2, early_stop=False),
    }


def crafting(case: Case, quick: bool) -> list[dict[str, Any]]:
    model = case.model.eval().requires_grad_(False)
    rows = []
    for name, attack in attacks(case.eps).items():
        spent = attack(model, case.x, case.y).gradient_calls.float().mean().item()
        pgd = PGD(case.eps, steps=max(1, round(spent)), early_stop=False)
        times = _timed(
            {"SOAE": lambda: attack(model, case.x, case.y), "PGD": lambda: pgd(model, case.x, case.y)},  # noqa: B023 - called before the next round
            case, quick,
        )  # fmt: skip
        row = {
            "case": case.name,
            "attack": name,
            "gradients": spent,
            "pgd_steps": pgd.steps,
            "ms": _milliseconds(times["SOAE"]),
            "pgd_ms": _milliseconds(times["PGD"]),
            "ratio": measure.ratio(times["SOAE"], times["PGD"]),
        }
        rows.append(row)
        print(f"{case.name}  {name:40}{spent:6.1f} gradients {row['ms']['median']:8.1f} ms, PGD-{pgd.steps} "
              f"{row['pgd_ms']['median']:8.1f} ms: {_range(row['ratio'])}", flush=True)  # fmt: skip
    return rows


def objectives(eps: float) -> dict[str, TrainingObjective]:
    return {
        "Standard": Standard(),
        f"PGD-{STEPS}": PGDTraining(eps, steps=STEPS),
        "TRADES-10": TRADES(eps),
        "SOAR": SOAR(eps),
        "STN": STN(),
        "ASOD": ASODTraining(eps),
        "SCORPIO": SCORPIO(eps),
        "SOAT": SOAT(eps),
        "SOAT, paper's setting": SOAT.paper(eps),
    }


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Projected gradient ascent as older libraries write it: `.backward()`, which differentiates by the weights too."""
    step = 2.5 / STEPS * eps
    delta = torch.empty_like(x).uniform_(-eps, eps)
    delta = ((x + delta).clamp(0, 1) - x).requires_grad_()
    for _ in range(STEPS):
        cross_entropy(model(x + delta), y).backward()
        delta.data = (delta.data + step * delta.grad.sign()).clamp(-eps, eps)
        delta.data = (x + delta.data).clamp(0, 1) - x
        delta.grad.zero_()
    model.zero_grad()
    return (x + delta).detach()


def loops(case: Case, peers: Path | None) -> dict[str, Callable[[nn.Module], Tensor]]:
    """Name -> the loss of a step."""
    found: dict[str, Callable[[nn.Module], Tensor]] = {
        name: lambda model, objective=objective: objective(model, case.x, case.y)
        for name, objective in objectives(case.eps).items()
    }
    found["plain loop, PGD-7"] = lambda model: cross_entropy(model(plain_pgd(model, case.x, case.y, case.eps)), case.y)
    library = _torchattacks(peers)
    if library is not None:

        def torchattacks_step(model: nn.Module) -> Tensor:
            attack = library.PGD(model, eps=case.eps, alpha=2.5 / STEPS * case.eps, steps=STEPS, random_start=True)
            return cross_entropy(model(attack(case.x, case.y)), case.y)

        found[f"torchattacks {library.__version__}, PGD-7"] = torchattacks_step
    return found


def _torchattacks(peers: Path | None) -> Any:
    if peers is not None:
        sys.path.append(str(peers))
    try:
        return importlib.import_module("torchattacks")
    except ImportError as error:
        print(f"torchattacks is not measured: {error}")
        return None


def steps(case: Case, peers: Path | None, quick: bool) -> list[dict[str, Any]]:
    fresh = copy.deepcopy(case.model)

    def whole(loss_of: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
        model = copy.deepcopy(fresh).train().requires_grad_(True)
        # So small a learning rate that the network stays what it is.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss_of(model).backward()
            optimizer.step()

        return step

    named = loops(case, peers)
    times = _timed({name: whole(loss_of) for name, loss_of in named.items()}, case, quick)
    base = f"PGD-{STEPS}"
    costs = {name: objective.cost().total for name, objective in objectives(case.eps).items()}
    rows = []
    for name, seconds in times.items():
        row = {
            "case": case.name,
            "loop": name,
            "gradients": costs.get(name, STEPS + 1),
            "images_per_second": measure.spread([len(case.x) / s for s in seconds]),
            "ratio": measure.ratio(times[base], seconds),
        }
        rows.append(row)
        print(f"{case.name}  {name:40}{row['gradients']:4d} gradients {row['images_per_second']['median']:9.0f} "
              f"images/s: {_range(row['ratio'])} of {base}", flush=True)  # fmt: skip
    return rows


def _timed(functions: dict[str, measure.Timed], case: Case, quick: bool) -> dict[str, list[float]]:
    return measure.interleaved(
        functions, cuda=case.x.is_cuda, repeats=5 if quick else 15, least_seconds=0.05 if quick else 0.2
    )


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    return {key: 1e3 * value for key, value in measure.spread(seconds).items()}


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:5.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})"


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--peers", type=Path, help="folder that torchattacks was installed into")
    options = parser.parse_args()
    machine = measure.start(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    rows: dict[str, list[dict[str, Any]]] = {"crafting": [], "steps": []}
    for case in cases(options.quick, device):
        rows["crafting"] += crafting(case, options.quick)
        rows["steps"] += steps(case, options.peers, options.quick)
    if options.output is not None:
        command = measure.command("bench/bench_training.py")
        measure.write_json(options.output, {"command": command, "machine": machine, **rows})


if __name__ == "__main__":
    main()
