"""The training loop beside plain PyTorch, and what it measures, keeps and refuses."""

import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from soae_ext.attacks import ASOD, FGSM, PGD, SOAE
from soae_ext.data import ImageData, load_digits
from soae_ext.models import SmallCNN, load_model
from soae_ext.training import (
    SCORPIO,
    SOAR,
    SOAT,
    STN,
    TRADES,
    ASODTraining,
    PGDTraining,
    Recipe,
    Standard,
    StepResult,
    TrainingObjective,
    fit,
    make_fabric,
)
from tests.training_runs import ATTACK, OBJECTIVE, RECIPE, images, network, plain_network

pytest.importorskip("lightning_fabric")

SHORT = Recipe(epochs=2, batch_size=10, lr=0.05, schedule="constant", log_every=1)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Rows:
    """A log in memory."""

    def __init__(self):
        self.steps, self.epochs, self.synced = [], [], 0

    def step(self, row):
        self.steps.append(row)

    def epoch(self, row):
        self.epochs.append(row)

    def rewind(self, step, *, epochs):
        self.steps = [row for row in self.steps if row["step"] <= step]

    def sync(self):
        self.synced += 1


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


ADAM = {"betas": (0.9, 0.999), "weight_decay": 0.01}
SGD = {"momentum": 0.8, "weight_decay": 0.01}


@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        (replace(SHORT, momentum=0.8, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.05, **SGD)),
        (
            replace(SHORT, momentum=0.8, weight_decay=0.01, nesterov=True, clip_gradient=0.1),
            lambda p: torch.optim.SGD(p, 0.05, nesterov=True, **SGD),
        ),
        (replace(SHORT, optimizer="adam", weight_decay=0.01), lambda p: torch.optim.Adam(p, 0.05, **ADAM)),
        (replace(SHORT, optimizer="adamw", weight_decay=0.01), lambda p: torch.optim.AdamW(p, 0.05, **ADAM)),
    ],
    ids=["sgd", "nesterov-clipped", "adam", "adamw"],
)
def test_a_run_is_bitwise_that_of_a_plain_loop(recipe, make):
    data, ours, theirs = images(45), plain_network(), plain_network()
    optimizer = make(theirs.parameters())
    for epoch in range(2):
        order = np.random.default_rng((recipe.seed, 0, epoch)).permutation(45)
        for rows in torch.from_numpy(order)[:40].split(10):
            optimizer.zero_grad()
            cross_entropy(theirs(data.images[rows]), data.labels[rows]).backward()
            if recipe.clip_gradient:
                nn.utils.clip_grad_norm_(theirs.parameters(), recipe.clip_gradient)
            optimizer.step()
    history = fit(ours, data, Standard(), recipe)
    assert history.model is ours
    assert same(ours, theirs)
    assert not same(ours, plain_network())
    assert (history.step, history.steps, history.finished) == (8, 8, True)
    assert not ours.training


@dataclass(frozen=True)
class Recording(PGDTraining):
    """Keeps what it was called with."""

    def step(self, model, x, y, *, seed, index):
        CALLS.append((self.eps, self.step_size, x, seed, index, model.training))
        return super().step(model, x, y, seed=seed, index=index)


CALLS = []


def test_the_objective_is_called_with_growing_radius_new_seeds_and_a_model_in_train_mode():
    CALLS.clear()
    recipe = replace(SHORT, eps_warmup=0.5, channels_last=True)
    fit(network().eval(), images(40), Recording(0.2, steps=2, step_size=0.1), recipe)
    radii, lengths, batches, seeds, indices, modes = zip(*CALLS, strict=True)
    assert radii == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert lengths == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert len(set(seeds)) == 8
    assert all(index.tolist() == list(range(10)) for index in indices)
    assert all(modes)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in batches)


def test_equal_seeds_give_equal_networks_whatever_was_drawn_before():
    """Dropout included; and the caller's own random numbers go on as if nothing had been."""
    found = []
    for number, seed in enumerate((5, 5, 6)):
        model = network()
        torch.manual_seed(number)
        expected = torch.get_rng_state()
        fit(model, images(40), OBJECTIVE, replace(RECIPE, epochs=1, seed=seed))
        assert torch.equal(torch.get_rng_state(), expected)
        found.append(model)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_the_log_adds_up():
    log, seen = Rows(), []
    recipe = replace(RECIPE, epochs=2, log_every=2, ema=0.0)
    history = fit(
        network(),
        images(45),
        OBJECTIVE,
        recipe,
        validation=images(20, 1),
        attack=ATTACK,
        log=log,
        progress=lambda *words: seen.append(words),
    )
    assert [words[:2] for words in seen] == [(step, 10) for step in range(1, 11)]
    assert [(row["step"], row["epoch"]) for row in log.steps] == [(2, 1), (4, 1), (6, 2), (8, 2), (10, 2)]
    assert [(row["step"], row["epoch"]) for row in log.epochs] == [(5, 1), (10, 2)]
    assert [words[2] for words in seen if words[0] % 2 == 0] == log.steps
    singles = [row["loss"] for _, _, row in seen]  # the mean since the last row: of one step, then of two
    losses = [one if step % 2 == 0 else 2 * one - singles[step - 1] for step, one in enumerate(singles)]
    assert [row["loss"] for row in log.epochs] == pytest.approx([sum(losses[:5]) / 5, sum(losses[5:]) / 5], rel=1e-6)
    assert [row["gradients"] for row in log.epochs] == [5 * 8 * 2, 10 * 8 * 2]
    assert {row["gradients_per_image"] for row in log.epochs} == {2.0}
    assert all(0 <= row["robust_accuracy"] <= 1 and row["clean_accuracy"] is None for row in log.steps)
    assert all(row["images_per_second"] > 0 for row in [*log.steps, *log.epochs])
    assert log.epochs[1]["seconds"] > log.epochs[0]["seconds"] > 0
    assert history.epochs == log.epochs


def test_the_last_epoch_may_be_a_part_of_one():
    history = fit(network(), images(45), Standard(), replace(RECIPE, max_steps=7, eps_warmup=0.0))
    assert [(row["step"], row["epoch"]) for row in history.epochs] == [(5, 1), (7, 2)]
    assert history.finished
    assert history.steps == 7


def test_validation_is_of_the_average_and_the_best_network_is_kept(tmp_path):
    data, validation = load_digits(), load_digits().first(60)
    train = ImageData(data.images[100:500], data.labels[100:500], "digits")
    torch.manual_seed(0)
    recipe = Recipe(epochs=6, batch_size=40, lr=0.1, ema=0.8, validate_every=2)
    history = fit(
        SmallCNN((4, 8), 16), train, Standard(), recipe, validation=validation, attack=FGSM(0.05), run_dir=tmp_path
    )
    robust = [row["robust_accuracy"] for row in history.epochs]
    assert [number is None for number in robust] == [True, False, True, False, True, False]
    best = history.best
    assert best.accuracy == max(robust[1::2])
    assert best.epoch == robust.index(best.accuracy) + 1
    assert best.step == 10 * best.epoch
    for name, row in (("best", history.epochs[best.epoch - 1]), ("model", history.epochs[-1])):
        network = load_model("small-cnn", tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            clean = (network(validation.images).argmax(1) == validation.labels).float().mean().item()
        broken = FGSM(0.05)(network, validation.images, validation.labels).success.float().mean().item()
        assert row["clean_accuracy"] == pytest.approx(clean)
        assert row["robust_accuracy"] == pytest.approx(1 - broken)
    assert robust[-1] > 0.3
    assert same(history.model, network)


@pytest.mark.parametrize(
    ("objective", "attacked"),
    [(Standard(), False), (PGDTraining(0.1, steps=1), True), (SOAT(0.5, norm="L2"), True), (STN(0.1), False)],
)
def test_the_default_attack_is_in_the_ball_of_the_objective(objective, attacked, monkeypatch):
    used = []
    call = PGD.__call__
    monkeypatch.setattr(PGD, "__call__", lambda self, *a, **k: (used.append(self), call(self, *a, **k))[1])
    history = fit(network(), images(30), objective, replace(SHORT, epochs=1), validation=images(25, 1))
    row = history.epochs[-1]
    if attacked:
        wanted = PGD(objective.eps, norm=objective.norm, steps=10)
        assert used == [wanted] * 3  # batches of 10, 10 and 5
        assert history.best.accuracy == row["robust_accuracy"]
    else:
        assert not used
        assert row["robust_accuracy"] is None
        assert history.best.accuracy == row["clean_accuracy"]


OBJECTIVES = [
    Standard(),
    PGDTraining(0.1, steps=2),
    TRADES(0.1, steps=2),
    SOAR(0.05),
    STN(0.1),
    SCORPIO(0.1),
    SOAT(0.1),
    SOAT(attack=SOAE(0.1, steps=1, max_dim=2)),
    SOAT.paper(0.1, max_dim=2),
    ASODTraining(attack=ASOD(0.1, steps=1, samples=2, sigma=0.1)),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_objective_trains(objective, precision):
    model = network()
    recipe = Recipe(max_steps=2, batch_size=10, lr=0.01, precision=precision, ema=0.5, log_every=1)
    history = fit(model, images(30), objective, recipe)
    assert history.finished
    assert not same(model, network())
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in model.parameters())
    row = history.epochs[0]
    assert row["gradients"] == pytest.approx(20 * row["gradients_per_image"])
    assert (row["krylov_mean"] is not None) == isinstance(objective, SOAT)


@dataclass(frozen=True)
class Failing(TrainingObjective):
    """The loss times `factor` from the fourth step on, or with gradients that are not finite."""

    name = "Failing"
    factor: float = 1.0
    vertical: bool = False

    cost = _step = None

    def step(self, model, x, y, *, seed, index):
        CALLS.append(None)
        loss = cross_entropy(model(x), y)
        if len(CALLS) >= 4:
            loss = loss * self.factor
            if self.vertical:  # 0 with an infinite slope
                loss = loss + (next(model.parameters()) * 0).abs().sum().sqrt()
        return StepResult(loss, torch.ones(len(x), dtype=torch.int64))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            Failing(factor=torch.nan),
            r"^the loss is nan in step 4: begin another run with a smaller lr, .*; /.* keeps the state of step 2$",
        ),
        (Failing(factor=torch.inf), r"^the loss is inf in step 4: "),
        (Failing(vertical=True), r"^the gradient's norm is nan in step 4: begin another run"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_and_changes_nothing(objective, message, tmp_path):
    CALLS.clear()
    model, recipe = plain_network(), replace(SHORT, checkpoint_steps=2)
    with pytest.raises(FloatingPointError, match=message):
        fit(model, images(60), objective, recipe, run_dir=tmp_path / "run")
    CALLS.clear()
    expected = plain_network()
    fit(expected, images(60), Failing(), replace(recipe, max_steps=3))
    assert same(model, expected)
    assert [path.name for path in (tmp_path / "run").glob("c*")] == ["checkpoint-00000002.safetensors"]


def data(pixel=0.5, label=0, shape=(1, 8, 8), n=30):
    return ImageData(torch.full((n, *shape), float(pixel)), torch.full((n,), label), "data")


SMALL = {"input_shape": (1, 8, 8), "classes": 3}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": data(shape=(3, 8, 8))}, ValueError, r"^train: the network takes images \(1, 8, 8\), these are"),
        ({"train": data(label=3)}, ValueError, r"^train: labels must lie in 0 to 2"),
        ({"train": data(label=-1)}, ValueError, r"^train: labels must lie in 0 to 2"),
        ({"train": data(torch.nan)}, ValueError, r"^train: images must lie in \[0, 1\]"),
        ({"train": data(2.0)}, ValueError, r"^train: images must lie in \[0, 1\]"),
        ({"train": data(n=0)}, ValueError, r"^train: there are no images"),
        ({"train": data(n=9)}, ValueError, r"^batch_size: 10 is more than the 9 training images"),
        ({"validation": data(label=5)}, ValueError, r"^validation: labels"),
        ({"validation": data(shape=(1, 9, 9))}, ValueError, r"^validation: "),
        ({"objective": "pgd"}, TypeError, r"^objective: must be a TrainingObjective"),
        ({"recipe": replace(SHORT, eps_warmup=0.5)}, ValueError, r"^eps_warmup: Standard has no ball"),
        ({"attack": PGD(torch.full((30,), 0.1))}, ValueError, r"^attack: validation has one radius"),
        ({"model": SmallCNN((2, 2), 4, **SMALL).requires_grad_(False)}, ValueError, r"^model: none of its parameters"),
        (
            {"recipe": replace(SHORT, precision="bf16-mixed"), "fabric": "32-true"},
            ValueError,
            r"^precision: the recipe",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(change, error, message, tmp_path):
    options = {"model": SmallCNN((2, 2), 4, **SMALL), "train": data(), "objective": Standard(), "recipe": SHORT}
    options |= change
    if "fabric" in options:
        options["fabric"] = make_fabric(precision=options["fabric"])
    with pytest.raises(error, match=message):
        fit(**options, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_directory():
    with pytest.raises(ValueError, match=r"^resume: there is nothing to go on from without run_dir"):
        fit(network(), images(30), Standard(), SHORT, resume=True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epochs": 0}, ValueError),
        ({"epochs": 1.5}, TypeError),
        ({"max_steps": 0}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"optimizer": "adma"}, ValueError),
        ({"lr": -0.1}, ValueError),
        ({"lr": torch.nan}, ValueError),
        ({"momentum": 1.0}, ValueError),
        ({"weight_decay": -1.0}, ValueError),
        ({"schedule": "cos"}, ValueError),
        ({"milestones": (0.5, 1.5)}, ValueError),
        ({"factor": 0.0}, ValueError),
        ({"warmup": 1.0}, ValueError),
        ({"eps_warmup": -0.1}, ValueError),
        ({"ema": 1.0}, ValueError),
        ({"augmentation": "cutout"}, ValueError),
        ({"padding": -1}, ValueError),
        ({"precision": "fp8"}, ValueError),
        ({"clip_gradient": 0.0}, ValueError),
        ({"validate_every": 0}, ValueError),
        ({"log_every": 0}, ValueError),
        ({"checkpoint_steps": 0}, ValueError),
        ({"checkpoint_seconds": -1.0}, ValueError),
        ({"seed": -1}, ValueError),
        ({"nesterov": True, "momentum": 0.0}, ValueError),
    ],
)
def test_a_recipe_names_what_is_wrong_with_it(options, error):
    with pytest.raises(error, match=f"^{next(iter(options))}: "):
        Recipe(**options)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:99", ""])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=r"^device: "):
        make_fabric(device)


def test_without_lightning_fabric_there_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ImportError, match=r"^training needs lightning-fabric: pip install lightning-fabric, or pip"):
        fit(network(), images(30), Standard(), SHORT)


def test_how_often_a_run_is_saved_may_change(tmp_path):
    saved = []
    for recipe in (
        replace(SHORT, checkpoint_seconds=0.0),
        replace(SHORT, checkpoint_steps=3, checkpoint_seconds=1e9),
        replace(SHORT, checkpoint_seconds=1e9),
    ):
        log = Rows()
        fit(network(), images(40), Standard(), recipe, run_dir=tmp_path / str(len(saved)), log=log)
        saved.append(log.synced)
    assert saved == [8, 4, 2]  # every step; steps 3, 4, 6, 8; both ends of epochs
    fit(network(), images(40), Standard(), SHORT, run_dir=tmp_path / "0", resume=True)
    with pytest.raises(ValueError, match=r"holds another run \(lr: "):
        fit(network(), images(40), Standard(), replace(SHORT, lr=0.1), run_dir=tmp_path / "0", resume=True)
