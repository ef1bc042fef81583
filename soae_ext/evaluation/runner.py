"""Running attacks on a data set, batch by batch: resumable, and shared between processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

import soae_ext

from ..attacks import Attack
from ..data import ImageData
from .accuracy import Accuracy
from .measure import Clean, Measurement
from .progress import Progress
from .quality import distances, metrics_version, psnr_and_ssim
from .shard import Shard
from .store import Store, digest

__all__ = ["Precision", "Runner"]

Precision = Literal["fp32", "bf16"]

Batch = dict[str, Tensor]


class _Autocast(nn.Module):
    """A network computed in bfloat16 where torch's autocast says so, with float32 logits.

    The losses stay in single precision: bfloat16 has 8 bits, too few to tell the losses of two iterates apart.
    """

    def __init__(self, model: nn.Module, device_type: str) -> None:
        super().__init__()
        self.model = model
        self.device_type = device_type

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            logits: Tensor = self.model(images)
        return logits.float()


@dataclass(eq=False)
class Runner:
    """Runs attacks on one network.

    Every batch's results go through the store, if there is one, and are read back in a later run; the batches are dealt
    to the processes of the shard, which then all hold all results. Neither changes them: for equal batch size and
    threads they are bitwise those of one process that was not interrupted.

    Args and attributes:
        model: maps images in [0, 1] to logits. Moved to `device` and put into eval mode; `model` is then the network
            as it is attacked, in the chosen precision.
        device: where to run.
        batch_size: images at once. Does not change the random numbers.
        store: keeps the batches; `None` keeps nothing.
        shard: the part of this process.
        precision: `"fp32"`, or `"bf16"`: autocast inside the network; images and losses stay float32.
        progress: a bar to advance.
        was_training: whether some module of `model` came in training mode.
    """

    model: nn.Module
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 250
    store: Store | None = None
    shard: Shard = field(default_factory=Shard)
    precision: Precision = "fp32"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.network = self.model
        self.was_training = any(module.training for module in self.network.modules())
        self.network.to(self.device).eval()
        if self.precision == "bf16":
            self.model = _Autocast(self.network, self.device.type).eval()

    def on(self, model: nn.Module) -> Runner:
        """A runner for another network, and otherwise like this one."""
        return replace(self, model=model)

    @cached_property
    def fingerprint(self) -> str:
        """Of the network: its structure, parameters and buffers."""
        state = self.network.state_dict()
        return digest(str(self.network), *(part for name in sorted(state) for part in (name, state[name])))

    def run(self, job: str, name: str, attack: Attack, data: ImageData, *, images: bool = True) -> Measurement:
        """Attack every image of `data` and measure.

        Args:
            job: key of the work in the store, e.g. `"attacks/PGD-20"`; unique in one evaluation.
            name: for the report.
            attack: what to run; `eps` may be one radius for each image of `data`.
            data: on the CPU; moved batch by batch.
            images: keep the adversarial images. Without them `x_adv` is empty.

        Raises:
            ValueError, TypeError: as the attack does.
            OSError: a result cannot be written.
            FailedElsewhere: another process failed outside of this job. What fails in it is raised in all processes.
        """

        def measure(part: slice) -> Batch:
            local = replace(attack, eps=attack.eps[part]) if isinstance(attack.eps, Tensor) else attack
            return self._attack(local, data, part, images)

        options = {key: digest(value) if isinstance(value, Tensor) else value for key, value in asdict(attack).items()}
        key = (type(attack).__qualname__, sorted(options.items()), images)
        return Measurement.of_batches(name, self._batches(job, name, key, data, measure))

    def clean(self, data: ImageData) -> Clean:
        """Accuracy, mean cross-entropy and correctness on the unperturbed images."""

        def measure(part: slice) -> Batch:
            labels = data.labels[part].to(self.device)
            with torch.no_grad():
                logits = self.model(data.images[part].to(self.device))
                losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            return {"correct": (logits.argmax(1) == labels).cpu(), "losses": losses.double().cpu()}

        batches = self._batches("clean", "clean", "clean", data, measure)
        correct = torch.cat([batch["correct"] for batch in batches])
        loss = torch.cat([batch["losses"] for batch in batches]).mean().item()
        return Clean(Accuracy(int(correct.sum()), len(correct)), loss, correct)

    def predict(self, images: Tensor) -> Tensor:
        """Predicted classes `(n,)` int64 of `images` `(n, C, H, W)`, on the CPU; by this process alone."""
        with torch.no_grad():
            parts = torch.split(images, self.batch_size)
            return torch.cat([self.model(part.to(self.device)).argmax(1).cpu() for part in parts])

    def _batches(
        self, job: str, name: str, what: object, data: ImageData, measure: Callable[[slice], Batch]
    ) -> list[Batch]:
        """The results of all batches: those of this process computed or read, the others' received."""
        if self.progress:
            self.progress.start(name, len(data))
        key = self._key(what, data) if self.store else ""
        parts = [slice(start, start + self.batch_size) for start in range(0, len(data), self.batch_size)]

        def work() -> dict[int, Batch]:
            own: dict[int, Batch] = {}
            for number in self.shard.mine(len(parts)):
                found = self.store.load(job, number, key) if self.store else None
                if found is None:
                    found = measure(parts[number])
                    if self.store:
                        self.store.save(job, number, key, found)
                own[number] = found
                advance(number)
            return own

        def advance(number: int) -> None:
            if self.progress:
                self.progress.advance(len(data.labels[parts[number]]))

        everything: dict[int, Batch] = {}
        for rank, batches in enumerate(self.shard.agree(work)):
            everything.update(batches)
            for number in batches if rank != self.shard.rank else ():
                advance(number)
        return [everything[number] for number in range(len(parts))]

    def _key(self, what: object, data: ImageData) -> str:
        software = (soae_ext.__version__, str(torch.__version__), metrics_version())
        run = (software, self.batch_size, self.precision, self.device.type)
        return digest(self.fingerprint, what, run, data.fingerprint)

    def _attack(self, attack: Attack, data: ImageData, part: slice, keep: bool) -> Batch:
        images = data.images[part]
        index = torch.arange(len(data))[part]
        start = time.perf_counter()
        result = attack(self.model, images.to(self.device), data.labels[part].to(self.device), index=index)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        x_adv = result.x_adv.detach().cpu()
        batch = {
            "x_adv": x_adv if keep else x_adv[:0],
            "success": result.success.cpu(),
            "losses": result.loss.detach().double().cpu(),
            "gradient_calls": result.gradient_calls.cpu(),
            "forward_calls": result.forward_calls.cpu(),
            "seconds": torch.tensor([seconds], dtype=torch.float64),
            **distances(images, x_adv),
            **psnr_and_ssim(images, x_adv),
        }
        return batch if result.krylov_dims is None else {**batch, "krylov_dims": result.krylov_dims.cpu()}
