"""Small plans, data and documents for the tests of `soae reproduce`."""

import torch
from safetensors.torch import save_file

from soae_ext.reproduce.plans import Block, Column, Row, Table, Use
from soae_ext.training.recipe import Recipe

COLUMNS = (
    Column("clean", None, "Clean"),
    Column("FGSM", "FGSM", "FGSM", every_seed=False),
    Column("PGD-3", "PGD-3", "PGD", images=10),
)
ROWS = (Row("STD", "Standard"), Row("SOAT", "SOAT:gradients=3", (0, 1)))
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.01, eps_warmup=0.25)


def block(**changes):
    """A block of two rows on images of 8 x 8."""
    values = {
        "key": "mnist-tiny",
        "title": "MNIST, tiny",
        "model": "small-cnn:input=1x8x8,width=2,classes=3",
        "use": Use("mnist", 40, 8, 12),
        "eps": 0.1,
        "recipe": RECIPE,
        "rows": ROWS,
        "columns": COLUMNS,
        "batch_size": 4,
        "paper": "ResNet18",
    }
    return Block(**{**values, **changes})


def table(*blocks, name="1"):
    """A table of these blocks, or of one."""
    return Table(name, f"Table {name}", blocks or (block(),))


def packed(path, *, train=48, test=16, classes=3):
    """Images whose class can be seen, as `soae data pack` writes them."""
    tensors = {}
    for split, count in (("train", train), ("test", test)):
        generator = torch.Generator().manual_seed(count)
        labels = torch.arange(count) % classes
        pixels = torch.randint(128, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        tensors[f"{split}.images"] = pixels + (labels * 40).to(torch.uint8).view(-1, 1, 1, 1)
        tensors[f"{split}.labels"] = labels
    save_file(tensors, path)
    return str(path)


def cell(correct, **more):
    """A finished measurement, from a text of 0 and 1."""
    share = correct.count("1") / len(correct)
    return {
        "robust": {"accuracy": share, "correct": correct.count("1"), "interval_95": [0.0, 1.0]},
        "images": len(correct),
        "image_correct": correct,
        "gradients_per_image": 1.0,
        "seconds": 60.0,
        **more,
    }
