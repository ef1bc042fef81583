"""Hessian-vector products: compiled, plain double backward, autograd without weight gradients, finite differences.

    python bench/bench_hvp.py [--quick] [--threads N] [--output run.json]

Every product is checked against double backward first: exact ones to rounding, differences to 5 % on smooth networks.
(The curvature of an untrained ReLU network is so small that one kink crossed by the step outweighs it, so differences
are timed there but not compared.) Then all are timed in turns, and each row
gives the median time of a product with its 10-90 % range and the median speed-up over double backward. The rows
"linearise" are the price of a new point: loss, gradient and whatever the products need.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext._hvp.curvature import Autocast, HessianProblem
from soae_ext._hvp.linearize import double_backward
from soae_ext.hvp import hessian_operator
from soae_ext.models import SmallCNN, resnet18

Loss = Callable[[Tensor, Tensor], Tensor]
BASELINE = "double-backward"


def cases(device: torch.device, quick: bool) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Network and shape of the batch; larger batches for a GPU."""
    if device.type == "cuda":
        return {
            "ResNet-18 relu B=128": (resnet18(), (128, 3, 32, 32)),
            "ResNet-18 relu B=8": (resnet18(), (8, 3, 32, 32)),
            "ResNet-18 softplus B=128": (resnet18(activation="softplus"), (128, 3, 32, 32)),
            "small CNN relu B=512": (SmallCNN(), (512, 1, 28, 28)),
        }
    chosen: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "ResNet-18 relu B=8": (resnet18(), (8, 3, 32, 32)),
        "small CNN relu B=64": (SmallCNN(), (64, 1, 28, 28)),
    }
    if not quick:
        chosen["ResNet-18 softplus B=8"] = (resnet18(activation="softplus"), (8, 3, 32, 32))
        chosen["small CNN relu B=8"] = (SmallCNN(), (8, 1, 28, 28))
    return chosen


def losses_of(model: nn.Module) -> Loss:
    return lambda x, y: cross_entropy(model(x), y, reduction="none")


def products(loss: Loss, x: Tensor, y: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way to a product at ``x``, linearised and ready."""
    problem = HessianProblem(loss, Autocast.current(x.device))
    return {
        BASELINE: hessian_operator(loss, x, y, method="double-backward"),
        "traced": hessian_operator(loss, x, y),
        "input-only": double_backward(problem, x, (y,), method="input-only").product,
        "one-sided difference": hessian_operator(loss, x, y, method="finite-difference"),
        "central difference": hessian_operator(loss, x, y, method="finite-difference", central=True),
    }


def errors(ways: dict[str, Callable[[Tensor], Tensor]], v: Tensor, smooth: bool) -> dict[str, float]:
    """Relative distance of each product from double backward; stops the run where one is wrong."""
    exact = ways[BASELINE](v)
    judged = {name: way for name, way in ways.items() if smooth or "difference" not in name}
    found = {name: float((way(v) - exact).norm() / exact.norm()) for name, way in judged.items()}
    for name, error in found.items():
        if not error <= (5e-2 if "difference" in name else 1e-5):
            raise SystemExit(f"{name} differs from {BASELINE} by {error:.1e}: not timed")
    return found


def measure_case(name: str, model: nn.Module, shape: tuple[int, ...], device: torch.device, quick: bool) -> list[Any]:
    model = model.to(device).eval().requires_grad_(False)
    x, v = torch.rand(shape, device=device), torch.randn(shape, device=device)
    y = torch.randint(10, shape[:1], device=device)
    loss = losses_of(model)
    start = time.perf_counter()
    hessian_operator(loss, x, y)
    compile_seconds = time.perf_counter() - start
    ways = products(loss, x, y)
    distance = errors(ways, v, smooth="softplus" in name)
    timed: dict[str, measure.Timed] = {way: lambda product=product: product(v) for way, product in ways.items()}
    timed["linearise double-backward"] = lambda: hessian_operator(loss, x, y, method="double-backward")
    timed["linearise traced"] = lambda: hessian_operator(loss, x, y)
    times = measure.interleaved(
        timed, cuda=device.type == "cuda", repeats=5 if quick else 15, least_seconds=0.05 if quick else 0.2
    )
    rows = []
    for way, seconds in times.items():
        baseline = times["linearise double-backward" if way.startswith("linearise") else BASELINE]
        row = {
            "case": name,
            "impl": way,
            "device": device.type,
            "t_us": {key: 1e6 * value for key, value in measure.spread(seconds).items()},
            "ratio": measure.ratio(baseline, seconds),
            "error": distance.get(way),
            "compile_s": compile_seconds if way == "traced" else None,
        }
        rows.append(row)
        print_row(row)
    print(f"{'':24}{'compiling, once per loss and shape':28}{compile_seconds:8.2f} s")
    return rows


def print_row(row: dict[str, Any]) -> None:
    t, r = row["t_us"], row["ratio"]
    error = "" if row["error"] is None else f"   error {row['error']:.1e}"
    print(
        f"{row['case']:24}{row['impl']:28}{t['median'] / 1e3:8.2f} ms ({t['p10'] / 1e3:.2f}-{t['p90'] / 1e3:.2f})"
        f"   {r['median']:5.2f}x ({r['p10']:.2f}-{r['p90']:.2f}){error}"
    )


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    machine = measure.start(options)
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
        print(f"GPU: {machine['cuda']['name']}")
    else:
        print("GPU rows skipped: no CUDA")
    torch.manual_seed(0)
    rows = []
    for device in devices:
        for name, (model, shape) in cases(device, options.quick).items():
            rows += measure_case(name, model, shape, device, options.quick)
    if options.output is not None:
        command = measure.command("bench/bench_hvp.py")
        measure.write_json(options.output, {"command": command, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
