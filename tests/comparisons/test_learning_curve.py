"""Learning curves of rulers of few films."""

import numpy as np
import pytest

from hpc_hipgen.comparisons.learning_curve import _resampled, learning_curve


def results(errors):
    """Cells of two seeds, two films and the numbers 5 and 9."""
    return [
        {"arm": arm, "number": n, "seed": s, "refused": 1, "errors": (np.array(e) + s).tolist()}
        for (arm, n), e in errors.items()
        for s in (0, 1)
    ]


def test_the_learning_curve_is_paired_and_resamples_dogs():
    base = np.array([[1.0, 3.0], [4.0, 2.0], [0.0, 6.0]])
    given = {
        (arm, n): base + gain for n in (9, 5) for arm, gain in (("generated", 2), ("alone", 0))
    }
    lines = learning_curve(results(given), ["a", "b", "c"])
    assert [(x["films"], x["arm"]) for x in lines] == [
        (5, "alone"), (5, "generated"), (9, "alone"), (9, "generated"),
    ]  # fmt: skip
    alone, generated = lines[:2]
    assert alone["mae"] == pytest.approx(8 / 3 + 0.5) and alone["difference"] is None
    assert alone["low"] < alone["mae"] < alone["high"] and alone["refused"] == 2
    below = learning_curve(results({("alone", 5): -base}), ["a", "b", "c"])[0]
    assert alone["bias"] == pytest.approx(8 / 3 + 0.5)
    assert below["bias"] == pytest.approx(0.5 - 8 / 3) and below["mae"] > 0
    # all errors grow by two: so does every resample, and the difference has no width
    for key in ("difference", "difference_low", "difference_high"):
        assert generated[key] == pytest.approx(2)


def test_the_bootstrap_is_the_brute_force_one():
    rng = np.random.default_rng(0)
    dogs = ["a", "a", "b", "c", "d"]
    seeds, weights = _resampled(3, dogs, 1)
    assert seeds.sum(1) == pytest.approx(1) and weights.sum(1) == pytest.approx(1)
    assert np.array_equal(weights[:, 0], weights[:, 1]), "films of one dog go together"
    off = rng.random((3, 5))
    means = np.einsum("bs,sf,bf->b", seeds, off, weights)
    brute = []
    for _ in range(4000):
        picked = rng.choice(["a", "b", "c", "d"], 4)
        chosen = [i for dog in picked for i, whose in enumerate(dogs) if whose == dog]
        brute.append(off[rng.integers(0, 3, 3)][:, chosen].mean())
    assert np.quantile(means, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(brute, [0.1, 0.5, 0.9]), abs=0.02
    )
