"""The tests that decide whether two attacks differ, against SciPy."""

from fractions import Fraction
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from soae_ext.evaluation.sanity.statistics import LEVEL, binomial_tail, paired, sign_test


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 400), st.integers(0, 400))
def test_the_sign_test_is_the_one_sided_binomial_test(more, fewer):
    expected = binomtest(more, more + fewer, 0.5, alternative="greater").pvalue if more + fewer else 1.0
    assert sign_test(more, fewer) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 10_000), st.floats(0, 1), st.sampled_from([0.02, 0.05, 0.5, 0.9]))
def test_the_binomial_tail_is_that_of_scipy(trials, part, chance):
    successes = round(part * trials)
    # SciPy itself loses all digits of the tail around 1e-290.
    assert binomial_tail(successes, trials, chance) == pytest.approx(
        binom.sf(successes - 1, trials, chance), rel=1e-8, abs=1e-250
    )


@pytest.mark.parametrize("successes", [3, 40, 185, 195])
def test_small_tails_in_exact_arithmetic(successes):
    chance, trials = Fraction(0.02), 211
    exact = sum(comb(trials, j) * chance**j * (1 - chance) ** (trials - j) for j in range(successes, trials + 1))
    assert binomial_tail(successes, trials, 0.02) == pytest.approx(float(exact), rel=1e-10, abs=0)


@pytest.mark.parametrize(("successes", "trials", "chance"), [(-1, 5, 0.5), (6, 5, 0.5), (1, 5, 0.0), (1, 5, 1.0)])
def test_counts_and_chances_out_of_range_are_refused(successes, trials, chance):
    with pytest.raises(ValueError, match=r"successes|chance"):
        binomial_tail(successes, trials, chance)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="more"):
        sign_test(-1, 2)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_a_pair_counts_who_fools_what(fooled):
    first, second = (torch.tensor(column) for column in zip(*fooled, strict=True))
    pair = paired(first, second)
    assert pair.only_first == sum(a and not b for a, b in fooled)
    assert pair.only_second == sum(b and not a for a, b in fooled)
    assert pair.second - pair.first == pair.only_second - pair.only_first
    assert pair.gap == pytest.approx(100 * (pair.second - pair.first) / len(fooled))
    # Not both of two attacks can find more than the other.
    assert not (pair.second_finds_more() and paired(second, first).second_finds_more())


def test_a_pair_of_different_images_is_refused():
    with pytest.raises(ValueError, match="first"):
        paired(torch.zeros(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize(("alone", "flagged"), [(6, False), (7, True)])
def test_the_smallest_difference_that_counts(alone, flagged):
    """2^-6 > 1 % > 2^-7."""
    first, second = torch.zeros(128, dtype=torch.bool), torch.arange(128) < alone
    assert paired(first, second).second_finds_more(2.0) is flagged
    assert (sign_test(alone, 0) < LEVEL) is flagged


def test_a_significant_difference_of_few_points_does_not_count():
    first, second = torch.zeros(1000, dtype=torch.bool), torch.arange(1000) < 15
    assert paired(first, second).second_finds_more(0.0)
    assert not paired(first, second).second_finds_more(2.0)


@pytest.mark.parametrize("images", [128, 1000])
def test_a_share_found_alone_counts_beyond_what_chance_allows(images):
    limit = next(k for k in range(images) if binom.sf(k - 1, images, 0.02) < LEVEL)
    first = torch.zeros(images, dtype=torch.bool)
    assert not paired(first, torch.arange(images) < limit - 1).second_adds(2.0)
    assert paired(first, torch.arange(images) < limit).second_adds(2.0)
