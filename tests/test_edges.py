"""Edges against SciPy, and statistics of perturbations that were made to have them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from soae_ext.evaluation.bootstrap import bootstrap_mean
from soae_ext.evaluation.edges import (
    CONTROL,
    correlation,
    edge_analysis,
    edge_map,
    magnitude,
    ranks,
    strongest_share,
)


def pictures(n=6, channels=1, side=20, seed=0):
    """Smooth random blobs with some contrast, far enough from 0 and 1 for a perturbation of 0.2."""
    noise = np.random.default_rng(seed).normal(size=(n, channels, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return torch.from_numpy(0.5 + 0.25 * np.tanh(20 * smooth))


def by_name(images, moved, **options):
    return {each.name: each for each in edge_analysis(images, moved, **options)}


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_are_scipys(channels):
    images = pictures(channels=channels)
    grey = images.mean(1).numpy()
    want = [np.hypot(ndimage.sobel(each, 0, mode="nearest"), ndimage.sobel(each, 1, mode="nearest")) for each in grey]
    np.testing.assert_allclose(edge_map(images).numpy(), want, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=4), st.randoms())
def test_ranks_and_correlations_are_scipys(rows, random):
    a = np.array(rows, dtype=float)
    b = np.array([[random.randint(-2, 2) for _ in row] for row in rows], dtype=float)
    np.testing.assert_array_equal(ranks(a), stats.rankdata(a, axis=1))
    for ours, x, y in zip(correlation(a, b), a, b, strict=True):
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            assert np.isnan(ours)
        else:
            assert ours == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    for ours, x, y in zip(correlation(ranks(a), ranks(b)), a, b, strict=True):
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            assert ours == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_a_perturbation_on_the_edges_and_one_off_them():
    images = pictures()
    edges = edge_map(images)[:, None]
    scaled = edges / edges.flatten(1).amax(1).reshape(-1, 1, 1, 1)
    found = by_name(images, {"on": images + 0.1 * scaled, "off": images - 0.1 * (1 - scaled)})
    assert found["on"].pearson.mean == pytest.approx(1, abs=1e-4)
    assert found["on"].spearman.mean == pytest.approx(1, abs=1e-4)
    assert found["off"].pearson.mean == pytest.approx(-1, abs=1e-4)
    assert found["off"].spearman.mean == pytest.approx(-1, abs=1e-4)
    assert found["on"].edge_energy.mean > 2 * found["on"].expected
    assert found["off"].edge_energy.mean < found["off"].expected / 2
    assert found["on"].images == 6


def test_energy_only_on_the_strongest_edges_is_all_of_it():
    images = pictures()
    edges = edge_map(images).flatten(1)
    strongest = (edges >= edges.kthvalue(int(0.9 * edges.shape[1]) + 1).values[:, None]).reshape(images.shape)
    energy = by_name(images, {"a": images + 0.1 * strongest})["a"].edge_energy
    assert (energy.mean, energy.low, energy.high) == pytest.approx((1, 1, 1))


def test_a_constant_magnitude_has_no_correlation_and_the_expected_energy():
    """What the steps of an Linf attack leave: the radius everywhere, up to the rounding of single precision."""
    images = pictures().float()
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).sign()
    found = by_name(images, {"signs": images + 0.2 * signs})["signs"]
    assert found.pearson.count == found.spearman.count == 0
    assert found.as_json()["pearson"] == {"mean": None, "interval_95": None, "count": 0}
    assert found.edge_energy.mean == pytest.approx(found.expected, abs=1e-5)
    assert found.saturated == 1


def test_the_control_shows_what_clipping_makes():
    """Dark images with bright squares: random signs clipped at 0 are half as strong on the dark part alone."""
    images = torch.zeros(50, 1, 16, 16)
    images[:, :, 4:12, 4:12] = 0.5
    found = by_name(images, {"none": images, "all": images + 0.3})
    assert found["none"].images == 0
    assert found["none"].saturated is None
    control = found[CONTROL]
    assert control.images == 50
    assert control.pearson.low > 0.05
    assert control.saturated == 1  # of the pixels that clipping leaves


def test_the_control_has_the_size_of_the_attack_in_its_norm():
    images = pictures(n=3)
    moved = images.clone()
    moved[:, :, 5, 5] += 0.1
    controls = {norm: by_name(images, {"a": moved}, norm=norm)[CONTROL] for norm in ("Linf", "L2")}
    assert controls["Linf"].saturated == 1
    assert controls["L2"].saturated < 0.05


@pytest.mark.parametrize("part", [0.1, 0.25, 1.0])
def test_ties_for_the_last_place_share_it(part):
    edges = np.zeros((1, 40))
    edges[0, :2] = 1
    weights = np.ones((1, 40))
    share, expected = strongest_share(weights, edges, part)
    assert share[0] == pytest.approx(expected) == pytest.approx(part)
    assert np.isnan(strongest_share(np.zeros((1, 40)), edges, part)[0][0])


def test_the_magnitude_of_colours_is_their_root_mean_square():
    images = torch.zeros(1, 3, 1, 2)
    moved = torch.tensor([0.3, 0, -0.3]).reshape(1, 3, 1, 1).expand(1, 3, 1, 2)
    assert magnitude(images, moved).flatten().tolist() == pytest.approx([0.06**0.5] * 2)


def test_bootstrap_agrees_with_scipy_and_ignores_what_is_not_defined():
    values = np.random.default_rng(3).exponential(size=80)
    ours = bootstrap_mean(np.append(values, np.nan), resamples=20000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=5, n_resamples=20000).confidence_interval
    assert ours.count == 80
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert bootstrap_mean(values) == bootstrap_mean(values)


def test_bad_images_are_refused():
    images = pictures()
    with pytest.raises(ValueError, match="edges: there is no image"):
        edge_analysis(images[:0], {})
    with pytest.raises(ValueError, match="edges: the images of PGD have shape"):
        edge_analysis(images, {"PGD": images[:2]})
