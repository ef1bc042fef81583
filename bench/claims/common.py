"""What the measurements of the paper's claims share: networks, images, intervals, and the record of where they ran."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from soae_ext.attacks.losses import cross_entropy as attack_cross_entropy
from soae_ext.data import ImageData, load_data, load_digits
from soae_ext.evaluation import wilson_interval
from soae_ext.models import digits_network, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
sys.path.insert(0, str(ROOT / "bench"))
from measure import machine, write_json  # noqa: E402  (bench/ is not a package)

# Key -> (what it is, where it is). The ReLU networks are piecewise linear, the SiLU network is smooth.
DIGITS = {
    "relu-pgd": "small CNN, ReLU, PGD-trained (shipped)",
    "relu-standard": "small CNN, ReLU, standard training",
    "relu-soat": "small CNN, ReLU, SOAT",
    "silu-pgd": "small CNN, SiLU, PGD-trained",
}
_FILES = {
    "relu-standard": "digits_standard",
    "relu-soat": "digits_soat",
    "silu-pgd": "digits_silu_pgd",
    "cifar-standard": "cifar10_standard",
    "cifar-pgd": "cifar10_pgd",
}
Loss = Callable[[Tensor, Tensor], Tensor]


def network(key: str) -> nn.Module:
    """The network in eval mode, float32. Raises `OSError` if its file is not there."""
    if key == "relu-pgd":
        return digits_network()
    return load_checkpoint(ROOT / "bench" / "networks" / f"{_FILES[key]}.safetensors")


def smooth(model: nn.Module) -> bool:
    return not any(isinstance(module, nn.ReLU) for module in model.modules())


def loss_of(model: nn.Module) -> Loss:
    """Cross-entropy of each sample."""
    return lambda x, y: cross_entropy(model(x), y, reduction="none")


def stable_loss_of(model: nn.Module) -> Loss:
    """The same function of x in the form of the attacks, whose gradient with respect to z_y does not cancel."""
    return lambda x, y: attack_cross_entropy(model(x), y)


def digits(n: int | None = None) -> ImageData:
    return load_digits().first(n)


def cifar(data: str | None, n: int) -> tuple[dict[str, nn.Module], ImageData | None, str]:
    """The CIFAR-10 networks that there are, the first `n` test images, and what is missing."""
    found = {k: network(k) for k in ("cifar-standard", "cifar-pgd") if _path(k).exists()}
    if not found:
        return {}, None, "not measured: no bench/networks/cifar10_*.safetensors"
    if data is None:
        return {}, None, "not measured: no --data (or SOAE_DATA_DIR), a folder with cifar10/*.parquet"
    absent = [k for k in ("cifar-standard", "cifar-pgd") if k not in found]
    missing = f"not measured: {', '.join(absent)}" if absent else ""
    return found, load_data(f"cifar10:{Path(data) / 'cifar10'}", n=n), missing


def _path(key: str) -> Path:
    return ROOT / "bench" / "networks" / f"{_FILES[key]}.safetensors"


def in_batches(function: Callable[..., Any], *tensors: Tensor, size: int = 125) -> list[Any]:
    """`function` of corresponding pieces of the tensors."""
    return [function(*pieces) for pieces in zip(*(t.split(size) for t in tensors), strict=True)]


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(piece) for piece in x.split(250)])


def gauss_newton_factor(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F (B, C, n) with F'F the Gauss-Newton matrix J' (diag(p) - p p') J, D = J - J_y (B, C, n), and p (B, C).

    F = diag(sqrt p) (I - 1 p') J. On a ReLU network F'F is the Hessian, and F's singular values are the square roots of
    its eigenvalues, of which the smallest is zero: sqrt(p)' F = 0. The gradient is p'D = J' (p - e_y). Written with
    differences to row y, because for a confident prediction 1 - p_y would lose its digits.
    """
    x = x.clone().requires_grad_()
    z = model(x)
    rows = [torch.autograd.grad(z[:, k].sum(), x, retain_graph=True)[0].flatten(1) for k in range(z.shape[1])]
    J, p = torch.stack(rows, 1), z.detach().softmax(1)
    D = J - J[torch.arange(len(y)), y][:, None]
    return p.sqrt()[:, :, None] * (D - p[:, None] @ D), D, p


def share(hits: Tensor) -> dict[str, Any]:
    """A share of samples and its 95 % Wilson interval."""
    count, trials = int(hits.sum()), len(hits)
    low, high = wilson_interval(count, trials)
    return {"share": count / trials, "count": count, "of": trials, "interval_95": [low, high]}


def mean(values: Tensor, resamples: int = 2000) -> dict[str, Any]:
    """The mean over samples and its 95 % interval by the percentile bootstrap (seed 0)."""
    array = values.double().numpy()
    draws = np.random.default_rng(0).integers(0, len(array), (resamples, len(array)))
    low, high = np.quantile(array[draws].mean(1), [0.025, 0.975])
    return {"mean": float(array.mean()), "interval_95": [float(low), float(high)], "of": len(array)}


def spread(values: Tensor) -> dict[str, float]:
    """Quantiles over samples."""
    levels = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
    return {name: float(torch.quantile(values.double(), level)) for name, level in levels.items()}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def parser(text: str | None, name: str) -> argparse.ArgumentParser:
    """Options that every script has."""
    made = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    made.add_argument("--output", type=Path, default=RESULTS / f"curvature_{name}.json", help="the JSON file")
    made.add_argument("--data", default=os.environ.get("SOAE_DATA_DIR"), help="folder with cifar10/*.parquet")
    made.add_argument("--threads", type=int, default=1)
    return made


def save(arguments: argparse.Namespace, claim: str, content: dict[str, Any]) -> None:
    """Write the numbers with the command, the commit and the machine that they came from."""
    # Every option with its value, defaults too, so that a later default cannot change what the record means.
    options = {k: v for k, v in vars(arguments).items() if k not in ("output", "data")}
    words = [f"--{key.replace('_', '-')} {value}" for key, value in options.items()]
    if arguments.data is not None:
        words.append("--data DIR")
    command = " ".join([f"python bench/claims/{Path(sys.argv[0]).name}", *words])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, {"claim": claim, "command": command, "machine": machine(), **content})
    print(f"wrote {arguments.output}")
