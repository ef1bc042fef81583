"""Train the digit network that the package ships, and write it with its test images.

    python examples/train_digits.py --data DIR

DIR holds MNIST as `train-*.parquet` and `test-*.parquet` with the columns `image` and `label`. The network is trained
by PGD adversarial training (Madry et al., 2018) in the Linf ball of radius 0.3: Adam, a one-cycle learning rate, and a
radius that grows over the first epochs, without which so small a network stays at chance. The checkpoint is written
after every epoch. Equal seeds on equal hardware give equal networks.

`--objective standard` trains on the images themselves, `--objective soat` on second-order adversarial examples (SOAE,
`--soae-steps` outer steps of Krylov dimension `--soae-dim`); `--activation silu` gives a network with smooth logits.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from soae_ext.attacks import SOAE
from soae_ext.data import ImageData, load_directory
from soae_ext.models.small_cnn import SmallCNN, save_checkpoint

EPS = 0.3
ASSETS = Path(__file__).resolve().parent.parent / "soae_ext" / "assets"


def pgd(model: SmallCNN, x: Tensor, y: Tensor, eps: float, step: float, steps: int, random: bool) -> Tensor:
    """The last iterate of Linf PGD on the cross-entropy."""
    noise = torch.rand_like(x) * 2 - 1 if random else torch.zeros_like(x)
    adversarial = (x + eps * noise).clamp(0, 1)
    for _ in range(steps):
        adversarial.requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(adversarial), y, reduction="sum"), adversarial)
        moved = adversarial.detach() + step * gradient.sign()
        adversarial = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return adversarial


def adversarial_batch(model: SmallCNN, x: Tensor, y: Tensor, eps: float, options: argparse.Namespace) -> Tensor:
    """What the objective trains on."""
    if options.objective == "standard" or eps == 0:
        return x
    if options.objective == "soat":
        steps = options.soae_steps
        attack = SOAE(
            eps, steps=steps, direction="ascent", max_dim=options.soae_dim, random_start=True, early_stop=False
        )
        seeded = replace(attack, step_size=2 * eps / steps, seed=int(torch.randint(2**31, ())))
        return seeded(model, x, y).x_adv
    model.requires_grad_(False)
    adversarial = pgd(model, x, y, eps, 2 * eps / options.steps, options.steps, random=True)
    model.requires_grad_(True)
    return adversarial


def accuracy(model: SmallCNN, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def robust_accuracy(model: SmallCNN, data: ImageData, random: bool) -> float:
    """Accuracy under PGD-40 with step 0.01, from the image itself or from a random start."""
    model.requires_grad_(False)
    adversarial = pgd(model, data.images, data.labels, EPS, 0.01, 40, random)
    model.requires_grad_(True)
    return accuracy(model, adversarial, data.labels)


def train(model: SmallCNN, data: ImageData, test: ImageData, options: argparse.Namespace) -> None:
    batches_per_epoch = len(data) // options.batch_size
    total = options.epochs * batches_per_epoch
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total, pct_start=0.3)
    for epoch in range(options.epochs):
        order = torch.randperm(len(data))
        bar = tqdm(range(batches_per_epoch), desc=f"epoch {epoch + 1}/{options.epochs}", file=sys.stderr)
        for batch in bar:
            index = order[batch * options.batch_size : (batch + 1) * options.batch_size]
            x, y = data.images[index], data.labels[index]
            done = (epoch * batches_per_epoch + batch) / total
            eps = EPS * min(1.0, done / options.warm_up)
            loss = cross_entropy(model(adversarial_batch(model, x, y, eps, options)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if batch % 20 == 0:
                bar.set_postfix(eps=f"{eps:.2f}", loss=f"{loss.item():.3f}")
        random_state = torch.get_rng_state()
        robust = robust_accuracy(model, test, random=False)
        torch.set_rng_state(random_state)
        clean = accuracy(model, test.images, test.labels)
        print(f"epoch {epoch + 1}: clean {clean:.1%}, PGD-40 {robust:.1%}", flush=True)
        write(model, options, {"epochs_done": str(epoch + 1), "pgd40_accuracy": f"{robust:.4f}"})


def write(model: SmallCNN, options: argparse.Namespace, notes: dict[str, str]) -> None:
    command = shlex.join(["python", "examples/train_digits.py", "--data", "DIR", *options.given])
    save_checkpoint(model, options.output / options.name, {"command": command, "data": "MNIST", **notes})


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the MNIST parquet files")
    parser.add_argument("--output", type=Path, default=ASSETS, help="directory to write to (default: the package's)")
    parser.add_argument("--name", default="digits_cnn.safetensors", help="file name of the checkpoint")
    parser.add_argument("--objective", choices=("pgd", "standard", "soat"), default="pgd")
    parser.add_argument("--activation", choices=("relu", "silu", "softplus"), default="relu")
    parser.add_argument("--soae-steps", type=int, default=2, help="outer steps of SOAE inside the training loop")
    parser.add_argument("--soae-dim", type=int, default=2, help="Krylov dimension of each of them")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=7, help="PGD steps inside the training loop")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warm-up", type=float, default=0.25, help="fraction of training over which eps grows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    settings = (
        "name",
        "objective",
        "activation",
        "soae_steps",
        "soae_dim",
        "epochs",
        "batch_size",
        "steps",
        "lr",
        "warm_up",
        "seed",
        "threads",
    )
    options.given = [
        word
        for name in settings
        if getattr(options, name) != parser.get_default(name)
        for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
    ]
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    test = load_directory(options.data, "test", n=1000)
    images = (test.images * 255).round().to(torch.uint8)
    digits = {"images": images, "labels": test.labels.to(torch.uint8)}
    (options.output / "digits.safetensors").write_bytes(serialize(digits))
    model = SmallCNN(activation=options.activation)
    train(model, load_directory(options.data, "train"), test, options)
    clean = accuracy(model, test.images, test.labels)
    direct, random = (robust_accuracy(model, test, random=start) for start in (False, True))
    notes = {
        "clean_accuracy": f"{clean:.4f}",
        "pgd40_accuracy": f"{direct:.4f}",
        "pgd40_random_start_accuracy": f"{random:.4f}",
    }
    write(model, options, notes)
    print(f"{len(test)} test images: clean {clean:.1%}, PGD-40 {direct:.1%}, PGD-40 from a random start {random:.1%}")


if __name__ == "__main__":
    main()
