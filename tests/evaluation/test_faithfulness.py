"""The statistics of asked against measured angles, against scipy and closed forms."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpc_hipgen.evaluation import faithfulness as f


def sample(n, rho=0.8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(102, 7, n)
    return x, 102 + rho * (x - 102) + rng.normal(0, 4, n)


@pytest.mark.parametrize("n", [4, 10, 84])
@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.8])
def test_r_fishers_interval_and_slope_agree_with_scipy(n, rho):
    x, y = sample(n, rho, seed=n)
    got = f.faithfulness(x, y)
    reference = stats.pearsonr(x, y)
    interval = reference.confidence_interval(0.95)
    assert got["r"] == pytest.approx(reference.statistic, abs=1e-12)
    assert f.fisher_interval(got["r"], n) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert got["slope"] == pytest.approx(stats.linregress(x, y).slope, abs=1e-10)
    assert got["r2"] == pytest.approx(reference.statistic**2)


def test_known_numbers():
    got = f.faithfulness([90, 95, 100, 105], [92, 97, 102, 107])
    assert got["r"] == pytest.approx(1) and f.fisher_interval(1.0, 4) == (1, 1)
    assert (got["mae"], got["bias"], got["slope"]) == pytest.approx((2, 2, 1))
    assert (got["limit_low"], got["limit_high"]) == pytest.approx((2, 2))
    assert got["r2_identity"] == pytest.approx(1 - 16 / 125)
    assert (got["n"], got["failed"]) == (4, 0)


def test_refusals_are_counted_and_do_not_shift_the_rest():
    x, y = sample(50)
    holes = y.copy()
    holes[[3, 7, 20]] = np.nan
    kept = np.isfinite(holes)
    got, clean = f.faithfulness(x, holes), f.faithfulness(x[kept], y[kept])
    assert got.pop("failed") == 3 and clean.pop("failed") == 0
    assert got == clean


@pytest.mark.parametrize(
    "asked, measured",
    [
        ([], []),
        ([100.0], [101.0]),
        ([90.0, 95, 100], [91.0, 96, 101]),
        ([90.0, 95, 100, 105], [np.nan] * 4),
        ([100.0] * 6, [99.0, 100, 101, 102, 103, 104]),
    ],
)
def test_degenerate_input_has_no_r_and_is_strict_json(asked, measured):
    got = f.faithfulness(asked, measured)
    assert [got[k] for k in ("r", "r2", "r2_identity", "slope")] == [None] * 4
    assert got["n"] + got["failed"] == len(asked)
    json.dumps(got, allow_nan=False)


def test_a_constant_generator_has_slope_zero_and_no_r():
    got = f.faithfulness([90.0, 95, 105, 110], [100.0] * 4)
    assert got["r"] is None and got["slope"] == pytest.approx(0)
    assert got["mae"] == pytest.approx(7.5)
    assert got["r2_identity"] == pytest.approx(0), "drawing the mean request is the zero of R²"


@given(st.lists(st.floats(55, 125), min_size=1, max_size=30), st.floats(50, 130))
def test_no_angle_is_better_always_drawn_than_the_median(asked, angle):
    best = f.constant_mae(asked)
    assert best <= f.faithfulness(asked, [angle] * len(asked))["mae"] + 1e-9
    assert f.constant_mae([]) is None


def test_rounding_noise_on_a_constant_is_not_a_correlation():
    x = np.linspace(90, 110, 20)
    assert f.faithfulness(x, np.full(20, 100.0) + 1e-13 * x)["r"] is None


@pytest.mark.parametrize(
    "asked, measured, words",
    [
        ([1.0, 2], [1.0], "one length"),
        ([1.0, np.nan], [1.0, 2], r"asked\[1\]"),
        ([1.0, 2], [np.inf, 2], r"measured\[0\]"),
    ],
)
def test_bad_columns_are_named(asked, measured, words):
    with pytest.raises(ValueError, match=words):
        f.faithfulness(asked, measured)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(5, 60),
    st.integers(0, 10_000),
    st.floats(0.2, 3),
    st.floats(-20, 20),
)
def test_r_ignores_scale_and_offset_but_identity_does_not(n, seed, scale, offset):
    x, y = sample(n, seed=seed)
    a, b = f.faithfulness(x, y), f.faithfulness(x, scale * y + offset)
    assert b["r"] == pytest.approx(a["r"], abs=1e-9)
    assert b["slope"] == pytest.approx(scale * a["slope"], abs=1e-8)
    assert b["r2_identity"] <= 1 and b["mae"] >= abs(b["bias"]) - 1e-9


def test_permutation_null_matches_theory_and_repeats():
    x, y = sample(84, rho=0)
    null = f.permutation_null(x, y)
    assert null == f.permutation_null(x, y)
    assert null == pytest.approx(0.2146, abs=0.02)  # two-sided 5 % point of r at n = 84
    assert f.permutation_null(x, np.full(84, 100.0)) is None
    alone = f.permutation_null(x, y, [f"dog {i}" for i in range(84)])
    assert alone == pytest.approx(null, abs=1e-12)


def test_more_images_of_a_dog_do_not_lower_the_null():
    """Four images with one error each are no more evidence than one."""
    x, y = sample(84, rho=0)
    dogs = np.arange(84).repeat(4)
    null = f.permutation_null(x.repeat(4), y.repeat(4), dogs)
    assert null == pytest.approx(f.permutation_null(x, y), abs=1e-9)
    assert f.permutation_null(x.repeat(4), y.repeat(4)) < 0.6 * null
    # dogs of one, two and three images, one of which was refused
    some = np.resize([0, 1, 1, 2, 2, 2], 84) + np.arange(84) // 6 * 3
    y[5] = np.nan
    assert 0.2 < f.permutation_null(x, y, some) < 0.5


def test_paired_bootstrap_finds_a_difference_and_keeps_dogs_together():
    rng = np.random.default_rng(0)
    asked = rng.normal(100, 7, (60, 2))
    first, second = asked + rng.normal(0, 4, (60, 2)), asked + rng.normal(0, 1, (60, 2))
    dogs = [f"dog{i // 2}" for i in range(60)]
    got = f.paired_bootstrap(asked, first, second, dogs)
    plain = np.abs(first - asked).mean() - np.abs(second - asked).mean()
    assert got["difference"] == pytest.approx(plain)
    assert 0 < got["low"] < got["difference"] < got["high"] and got["dogs"] == 30
    same = f.paired_bootstrap(asked, first, first, dogs)
    assert (same["low"], same["difference"], same["high"]) == (0, 0, 0)
    first[5, 1] = np.nan
    found, kept = f.paired_bootstrap(asked, first, second, dogs), np.arange(60) != 5
    plain = (np.abs(first - asked) - np.abs(second - asked))[kept].mean()
    assert found["dogs"] == 30 and found["difference"] == pytest.approx(plain), "one film of two"
    first[4, 0] = np.nan
    assert f.paired_bootstrap(asked, first, second, dogs)["dogs"] == 29
    assert f.paired_bootstrap(asked[:3], first[:3], second[:3], dogs[:3])["low"] is None


def test_bootstrap_intervals_are_those_of_a_plain_loop_over_dogs():
    rng = np.random.default_rng(4)
    dogs = [f"dog {i // 2}" for i in range(60)]
    x = rng.normal(100, 7, 60)
    y = 0.8 * x + 20 + np.repeat(rng.normal(0, 2, 30), 2) + rng.normal(0, 1, 60)
    y[7] = np.nan
    found = f.bootstrap_intervals(x, y, dogs, resamples=300, seed=2)
    _, of = np.unique(np.array(dogs)[np.isfinite(y)], return_inverse=True)
    kept_x, kept_y = x[np.isfinite(y)], y[np.isfinite(y)]
    scores = []
    for pick in np.random.default_rng(2).integers(0, 30, (300, 30)):
        at = np.concatenate([np.flatnonzero(of == dog) for dog in pick])
        scores.append(f.faithfulness(kept_x[at], kept_y[at]))
    assert "r" in f.RESAMPLED
    for key in f.RESAMPLED:
        low, high = np.quantile([score[key] for score in scores], [0.025, 0.975])
        assert found[f"{key}_low"] == pytest.approx(low, abs=1e-9)
        assert found[f"{key}_high"] == pytest.approx(high, abs=1e-9)
    each = f.bootstrap_intervals(x, y, [str(i) for i in range(60)], seed=2)
    assert found["bias_high"] - found["bias_low"] > 1.15 * (each["bias_high"] - each["bias_low"])


def test_intervals_need_dogs():
    x = np.linspace(80, 110, 12)
    assert set(f.bootstrap_intervals(x, x + 1, ["a", "b", "c"] * 4).values()) == {None}
    assert set(f.bootstrap_intervals(np.full(12, 90.0), x, list("abcdefghijkl")).values()) == {None}


def test_resamples_of_dogs_of_whom_the_same_was_asked_say_nothing_of_a_slope():
    asked = [100.0, 100.0, 105.0, 110.0]
    found = f.bootstrap_intervals(asked, [101.0, 99.0, 107.0, 108.0], list("abcd"))
    assert found["r2_identity_low"] is found["slope_high"] is None  # 7 % of the resamples
    assert 1 <= found["mae_low"] <= found["mae_high"] <= 2
    asked, dogs = np.repeat([90.0, 100.0, 110.0, 95.0], 4), [str(n) for n in range(16)]
    found = f.bootstrap_intervals(asked, asked + 1, dogs)
    assert -1 < found["r2_identity_low"] < found["r2_identity_high"] < 1


def test_paper_rows():
    assert [(row.left, row.right) for row in f.PAPER_TABLE_1] == [
        (0.2026, 0.1458),
        (0.1307, 0.2747),
        (0.1814, 0.1338),
    ]


def test_the_interval_of_a_difference_covers_95_percent():
    gain = np.random.default_rng(0).normal(size=(400, 1))
    dogs = [f"dog {i}" for i in range(400)]
    asked, first, second = np.zeros((400, 2)), 10 + gain.repeat(2, 1), np.full((400, 2), 10.0)
    got = f.paired_bootstrap(asked, first, second, dogs)
    half = 1.96 * gain.std() / 20
    assert (got["high"] - got["low"]) / 2 == pytest.approx(half, rel=0.08)
