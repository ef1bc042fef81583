"""Running attacks on a data set, and what is reported of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attacks import Attack, AttackResult
from .data import ImageData

__all__ = ["Accuracy", "Measurement", "clean_accuracy", "evaluate", "table", "wilson_interval"]


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson, 1927); 95 % by default.

    Args:
        successes: between 0 and `trials`.
        trials: at least 1.
        z: quantile of the standard normal distribution.

    Raises:
        ValueError: the counts are out of range.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes: must be between 0 and trials >= 1, got {successes} of {trials}")
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    # At 0 and at all successes the bound is exactly 0 or 1; rounding must not pass it.
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Accuracy:
    """Correct predictions among `trials`, with the 95 % interval of the share."""

    correct: int
    trials: int

    @property
    def share(self) -> float:
        return self.correct / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.correct, self.trials)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:5.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    def as_json(self) -> dict[str, object]:
        return {"accuracy": self.share, "correct": self.correct, "interval_95": list(self.interval)}


@dataclass(frozen=True, eq=False)
class Measurement:
    """One attack on one data set.

    Attributes:
        name: of the attack.
        robust: accuracy on the adversarial images.
        loss: mean of the attack's loss on them. An attack that stops at the first success does not raise it further.
        gradients, forwards: mean per image.
        krylov_mean, krylov_max: over the solves that were made; `None` without any.
        seconds: wall time.
        x_adv: the adversarial images, `(n, C, H, W)`, on the CPU.
        success: `(n,)` bool.
    """

    name: str
    robust: Accuracy
    loss: float
    gradients: float
    forwards: float
    krylov_mean: float | None
    krylov_max: int | None
    seconds: float
    x_adv: Tensor
    success: Tensor

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "robust": self.robust.as_json(),
            "mean_loss": self.loss if math.isfinite(self.loss) else None,
            "gradients_per_image": self.gradients,
            "forwards_per_image": self.forwards,
            "krylov_dims": None if self.krylov_mean is None else {"mean": self.krylov_mean, "max": self.krylov_max},
            "seconds": self.seconds,
        }


def clean_accuracy(model: nn.Module, data: ImageData, device: torch.device, batch_size: int) -> tuple[Accuracy, float]:
    """Accuracy and mean cross-entropy on the unperturbed images; `model` must be in eval mode."""
    correct, loss = 0, 0.0
    with torch.no_grad():
        for images, labels, _ in _batches(data, device, batch_size):
            logits = model(images)
            correct += int((logits.argmax(1) == labels).sum())
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    return Accuracy(correct, len(data)), loss / len(data)


def evaluate(
    name: str,
    attack: Attack,
    model: nn.Module,
    data: ImageData,
    *,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], object] = lambda images: None,
) -> Measurement:
    """Attack every image of `data` and measure.

    Args:
        name: for the report.
        attack: what to run.
        model: on `device`.
        data: on the CPU; moved batch by batch.
        device: where to run.
        batch_size: images at once. Does not change the random numbers.
        advance: called with the number of images after every batch.
    """
    start = time.perf_counter()
    results: list[AttackResult] = []
    for images, labels, index in _batches(data, device, batch_size):
        results.append(attack(model, images, labels, index=index))
        advance(len(images))
    seconds = time.perf_counter() - start
    success = torch.cat([result.success for result in results]).cpu()
    dims = [result.krylov_dims[result.krylov_dims > 0] for result in results if result.krylov_dims is not None]
    solves = torch.cat(dims).double() if dims else torch.zeros(0)
    return Measurement(
        name=name,
        robust=Accuracy(int((~success).sum()), len(data)),
        loss=torch.cat([result.loss for result in results]).double().mean().item(),
        gradients=torch.cat([result.gradient_calls for result in results]).double().mean().item(),
        forwards=torch.cat([result.forward_calls for result in results]).double().mean().item(),
        krylov_mean=solves.mean().item() if len(solves) else None,
        krylov_max=int(solves.max()) if len(solves) else None,
        seconds=seconds,
        x_adv=torch.cat([result.x_adv for result in results]).cpu(),
        success=success,
    )


def _batches(data: ImageData, device: torch.device, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    parts = [slice(start, start + size) for start in range(0, len(data), size)]
    index = torch.arange(len(data))
    return [(data.images[part].to(device), data.labels[part].to(device), index[part]) for part in parts]


def table(clean: Accuracy, clean_loss: float, measurements: Sequence[Measurement]) -> str:
    """The measurements as lines of text, clean accuracy first."""
    head = ("", "accuracy (95 % interval)", "mean loss", "gradients", "forwards", "Krylov dim. (max)", "seconds")
    rows = [("clean", str(clean), f"{clean_loss:.4f}", "-", "-", "-", "-")]
    for m in measurements:
        dims = "-" if m.krylov_mean is None else f"{m.krylov_mean:.2f} ({m.krylov_max})"
        costs = (f"{m.gradients:.1f}", f"{m.forwards:.1f}", dims, f"{m.seconds:.1f}")
        rows.append((m.name, str(m.robust), f"{m.loss:.4f}", *costs))
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "-" * len(line(rows[0]).ljust(sum(widths) + 2 * len(widths) - 2)), *map(line, rows)])
