"""Views by rarity: how many, within which bounds, and for whom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

from hpc_hipgen.config.data import VIEWS_OF_A_FILM
from hpc_hipgen.radiograph.balance import SMOOTHING, views_by_rarity

LEAST, MOST = VIEWS_OF_A_FILM


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 40), st.floats(0, 1), st.integers(0, 99))
def test_all_are_given_and_nobody_gets_too_few_or_too_many(count, views, balance, seed):
    angles = np.random.default_rng(seed).normal(100, 9, (count, 2)).clip(58, 122)
    found = views_by_rarity(angles, views, balance)
    assert found.sum() == count * views and found.shape == (count,)
    assert found.min() >= LEAST * views and found.max() <= MOST * views
    # the order of films and sides is no matter, but for one view that roundings leave over
    order = np.random.default_rng(seed).permutation(count)
    again = views_by_rarity(angles[order][:, ::-1], views, balance)
    assert np.abs(again - found[order]).max() <= 1


def test_without_balance_all_have_as_many():
    angles = np.random.default_rng(0).normal(100, 9, (50, 2))
    assert (views_by_rarity(angles, 16, 0.0) == 16).all()
    assert (views_by_rarity(np.full((7, 2), 100.0), 3, 1.0) == 3).all(), "none is rare"


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_views_go_with_the_density_of_the_rarer_angle(balance):
    angles = np.random.default_rng(1).normal(100, 6, (2000, 2))
    angles[:, 1] = angles[:, 0]
    found = views_by_rarity(angles, 100, balance)
    density = gaussian_kde(angles[:, 0], SMOOTHING / angles[:, 0].std(ddof=1))(angles[:, 0])
    free = (found > LEAST * 100) & (found < MOST * 100)
    assert free.sum() > 500
    ratio = found[free] * density[free] ** balance
    assert ratio.std() / ratio.mean() < 0.03


def test_one_rare_side_is_enough():
    angles = np.full((100, 2), 104.0)
    angles[3] = 104, 70
    found = views_by_rarity(angles, 10, 1.0)
    assert found[3] == 40 and (np.delete(found, 3) <= 10).all()
