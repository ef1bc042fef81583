"""Train a ResNet-18 in CIFAR form on CIFAR-10, on the images themselves or by PGD adversarial training.

    python examples/train_cifar10.py --data DIR --output net.safetensors --objective pgd --width 16

DIR holds CIFAR-10 as `train-*.parquet` and `test-*.parquet`, or in a sub-folder `cifar10`. SGD with momentum 0.9 and
weight decay 5e-4, a one-cycle learning rate, random crops with 4 pixels of padding and random flips. `--objective pgd`
trains on the last iterate of PGD in the Linf ball of radius `--eps` (in 1/255) from a random start (Madry et al.,
2018), attacking the network in eval mode. The checkpoint is written after every epoch, with the command, the clean
accuracy and, at the end, the accuracy under PGD-20 in its metadata. Equal seeds on equal hardware give equal networks.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from soae_ext.data import ImageData, load_data
from soae_ext.models import ResNet18, resnet18, save_checkpoint


def augment(x: Tensor, padding: int = 4) -> Tensor:
    """Shift every image ``(B, C, H, W)`` by up to `padding` pixels, zeros coming in, and mirror half of them."""
    count, channels, height, width = x.shape
    padded = pad(x, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    return padded[
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, random: bool) -> Tensor:
    """The last iterate of Linf PGD on the cross-entropy; `model` is attacked in eval mode and left in its mode."""
    training = model.training
    model.eval().requires_grad_(False)
    noise = torch.rand_like(x) * 2 - 1 if random else torch.zeros_like(x)
    adversarial = (x + eps * noise).clamp(0, 1)
    for _ in range(steps):
        adversarial.requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(adversarial), y, reduction="sum"), adversarial)
        moved = adversarial.detach() + step * gradient.sign()
        adversarial = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    model.train(training).requires_grad_(True)
    return adversarial


def accuracy(model: nn.Module, data: ImageData, options: argparse.Namespace, attacked: bool) -> float:
    """Share of correct predictions in eval mode, on the images or after PGD-20 with step eps/4 from the image."""
    eps, training, correct = options.eps / 255, model.training, 0
    model.eval()
    for x, y in zip(data.images.split(options.batch_size), data.labels.split(options.batch_size), strict=True):
        if attacked:
            x = pgd(model, x, y, eps, eps / 4, 20, random=False)
        with torch.no_grad():
            correct += int((model(x).argmax(1) == y).sum())
    model.train(training)
    return correct / len(data)


def train(model: ResNet18, data: ImageData, test: ImageData, options: argparse.Namespace) -> None:
    batches_per_epoch = len(data) // options.batch_size
    total = options.epochs * batches_per_epoch
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=total, pct_start=0.3)
    eps = options.eps / 255
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=options.bf16)
    for epoch in range(options.epochs):
        model.train()
        order = torch.randperm(len(data))
        bar = tqdm(range(batches_per_epoch), desc=f"epoch {epoch + 1}/{options.epochs}", file=sys.stderr, mininterval=2)
        for batch in bar:
            index = order[batch * options.batch_size : (batch + 1) * options.batch_size]
            x, y = augment(data.images[index]).contiguous(memory_format=torch.channels_last), data.labels[index]
            if options.objective == "pgd":
                # The steps add up to the diameter of the ball, so that its far side stays within reach.
                with autocast:
                    x = pgd(model, x, y, eps, 2 * eps / options.steps, options.steps, random=True)
            with autocast:
                loss = cross_entropy(model(x).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        measured = {"clean_accuracy": accuracy(model, test, options, attacked=False)}
        if epoch + 1 == options.epochs:
            measured["pgd20_accuracy"] = accuracy(model, test, options, attacked=True)
        print(f"epoch {epoch + 1}:", ", ".join(f"{name} {value:.1%}" for name, value in measured.items()), flush=True)
        command = ["python", "examples/train_cifar10.py", "--data", "DIR", "--output", "FILE", *options.given]
        notes = {
            "command": shlex.join(command),
            "data": f"CIFAR-10, the first {len(data)} training images; accuracies: the first {len(test)} test images",
            "epochs_done": str(epoch + 1),
            "eps": f"{options.eps:g}/255 Linf",
            **{name: f"{value:.4f}" for name, value in measured.items()},
        }
        save_checkpoint(model, options.output, notes)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the CIFAR-10 parquet files")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write (.safetensors)")
    parser.add_argument("--objective", choices=("pgd", "standard"), default="pgd")
    parser.add_argument("--activation", choices=("relu", "silu", "softplus"), default="relu")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--images", type=int, default=50000, help="train on the first so many images")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--eps", type=float, default=8, help="radius of the Linf ball, in 1/255")
    parser.add_argument("--steps", type=int, default=7, help="PGD steps inside the training loop")
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where autocast says so")
    parser.add_argument("--test-images", type=int, default=1000, help="test images that the accuracies are taken on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.given = [
        word
        for name, value in vars(options).items()
        if name not in ("data", "output") and value != parser.get_default(name)
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    spec = f"cifar10:{options.data}"
    test = load_data(spec, "test", n=options.test_images)
    data = load_data(spec, "train", n=options.images)
    model = resnet18(width=options.width, activation=options.activation)
    train(model.to(memory_format=torch.channels_last), data, test, options)


if __name__ == "__main__":
    main()
