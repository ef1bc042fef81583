"""Order, augmentation and random numbers of training batches; learning rates; the moving average."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from soae_ext.data import ImageData
from soae_ext.training import Recipe
from soae_ext.training.batches import Batches, crop_and_flip, seed_of
from soae_ext.training.ema import MovingAverage
from soae_ext.training.schedule import learning_rate, radius_factor
from tests.training_runs import images, network

CPU = torch.device("cpu")


def numbered(n):
    """Images that tell their number, with pixels that no 8 bits hold."""
    return ImageData((torch.arange(n) / (n + 0.5)).reshape(n, 1, 1, 1), torch.arange(n), "numbered")


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 12),
    world=st.integers(1, 3),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_image_once_whatever_the_number_of_processes(n, batch, world, seed, epoch):
    batch = min(batch * world, n) // world * world
    if batch == 0:
        return
    recipe = Recipe(batch_size=batch, seed=seed)
    data = numbered(n)
    shards = [Batches(data, recipe, CPU, rank, world) for rank in range(world)]
    alone = Batches(data, recipe, CPU)
    steps = range(epoch * alone.per_epoch, (epoch + 1) * alone.per_epoch)
    seen = [number for step in steps for number in alone[step].labels.tolist()]
    assert len(seen) == len(set(seen)) == n // batch * batch
    for step in steps:
        parts, together = [shard[step] for shard in shards], alone[step]
        for name in ("images", "labels", "index"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(together, name))
        assert torch.equal(together.images.flatten(), data.images.flatten()[together.labels])
        assert {part.seed for part in parts} == {together.seed}
        assert len({part.layers_seed for part in parts}) == world


def test_order_and_augmentation_depend_on_seed_and_step_alone():
    data, recipe = images(50), Recipe(batch_size=10, augmentation="crop-flip", padding=2, seed=3)
    forward, backward = Batches(data, recipe, CPU), Batches(data, recipe, CPU)
    batches = {step: forward[step] for step in range(12)}
    for step in reversed(range(12)):
        assert torch.equal(backward[step].images, batches[step].images)
    assert len({batch.seed for batch in batches.values()}) == 12
    orders = {tuple(torch.cat([batches[5 * epoch + step].labels for step in range(5)]).tolist()) for epoch in range(2)}
    assert len(orders) == 2
    other = Batches(data, Recipe(batch_size=10, augmentation="crop-flip", padding=2, seed=4), CPU)
    assert not torch.equal(other[0].images, batches[0].images)


def test_the_parts_of_two_processes_are_augmented_like_the_whole():
    recipe = Recipe(batch_size=10, augmentation="crop-flip", padding=2)
    parts = [Batches(images(50), recipe, CPU, rank, 2)[7].images for rank in range(2)]
    assert torch.equal(torch.cat(parts), Batches(images(50), recipe, CPU)[7].images)


def test_every_step_is_augmented_otherwise():
    batches = Batches(numbered(1000), Recipe(batch_size=1000, augmentation="crop-flip"), CPU)
    (offsets, mirrored), (others, other) = (batches._shifts(step, torch.arange(1000)) for step in range(2))
    assert not torch.equal(offsets, others)
    assert not torch.equal(mirrored, other)


@pytest.mark.parametrize("finer", [False, True])
def test_pixels_are_exactly_those_of_the_data(finer):
    data = images(20)
    pixels = data.images * 0.9 if finer else data.images
    found = Batches(ImageData(pixels, torch.arange(20), "data"), Recipe(batch_size=20), CPU)
    assert found._images.dtype == (torch.float32 if finer else torch.uint8)
    batch = found[0]
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, pixels[batch.labels])


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_crops_are_cut_out_of_the_padded_image(shape, padding, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(1, 256, shape).astype(np.uint8)
    offsets = generator.integers(0, 2 * padding + 1, (shape[0], 2))
    mirrored = generator.random(shape[0]) < 0.5
    expected = np.zeros_like(pixels)
    padded = np.pad(pixels, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    for i, (top, left) in enumerate(offsets):
        cut = padded[i, :, top : top + shape[2], left : left + shape[3]]
        expected[i] = cut[:, :, ::-1] if mirrored[i] else cut
    found = crop_and_flip(*map(torch.from_numpy, (pixels, offsets, mirrored)), padding)
    assert np.array_equal(found.numpy(), expected)


def test_shifts_and_mirrors_are_uniform():
    recipe = Recipe(batch_size=1000, augmentation="crop-flip", padding=1)
    offsets, mirrored = Batches(numbered(1000), recipe, CPU)._shifts(0, torch.arange(1000))
    counts = torch.bincount(offsets[:, 0] * 3 + offsets[:, 1], minlength=9)
    assert counts.min() > 70
    assert counts.max() < 155
    assert 420 < int(mirrored.sum()) < 580


def test_seeds_differ():
    assert len({seed_of(*numbers) for numbers in np.ndindex(5, 4, 30)}) == 600
    assert all(0 <= seed_of(number) < 2**63 for number in range(100))


def rates_of_torch(scheduler, steps, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = scheduler(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


SCHEDULERS = torch.optim.lr_scheduler


def warmed_cosine(optimizer):
    parts = SCHEDULERS.LinearLR(optimizer, 1 / 11, total_iters=10), SCHEDULERS.CosineAnnealingLR(optimizer, T_max=30)
    return SCHEDULERS.SequentialLR(optimizer, list(parts), milestones=[10])


@pytest.mark.parametrize(
    ("recipe", "scheduler", "options"),
    [
        (Recipe(lr=0.3), SCHEDULERS.OneCycleLR, {"max_lr": 0.3, "total_steps": 40}),
        (Recipe(lr=0.3, warmup=0.6), SCHEDULERS.OneCycleLR, {"max_lr": 0.3, "total_steps": 40, "pct_start": 0.6}),
        (Recipe(lr=0.3, schedule="cosine"), SCHEDULERS.CosineAnnealingLR, {"T_max": 40}),
        (Recipe(lr=0.3, schedule="cosine", warmup=0.25), warmed_cosine, {}),
        (Recipe(lr=0.3, schedule="step"), SCHEDULERS.MultiStepLR, {"milestones": [20, 30]}),
        (
            Recipe(lr=0.3, schedule="step", milestones=(0.1, 0.7), factor=0.5),
            SCHEDULERS.MultiStepLR,
            {"milestones": [4, 28], "gamma": 0.5},
        ),
        (Recipe(lr=0.3, schedule="constant"), SCHEDULERS.ConstantLR, {"factor": 1.0}),
        (
            Recipe(lr=0.3, schedule="constant", warmup=0.25),
            SCHEDULERS.LinearLR,
            {"start_factor": 1 / 11, "total_iters": 10},
        ),
    ],
)
def test_learning_rates_are_those_of_torch(recipe, scheduler, options):
    expected = rates_of_torch(scheduler, 40, **options)
    assert [learning_rate(recipe, step, 40) for step in range(40)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


@settings(deadline=None, max_examples=60)
@given(
    schedule=st.sampled_from(["constant", "step", "cosine", "one-cycle"]),
    warmup=st.floats(0, 0.99),
    steps=st.integers(1, 30),
)
def test_learning_rates_lie_between_zero_and_the_peak(schedule, warmup, steps):
    recipe = Recipe(lr=0.3, schedule=schedule, warmup=warmup)
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.3 * (1 + 1e-12) for rate in rates)


def test_the_radius_grows_to_its_full_size():
    factors = [radius_factor(Recipe(eps_warmup=0.5), step, 8) for step in range(8)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert radius_factor(Recipe(), 0, 8) == 1


def test_the_average_follows_parameters_and_statistics():
    model = network()
    average = MovingAverage(model, 0.7)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for step in range(1, 9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.train()(torch.rand(4, 1, 8, 8))
        average.update(model, step)
        decay = min(0.7, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    found = average.model.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            assert found[name] == 8
        else:
            torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    before = copy.deepcopy(model.state_dict())
    average.update(model, 9)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_average_moves_shared_tensors_once_and_copies_what_is_infinite():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    average = MovingAverage(model, 0.1)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update(model, 100)
    torch.testing.assert_close(average.model[1].weight, before + 0.9)
    assert average.model[0].weight is average.model[1].weight
    assert (average.model.mask == -torch.inf).all()
