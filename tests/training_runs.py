"""A small training run with everything that has a state: momentum, an average, batch statistics, dropout, a log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from soae_ext.attacks import PGD
from soae_ext.data import ImageData
from soae_ext.models.checkpoint import read
from soae_ext.training import PGDTraining, Recipe, fit
from soae_ext.training.log import TIMINGS, RunLog

SHAPE, CLASSES = (1, 8, 8), 3
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    lr=0.05,
    nesterov=True,
    schedule="cosine",
    warmup=0.1,
    eps_warmup=0.5,
    ema=0.8,
    augmentation="crop-flip",
    padding=1,
    log_every=2,
    checkpoint_steps=3,
    seed=5,
)
OBJECTIVE = PGDTraining(0.1, steps=1)
ATTACK = PGD(0.1, steps=2)


def images(n: int, seed: int = 0, name: str = "noise") -> ImageData:
    """Labelled noise: 8-bit images with a bright row that tells the class."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 128, (n, *SHAPE))
    labels = generator.integers(0, CLASSES, n)
    pixels[np.arange(n), :, 2 * labels + 1] += 100
    return ImageData(torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels), name)


def network(seed: int = 0) -> nn.Module:
    """A network with batch normalisation and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, CLASSES)
    )


def plain_network(seed: int = 0) -> nn.Module:
    """A network whose images have nothing to do with each other."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))


def train(run_dir: Path, **options):
    """The run, continued if the directory holds it already."""
    log = RunLog(run_dir, tensorboard=False)
    settings = {"validation": images(20, 1), "attack": ATTACK, "resume": True, "log": log, **options}
    return fit(network(), images(70), OBJECTIVE, RECIPE, run_dir=run_dir, **settings)


def outcome(run_dir: Path) -> dict[str, object]:
    """What a run left, but for the times that it took."""
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    names = sorted(path.name for path in run_dir.iterdir())
    tables = {path.name: len(path.read_text().splitlines()) for path in run_dir.glob("*.csv")}
    return {
        "names": names,
        "rows": [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows],
        "tables": tables,
        **{name: contents(run_dir / name) for name in ("model.safetensors", "best.safetensors")},
    }


def contents(path: Path) -> dict[str, object]:
    """The bytes of every tensor in a safetensors file, and its metadata, whose order in the file is random."""
    tensors, metadata = read(path)
    return {**{name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, **metadata}
