"""Copies are counted against what held-out films are."""

import numpy as np
import pytest

from hpc_hipgen.evaluation.memorisation import QUANTILE, copy_rate, nearest


@pytest.fixture
def films():
    """Features of training films, of held-out ones and of other drawings."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, 8)).astype(np.float32) for n in (60, 400, 400)]


def test_the_nearest_film_is_found_whatever_the_scale(films):
    training = films[0]
    assert nearest(3 * training[:5], training) == pytest.approx(np.zeros(5), abs=1e-6)
    one = np.eye(3)
    assert nearest(np.array([[1.0, 1.0, 0.0]]), one) == pytest.approx([1 - 0.5**0.5])


def test_copies_are_counted_and_films_like_others_are_not(films):
    training, held_out, drawn = films
    copies = training[:30] + 0.01
    assert copy_rate(copies, training, held_out)["rate"] == 1
    honest = copy_rate(drawn, training, held_out)
    assert honest["low"] < QUANTILE < honest["high"] and honest["n"] == 400
    half = np.concatenate([copies, -held_out[:30]])
    assert 0.5 <= copy_rate(half, training, held_out)["rate"] < 0.65
