"""The plans: what each table consists of at each budget.

`cpu`, minutes that its recorded run took on two cores (docs/results/tables):

    table 1          34    MNIST, small CNN on 40,000 images; three seeds of three rows; AutoAttack on 500 images
    table 2          41    CIFAR-10, ResNet-18 of width 8 on 4,000 images, AutoAttack on 200
    table 3           4    ImageNet sample, EfficientNet-Lite0 as it comes
    table 4           2    the networks of tables 1 to 3
    table 5           0    the measurements of tables 1 to 3
    equal-gradients  24    MNIST, small CNN, eight ways to craft at 3, 7 and 12 gradients
    single-step      16    CIFAR-10, ResNet-18 of width 8, eps 8/255 and 16/255

`gpu`: ResNet-18; `paper`: what section IV-A of the paper says, for a cluster. Neither has been timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..training.presets import PRESETS
from ..training.recipe import Recipe
from .plans import Block, Budget, Column, Row, Table, TableName, Use

__all__ = ["make_table"]

_SEEDS = (0, 1, 2)
_EPS = 8 / 255
# Krylov dimensions that a ReLU network with 10 classes can need: rank of the Hessian at most C - 1.
_RANK = 9

_TITLES: dict[TableName, str] = {
    "1": "Table I: robust accuracy on MNIST",
    "2": "Table II: robust accuracy on CIFAR-10",
    "3": "Table III: large images",
    "4": "Table IV: Krylov dimension m for five thresholds",
    "5": "Table V: PSNR and SSIM of adversarial images",
    "equal-gradients": "SOAT against PGD training at equal gradients",
    "single-step": "Single-step training and catastrophic overfitting",
}


def make_table(name: TableName, budget: Budget) -> Table:
    """The plan of one table at one budget."""
    makers: dict[TableName, Callable[[Budget], tuple[Block, ...]]] = {
        "1": lambda chosen: _MNIST[chosen],
        "2": lambda chosen: _CIFAR[chosen],
        "3": lambda chosen: (_IMAGENET[chosen],),
        "4": _dimensions,
        "5": _quality,
        "equal-gradients": _equal_gradients,
        "single-step": _single_step,
    }
    return Table(name, _TITLES[name], makers[name](budget), _NOTES.get(name, ()))


def _paper_mode(eps_text: str, direction: str, max_dim: int = _RANK) -> str:
    """The paper's attack as :meth:`soae_ext.training.SOAT.paper` reconstructs it: 4 steps of eps / 4."""
    return (
        f"SOAE-4:direction={direction},step_size={eps_text},hvp=finite-difference,delta0=random,"
        f"threshold=1e-3,max_dim={max_dim}"
    )


def _columns(step: str, *, sigma: str, referee: int | None, max_dim: int = _RANK) -> tuple[Column, ...]:
    """Columns of tables 1 and 2.

    Args:
        step: a quarter of eps, as text.
        sigma: of ASOD's noise, as text.
        referee: images for AutoAttack.
        max_dim: of the paper's attack.
    """
    return (
        Column("clean", None, "Clean"),
        Column("FGSM", "FGSM", "FGSM"),
        Column("PGD-20", "PGD-20", "PGD"),
        Column("AutoAttack", "AutoAttack", "Auto", referee, every_seed=False),
        Column("ASOD", f"ASOD:sigma={sigma}", "ASOD", every_seed=False),
        Column("SOAE, paper, -H^-1 g", _paper_mode(step, "paper", max_dim), "SOAE", every_seed=False),
        Column("SOAE, paper, +H^-1 g", _paper_mode(step, "ascent", max_dim), "SOAE", every_seed=False),
        Column("SOAE, best", "SOAE:gradients=100", "SOAE"),
        Column("APGD-100", "APGD-100"),
    )


def _rows(
    soat: str, *, sigma: str, seeds: Mapping[str, tuple[int, ...]], more: tuple[Row, ...] = ()
) -> tuple[Row, ...]:
    """The seven rows of the paper, and `more`."""
    objectives = {
        "STD": "Standard",
        "PGD": "PGD-7",
        "TRADES": "TRADES",
        "SOAR": "SOAR",
        "STN": f"STN:sigma={sigma}",
        "SCORPIO": "SCORPIO",
        "SOAT": soat,
    }
    return (*(Row(name, spec, seeds.get(name, (0,))) for name, spec in objectives.items()), *more)


_THREE = {"STD": _SEEDS, "PGD": _SEEDS, "SOAT": _SEEDS}
_ALL_SEEDS = dict.fromkeys(("STD", "PGD", "TRADES", "SOAR", "STN", "SCORPIO", "SOAT"), _SEEDS)
# As many gradients for an example as PGD training with 7 steps.
_SOAT = "SOAT:gradients=7"
_SOAT_PAPER = (Row("SOAT, paper, -H^-1 g", "SOAT-paper:direction=paper"), Row("SOAT, 7 gradients", _SOAT))
_MNIST_CPU: Recipe = replace(PRESETS["mnist-cpu"].recipe, epochs=3)
_CIFAR_CPU = Recipe(
    epochs=7, optimizer="sgd", lr=0.1, nesterov=True, schedule="one-cycle", augmentation="crop-flip", validate_every=4
)
_GPU = replace(PRESETS["cifar10-gpu"].recipe, epochs=20)
_MNIST_GPU = replace(_GPU, epochs=5, augmentation="none", eps_warmup=0.25)


def _block(
    data: str,
    key: str,
    model: str,
    recipe: Recipe,
    rows: tuple[Row, ...],
    *,
    train: int | None = None,
    held_out: int = 1000,
    test: int | None = None,
    referee: int | None = None,
    batch_size: int = 250,
) -> Block:
    """A part of table 1 or 2."""
    mnist = data == "mnist"
    return Block(
        key=key,
        title=f"{'MNIST' if mnist else 'CIFAR-10'}, `{model}`",
        model=model,
        use=Use(data, train, held_out, test),
        eps=0.3 if mnist else _EPS,
        recipe=recipe,
        rows=rows,
        columns=_columns("0.075" if mnist else "2/255", sigma="0.7" if mnist else "100/255", referee=referee),
        batch_size=batch_size,
        paper="WideResNet" if model.startswith("wrn") else "ResNet18",
    )


_MNIST: dict[Budget, tuple[Block, ...]] = {
    "cpu": (
        _block("mnist", "mnist-small-cnn", "small-cnn", _MNIST_CPU, _rows(_SOAT, sigma="0.7", seeds=_THREE),
               train=41000, test=500),
    ),
    "gpu": (
        _block("mnist", "mnist-resnet18", "resnet18:normalization=mnist", _MNIST_GPU,
               _rows(_SOAT, sigma="0.7", seeds=_ALL_SEEDS), test=1000),
    ),
    "paper": tuple(
        _block("mnist", f"mnist-{name}", f"{name}:normalization=mnist", PRESETS["paper-mnist"].recipe,
               _rows("SOAT-paper", sigma="0.7", seeds=_ALL_SEEDS, more=_SOAT_PAPER), referee=1000)
        for name in ("resnet18", "wrn-34-10")
    ),
}  # fmt: skip
_CIFAR: dict[Budget, tuple[Block, ...]] = {
    "cpu": (
        _block("cifar10", "cifar10-resnet18-8", "resnet18:width=8", _CIFAR_CPU,
               _rows(_SOAT, sigma="100/255", seeds={}), train=4200, held_out=200, test=200, batch_size=100),
    ),
    "gpu": (
        _block("cifar10", "cifar10-resnet18", "resnet18", _GPU, _rows(_SOAT, sigma="100/255", seeds=_ALL_SEEDS),
               train=17667, test=1000),
    ),
    "paper": tuple(
        _block("cifar10", f"cifar10-{name}", name, PRESETS["paper-cifar10"].recipe,
               _rows("SOAT-paper", sigma="100/255", seeds=_ALL_SEEDS, more=_SOAT_PAPER), referee=1000)
        for name in ("resnet18", "wrn-34-10")
    ),
}  # fmt: skip


def _imagenet_columns(step: str, referee: int, max_dim: int) -> tuple[Column, ...]:
    """Table III has no FGSM and no ASOD; FGSM is measured for Table V."""
    known = {column.name: column for column in _columns(step, sigma="100/255", referee=referee, max_dim=max_dim)}
    known.pop("ASOD")
    return tuple(known.values())


def _pretrained(test: int) -> Block:
    """The network that comes trained, on the sample of ImageNet; the paper's 8/255 leaves nothing of it to compare."""
    columns = tuple(
        replace(column, attack=_CHEAPER.get(column.name, column.attack)) for column in _imagenet_columns("1/255", 16, 9)
    )
    return Block(
        key="imagenet-sample-efficientnet-lite0",
        title="ImageNet sample, `efficientnet-lite0` as it comes",
        model="efficientnet-lite0",
        use=Use("imagenet-sample", 0, 0, test),
        eps=4 / 255,
        recipe=Recipe(epochs=1),
        rows=(Row("STD", None),),
        columns=columns,
        batch_size=8,
        paper="network (not named)",
    )


# 20 gradients of images of 224 x 224 take a second.
_CHEAPER = {"SOAE, best": "SOAE:gradients=40", "APGD-100": "APGD-100"}
_IMAGENET: dict[Budget, Block] = {
    "cpu": _pretrained(32),
    "gpu": replace(_pretrained(500), batch_size=50),
    "paper": Block(
        key="imagenet100-resnet18",
        title="ImageNet-100, `resnet18` (CIFAR form)",
        model=PRESETS["paper-imagenet100"].model,
        use=Use("imagenet100", test=1000, test_split="val"),
        eps=_EPS,
        recipe=PRESETS["paper-imagenet100"].recipe,
        rows=tuple(
            row
            for row in _rows("SOAT-paper:max_dim=99", sigma="100/255", seeds={})
            if row.name not in ("STN", "SCORPIO")
        ),
        columns=_imagenet_columns("2/255", 1000, 99),
        batch_size=16,
        paper="network (not named)",
    ),
}


def _standard(block: Block, names: tuple[str, ...]) -> Block:
    """The block with the first seed of some rows alone."""
    return replace(block, rows=tuple(replace(row, seeds=row.seeds[:1]) for row in block.rows if row.name in names))


def _first(budget: Budget) -> tuple[Block, ...]:
    """A block of each data set: the paper's ResNet18 where it has two networks."""
    return _MNIST[budget][0], _CIFAR[budget][0], _IMAGENET[budget]


def _dimensions(budget: Budget) -> tuple[Block, ...]:
    """The networks of tables 1 to 3."""
    images = {"imagenet-sample": 8, "imagenet100": 64}
    return tuple(
        replace(_standard(block, ("STD", "PGD")), columns=(), dimensions=images.get(block.use.name, 64))
        for block in _first(budget)
    )


def _quality(budget: Budget) -> tuple[Block, ...]:
    """Measurements of tables 1 to 3."""
    kept = ("FGSM", "PGD-20", "AutoAttack", "SOAE, paper, -H^-1 g", "SOAE, paper, +H^-1 g", "SOAE, best")
    return tuple(
        replace(
            _standard(block, ("STD", "PGD")),
            columns=tuple(column for column in block.columns if column.name in kept),
        )
        for block in _first(budget)
    )


def _crafting(gradients: int) -> dict[str, str]:
    """Ways to spend so many gradients on an example, by name; those that cost more are left out."""
    soat = f"SOAT:gradients={gradients}"
    second = "second_order_steps=all,threshold_on=subdiagonal,max_dim=2"
    ways = {
        "PGD": f"PGD-{gradients}",
        "the same schedule, no curvature": f"{soat},second_order_steps=0",
        "SOAT, default (one Frank-Wolfe step)": soat,
        "SOAT, one trust-region step": f"{soat},direction=trust-region",
        "SOAT, one +H^-1 g step": f"{soat},direction=ascent,threshold_on=subdiagonal",
        "SOAT, +H^-1 g throughout": f"{soat},direction=ascent,{second}",
        "SOAT, -H^-1 g throughout (the paper's sign)": f"{soat},direction=paper,{second}",
    }
    if gradients >= 6:
        ways["SOAT, two Frank-Wolfe steps"] = f"{soat},second_order_steps=2"
    return ways


_STUDY_COLUMNS = (
    Column("clean", None),
    Column("PGD-20", "PGD-20"),
    Column("APGD-100", "APGD-100"),
)


def _equal_gradients(budget: Budget) -> tuple[Block, ...]:
    seeds: dict[int, tuple[int, ...]]
    if budget == "cpu":
        base, use = _MNIST["cpu"][0], Use("mnist", 11000, 1000, 500)
        recipe, seeds = replace(_MNIST_CPU, epochs=4), {3: (0, 1), 7: (0, 1), 12: (0,)}
    else:
        base, use = _CIFAR["gpu"][0], Use("cifar10", 17667, 1000, 1000)
        recipe, seeds = _GPU, {3: _SEEDS, 7: _SEEDS, 12: _SEEDS}
    if budget == "paper":
        recipe, use = PRESETS["paper-cifar10"].recipe, Use("cifar10", test=1000)
    return tuple(
        replace(
            base,
            key=f"{base.key}-equal-{gradients}",
            title=f"{base.title}, {gradients} gradients for each example",
            use=use,
            recipe=recipe,
            rows=tuple(Row(name, spec, seeds[gradients]) for name, spec in _crafting(gradients).items()),
            columns=_STUDY_COLUMNS,
            paper=None,
        )
        for gradients in (3, 7, 12)
    )


def _single_step(budget: Budget) -> tuple[Block, ...]:
    base = _CIFAR["cpu" if budget == "cpu" else "gpu"][0]
    epochs = 10 if budget == "cpu" else 30
    seeds = (0,) if budget == "cpu" else _SEEDS
    precision = base.recipe.precision if budget == "gpu" else "32-true"
    return tuple(
        replace(
            base,
            key=f"{base.key}-single-{radius}",
            title=f"{base.title}, eps {radius}/255",
            eps=radius / 255,
            recipe=replace(base.recipe, epochs=epochs, validate_every=1, precision=precision),
            rows=_single_rows(radius, epochs, seeds),
            columns=(Column("clean", None), Column("FGSM", "FGSM"), *_STUDY_COLUMNS[1:]),
            paper=None,
            probe=True,
        )
        for radius in (8, 16)
    )


def _single_rows(radius: int, epochs: int, seeds: tuple[int, ...]) -> tuple[Row, ...]:
    """One step each; the update counts a gradient too: 2 for an image of FGSM, 3 with a product, 1.5 times as many."""
    zero = f"PGD-1:random_start=false,step_size={radius}/255"
    random = f"PGD-1:step_size={1.25 * radius:g}/255"
    return (
        Row("FGSM, from the image", zero, seeds),
        Row("FGSM, random start", random, seeds),
        Row("FGSM, random start, 1.5 times the epochs", random, seeds, round(1.5 * epochs)),
        Row("PGD-2", "PGD-2", seeds),
        Row("SOAT, one Frank-Wolfe step, one product", "SOAT:gradients=2,max_dim=1", seeds),
    )


_WIDE = "The paper's WideResNet is part of the budget paper alone. Its text names neither depth nor width: WRN-34-10."
_NOTES: dict[TableName, tuple[str, ...]] = {
    "1": (
        _WIDE,
        "At the budget cpu a small CNN, trained for 3 epochs on 40,000 images, stands beside the paper's ResNet18.",
    ),
    "2": (
        _WIDE,
        "At the budget cpu a ResNet-18 of an eighth of the width, and 4,000 images, stand beside the paper's.",
    ),
    "3": (
        "At the budgets cpu and gpu the network is EfficientNet-Lite0 with its own ImageNet weights at eps 4/255, and "
        "SOAE has 40 gradients; only the paper's row STD has a counterpart. The paper trains on 100 classes.",
    ),
    "4": (
        "m is the first Krylov dimension whose residual is at most the threshold, from zero, for H d = g of one image, "
        "and of a batch taken for one system. The thresholds of the paper's columns are lost in its text: ours, 1e-5 "
        "to 1e-1, are put beside them in the order of falling m.",
    ),
    "5": (
        "Over the images that the attack changed; an attack that stops when it fools leaves smaller perturbations. "
        "PSNR with pixels in [0, 1] and a peak of 1.",
    ),
    "equal-gradients": (
        "Every way may spend the same number of gradients on an example (a difference product counts 1); paired "
        "differences are against PGD training with the same seed on the same test images, under APGD-100.",
    ),
    "single-step": (
        "Accuracy on held-out images after every epoch under PGD-10 and FGSM. Catastrophic overfitting: PGD accuracy "
        "falls while FGSM accuracy stays or rises.",
    ),
}
