"""Measuring attacks: counts, intervals, image quality, and results that survive an interruption."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soae_ext.attacks import FGSM, PGD, SOAE
from soae_ext.data import load_digits
from soae_ext.evaluation import Accuracy, Measurement, Runner, Store, paired_difference, wilson_interval, worst_case
from soae_ext.evaluation.quality import distances, psnr_and_ssim
from soae_ext.models import digits_network


@pytest.fixture(scope="module")
def data():
    return load_digits().first(12)


def same(first: Measurement, second: Measurement):
    """Whether two measurements agree bit by bit, apart from the time."""
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, torch.Tensor):
            if not (value.dtype == other.dtype and torch.equal(value.nan_to_num(-7), other.nan_to_num(-7))):
                return False
        elif name != "seconds" and value != other:
            return False
    return True


# --- shares ------------------------------------------------------------------------------------------------------


def test_wilson_interval_against_scipy():
    from scipy.stats import binomtest

    for successes, trials in ((0, 5), (5, 5), (1, 3), (93, 100), (935, 1000), (0, 1)):
        expected = binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
    for successes, trials in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            wilson_interval(successes, trials)
    assert str(Accuracy(93, 100)) == " 93.0 % (86.3 to 96.6)"


def test_paired_difference_covers_the_truth():
    """The interval holds the true difference in 95 % of many simulated evaluations, and is tighter than unpaired."""
    generator = np.random.default_rng(0)
    truth = 0.06 - 0.02
    hits = []
    for _ in range(2000):
        cell = generator.choice(4, size=300, p=(0.7, 0.06, 0.02, 0.22))
        first, second = torch.from_numpy((cell == 0) | (cell == 1)), torch.from_numpy((cell == 0) | (cell == 2))
        difference, low, high = paired_difference(first, second)
        assert difference == pytest.approx(first.double().mean() - second.double().mean())
        hits.append(low <= truth <= high)
    # Two thousand draws: the standard error of the coverage is half a percent.
    assert 0.93 < np.mean(hits) < 0.985


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None)
def test_paired_difference_is_antisymmetric(pairs):
    first, second = torch.tensor(pairs)[:, 0], torch.tensor(pairs)[:, 1]
    difference, low, high = paired_difference(first, second)
    assert -1 <= low <= high <= 1
    assert paired_difference(second, first) == pytest.approx((-difference, -high, -low))


# --- quality -----------------------------------------------------------------------------------------------------


def test_psnr_and_ssim_follow_their_definitions():
    """Against the formula in double precision, and SciPy's Gaussian filter (mirrored at the edges)."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(1)
    images = generator.random((3, 2, 24, 20))
    changed = np.clip(images + 0.1 * generator.standard_normal(images.shape), 0, 1)
    found = psnr_and_ssim(torch.from_numpy(images).float(), torch.from_numpy(changed).float())
    if not found:
        pytest.skip("torchmetrics is not installed")
    square = ((images - changed) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found["psnr"], -10 * np.log10(square), rtol=1e-5)

    def blur(x):
        return gaussian_filter(x, 1.5, mode="mirror", axes=(2, 3), truncate=3.5)

    mean_x, mean_y = blur(images), blur(changed)
    var_x, var_y = blur(images**2) - mean_x**2, blur(changed**2) - mean_y**2
    covariance = blur(images * changed) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    np.testing.assert_allclose(found["ssim"], ssim.mean((1, 2, 3)), rtol=1e-4)
    assert torch.isinf(psnr_and_ssim(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8))["psnr"]).all()
    assert torch.isnan(psnr_and_ssim(torch.ones(1, 1, 4, 8), torch.zeros(1, 1, 4, 8))["ssim"]).all()


def test_distances():
    images = torch.zeros(2, 1, 2, 2)
    changed = torch.tensor([[[[0.5, 0.0], [0.0, 0.25]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    found = distances(images, changed)
    assert found["linf"].tolist() == [0.5, 0.0]
    assert found["l2"].tolist() == [math.hypot(0.5, 0.25), 0.0]


# --- the runner --------------------------------------------------------------------------------------------------


def test_a_measurement_is_what_the_attack_returns(data):
    attack = SOAE(0.3, steps=2)
    found = Runner(digits_network(), batch_size=5).run("attacks/SOAE-2", "SOAE-2", attack, data)
    expected = [
        attack(digits_network(), data.images[part], data.labels[part], index=torch.arange(12)[part])
        for part in (slice(0, 5), slice(5, 10), slice(10, 12))
    ]
    assert torch.equal(found.x_adv, torch.cat([part.x_adv for part in expected]))
    assert torch.equal(found.success, torch.cat([part.success for part in expected]))
    assert torch.equal(found.gradient_calls, torch.cat([part.gradient_calls for part in expected]))
    assert torch.equal(found.krylov_dims, torch.cat([part.krylov_dims for part in expected]))
    assert found.robust == Accuracy(12 - int(found.success.sum()), 12)
    assert found.gradients == found.gradient_calls.double().mean()
    assert float(found.linf.max()) <= 0.3
    without = Runner(digits_network(), batch_size=5).run("x", "SOAE-2", attack, data, images=False)
    assert without.x_adv.shape == (0, 1, 28, 28)
    assert torch.equal(without.linf, found.linf)


def test_radii_per_image_follow_the_batches(data):
    eps = torch.linspace(0, 0.4, 12)
    found = Runner(digits_network(), batch_size=5).run("x", "PGD", PGD(eps, steps=3, early_stop=False), data)
    assert bool((found.linf <= eps.double() + 1e-9).all())
    assert float(found.linf[0]) == 0
    assert float(found.linf[-1]) > 0.2


def test_the_network_is_attacked_in_eval_mode(data):
    model = torch.nn.Sequential(digits_network(), torch.nn.Dropout(0.9))
    model.train()
    runner = Runner(model)
    assert runner.was_training
    assert not Runner(digits_network()).was_training
    assert torch.equal(runner.predict(data.images), digits_network()(data.images).argmax(1))


def test_bf16_keeps_float32_images_and_finds_nearly_the_same(data):
    fine = Runner(digits_network()).run("x", "PGD", PGD(0.3, steps=5), data)
    coarse = Runner(digits_network(), precision="bf16").run("x", "PGD", PGD(0.3, steps=5), data)
    assert coarse.x_adv.dtype == torch.float32
    assert coarse.loss == pytest.approx(fine.loss, rel=0.2, abs=0.02)
    assert coarse.loss != fine.loss
    Runner(digits_network(), precision="bf16").run("x", "SOAE", SOAE(0.3, steps=1), data)


def test_worst_case_is_per_example(data):
    runner = Runner(digits_network())
    clean = runner.clean(data)
    fake = runner.run("x", "one", FGSM(0.0), data)
    success = [torch.tensor([image in broken for image in range(12)]) for broken in ({1, 2}, {2, 3})]
    one, two = replace(fake, success=success[0]), replace(fake, name="two", success=success[1])
    assert bool(clean.correct.all())
    worst = worst_case(clean, [one, two])
    assert worst.correct.nonzero()[:, 0].tolist() == [0, 4, 5, 6, 7, 8, 9, 10, 11]
    assert worst.robust == Accuracy(9, 12)
    assert (worst.broken_by, worst.only_by) == ({"one": 2, "two": 2}, {"one": 1, "two": 1})
    mistaken = worst_case(clean._replace(correct=~success[0]), [two])
    assert mistaken.robust == Accuracy(9, 12)
    assert mistaken.broken_by == {"two": 1}
    assert worst_case(clean, []).robust == clean.accuracy


# --- the store ---------------------------------------------------------------------------------------------------


def test_results_are_read_back_bit_by_bit(data, tmp_path):
    attack = PGD(0.3, steps=3)
    store = Store(tmp_path / "parts", {"seed": 0})
    first = Runner(digits_network(), batch_size=5, store=store).run("attacks/PGD", "PGD", attack, data)
    files = sorted((tmp_path / "parts").rglob("*.safetensors"))
    assert len(files) == 3
    files[1].unlink()
    content = files[2].read_bytes()
    damaged = bytearray(content)
    damaged[-1] ^= 1
    for broken in (content[:-3], content[:100], b"", bytes(damaged)):
        files[2].write_bytes(broken)
        store = Store(tmp_path / "parts", {"seed": 0})
        again = Runner(digits_network(), batch_size=5, store=store).run("attacks/PGD", "PGD", attack, data)
        assert same(first, again)
    # Nothing is computed any more, not even the time.
    read = Runner(digits_network(), batch_size=5, store=store).run("attacks/PGD", "PGD", attack, data)
    assert same(again, read)
    assert again.seconds == read.seconds


def test_results_of_other_work_are_never_taken(data, tmp_path):
    store = Store(tmp_path / "parts", {})

    def run(model, attack, images):
        return Runner(model, batch_size=6, store=store).run("job", "PGD", attack, images)

    other = digits_network()
    other.classifier[2].bias.data[3] += 5
    cases = [
        (digits_network(), PGD(0.3, steps=3), data),
        (digits_network(), PGD(0.3, steps=2), data),
        (other, PGD(0.3, steps=3), data),
        (digits_network(), PGD(0.3, steps=3), replace(data, images=data.images.flip(0), labels=data.labels.flip(0))),
        (digits_network(), PGD(torch.full((12,), 0.2), steps=3), data),
        (digits_network(), FGSM(0.3), data),
    ]
    for case in cases:
        run(*cases[0])
        expected = Runner(case[0], batch_size=6).run("job", "PGD", *case[1:])
        assert same(run(*case), expected)


def test_another_runs_directory_is_refused(tmp_path):
    folder = tmp_path / "parts"
    Store(folder, {"seed": 0, "eps": 0.3})
    (folder / "mark").touch()
    Store(folder, {"seed": 0, "eps": 0.3})
    with pytest.raises(ValueError, match=r"another run \(eps: 0.3 there, 0.1 here\).*--fresh, or .*--output"):
        Store(folder, {"seed": 0, "eps": 0.1})
    with pytest.raises(ValueError, match=r"n: None there, 5 here"):
        Store(folder, {"seed": 0, "eps": 0.3, "n": 5})
    Store(folder, {"seed": 0, "eps": 0.1}, fresh=True)
    assert [file.name for file in folder.iterdir()] == ["run.json"]
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter").touch()
    for fresh in (False, True):
        with pytest.raises(ValueError, match="holds no results of a run"):
            Store(foreign, {}, fresh=fresh)
    assert (foreign / "chapter").exists()


def test_a_directory_half_made_or_half_removed_is_no_obstacle(tmp_path, monkeypatch):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / ".run.json.123.tmp").write_text("{")
    store = Store(folder, {"seed": 0})
    for job in ("a", "b"):
        store.save(job, 0, "key", {"x": torch.zeros(2)})
    with monkeypatch.context() as patch:
        patch.setattr("soae_ext.evaluation.store.shutil.rmtree", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.remove()
    store = Store(folder, {"seed": 0})
    assert torch.equal(store.load("a", 0, "key")["x"], torch.zeros(2))
    assert store.load("a", 0, "other") is None
    removed = []
    rmtree = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr("soae_ext.evaluation.store.shutil.rmtree", lambda path: (removed.append(path), rmtree(path)))
        store.remove()
    assert removed[-1] == folder
    assert len(removed) == 3
    assert not folder.exists()
