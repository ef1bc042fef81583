"""Trains under torchrun: DIR FAULT. The first process writes what it saw to DIR/WORLD_SIZE.json.

FAULT is `none`; `objective:R`, the objective fails in process R; `full`, the disk is full; `signal:R`, process R alone
gets SIGTERM in step 7; `nan:R`, the loss of process R alone is not finite from step 4 on.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

import soae_ext.training.run as run
from soae_ext.training import PGDTraining, Recipe, fit
from tests.training_runs import images, plain_network

folder, (kind, _, number) = Path(sys.argv[1]), sys.argv[2].partition(":")
world, rank = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0")
here = rank == number
torch.set_num_threads(1)
rows: list[dict] = []
calls = 0


class Faulty(PGDTraining):
    def step(self, *arguments, **options):
        global calls
        calls += 1
        if kind == "objective" and here and calls == 4:
            raise ValueError(f"x: process {rank} does not like it")
        if kind == "signal" and here and calls == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        result = super().step(*arguments, **options)
        return replace(result, loss=result.loss * torch.nan) if kind == "nan" and here and calls >= 4 else result


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if kind == "full":
    run.write_state = full
recipe = Recipe(
    epochs=10, max_steps=50, batch_size=12, lr=0.05, schedule="cosine", augmentation="crop-flip", ema=0.9, log_every=1
)
recipe = replace(recipe, eps_warmup=0.3, checkpoint_steps=5, clip_gradient=0.5)
try:
    # Processes start from other parameters, of which those of the first one count.
    history = fit(
        plain_network(0 if rank == "0" else 1),
        images(100),
        Faulty(0.1, steps=2),
        recipe,
        validation=images(31, 1),
        run_dir=folder / str(world),
        resume=True,
        progress=lambda step, steps, row: rows.append(row),
    )
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    sys.exit(2)
weights = [value.flatten().tolist() for value in history.model.state_dict().values()]
content = {"rows": rows, "epochs": history.epochs, "step": history.step, "weights": weights}
(folder / f"{world}-{rank}.json").write_text(json.dumps(content))
