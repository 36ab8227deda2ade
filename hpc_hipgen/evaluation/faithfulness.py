"""Statistics of asked against measured Norberg angles.

All angles are in degrees. Every number that cannot be computed (too few images, a constant column)
is ``None``, so that each result can be written as strict JSON, which knows no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

MIN_IMAGES = 4  # Fisher's interval divides by sqrt(n - 3)
NORMAL_975 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class PaperRow:
    """One generator of Table 1 of the source paper: Pearson's r, requested against measured angle.

    Over its 84 test films. Its "R²" is the square of r, so nothing is lost by storing r alone.
    """

    name: str
    left: float
    right: float


# Table 1 of the paper on the Leapfrog Latent Consistency Model (LLCM), test set of 84 films.
PAPER_TABLE_1 = (
    PaperRow("LLCM (paper)", 0.2026, 0.1458),
    PaperRow("Stable Diffusion (paper)", 0.1307, 0.2747),
    PaperRow("DreamBooth (paper)", 0.1814, 0.1338),
)
PAPER_TEST_FILMS = 84


def _measured(asked: ArrayLike, measured: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both columns where there is a measurement, float64, and where that is: (n,) bool.

    Raises ValueError where they are not vectors of one length. An infinite measurement or a missing
    request is a defect of the caller, not a failed measurement (which is NaN).
    """
    x, y = np.asarray(asked, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"asked and measured must be vectors of one length, got {x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"asked[{int(np.flatnonzero(~np.isfinite(x))[0])}] is not a finite angle")
    if np.isinf(y).any():
        raise ValueError(f"measured[{int(np.flatnonzero(np.isinf(y))[0])}] is infinite")
    valid = np.isfinite(y)
    return x[valid], y[valid], valid


def _varies(values: np.ndarray) -> bool:
    """Whether a column has a spread above the rounding of its own values."""
    return bool(np.ptp(values) > 1e-9 * max(1.0, float(np.abs(values).max())))


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's r of two finite vectors, in [-1, 1]; None below 4 values or for a constant one."""
    if len(x) < MIN_IMAGES or not _varies(x) or not _varies(y):
        return None
    dx, dy = x - x.mean(), y - y.mean()
    r = float(dx @ dy / math.sqrt(float(dx @ dx) * float(dy @ dy)))
    return min(1.0, max(-1.0, r))


def fisher_interval(r: float | None, n: int) -> tuple[float | None, float | None]:
    """95 % interval of a correlation through Fisher's z: tanh(atanh(r) ± 1.96 / sqrt(n - 3)).

    Source: Fisher 1921. ``n`` is the number of pairs. (None, None) without r or with n < 4; a
    perfect correlation has an interval of no width.

    Of columns that are normal, as nothing else is known of the paper's. The phantoms' angles have
    an excess kurtosis of 6: of them it holds in 80 % of samples (`bootstrap_intervals`: 90 %).
    """
    if r is None or n < MIN_IMAGES:
        return None, None
    if abs(r) == 1.0:
        return r, r
    half = NORMAL_975 / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def faithfulness(asked: ArrayLike, measured: ArrayLike) -> dict[str, float | int | None]:
    """How faithfully one side's angles were drawn.

    asked: (n,) degrees; measured: (n,) degrees, NaN where the ruler refused. Returns

    - ``n`` images measured and ``failed`` images refused: refusals are counted, and the other
      numbers are over the measured images;
    - ``r``, and ``r2`` = r squared (what the paper calls R²);
    - ``r2_identity`` = 1 - sum (measured - asked)² / sum (asked - mean asked)², the R² of the
      line y = x: 1 is perfect, 0 is as good as drawing the mean request every time, and it has no
      lower bound. It also punishes what r forgives: an offset and a wrong scale;
    - ``mae`` and ``bias`` (mean of measured - asked), degrees; ``slope`` of measured on asked by
      least squares;
    - ``limit_low`` and ``limit_high``, degrees: bias -+ 1.96 standard deviations of the
      error, the limits of agreement (Bland and Altman 1986, doi 10.1016/S0140-6736(86)90837-8).
    """
    x, y, valid = _measured(asked, measured)
    n = len(x)
    r = pearson(x, y)
    error = y - x
    fit = n >= MIN_IMAGES and _varies(x)
    dx = x - x.mean() if n else x
    reach = NORMAL_975 * float(error.std(ddof=1)) if n >= MIN_IMAGES else None
    return {
        "r": r,
        "r2": None if r is None else r * r,
        "r2_identity": 1.0 - float(error @ error) / float(dx @ dx) if fit else None,
        "mae": float(np.abs(error).mean()) if n else None,
        "bias": float(error.mean()) if n else None,
        "slope": float(dx @ y) / float(dx @ dx) if fit else None,
        "limit_low": None if reach is None else float(error.mean()) - reach,
        "limit_high": None if reach is None else float(error.mean()) + reach,
        "n": n,
        "failed": len(valid) - n,
    }


RESAMPLES = 1000
"""Of a bootstrap."""

RESAMPLED = ("r", "mae", "bias", "slope", "r2_identity")
"""What `bootstrap_intervals` gives intervals of."""

MAY_NOT_EXIST = 0.01
"""Share of the resamples without a statistic above which it has no interval."""


def sums_of_dogs(terms: np.ndarray, dogs: ArrayLike) -> np.ndarray:
    """Sums (d, k) of the terms (n, k) of each of d dogs, in the order of their names.

    dogs: (n,) names, whose term it is.
    """
    names, of = np.unique(np.asarray(dogs, dtype=str), return_inverse=True)
    return np.stack([np.bincount(of, term, len(names)) for term in terms.T], 1)


def resampled(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over so many samples of dogs, of the sums (d, ...) of each; (resamples, ...)."""
    picks = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    return sums[picks].sum(1)


def bootstrap_intervals(
    asked: ArrayLike,
    measured: ArrayLike,
    dogs: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float | None]:
    """95 % percentile intervals of `RESAMPLED`, as of `faithfulness`: keys mae_low, mae_high, ...

    asked, measured: (n,) degrees of images of `dogs` (n names). Dogs are resampled with all their
    images, which are not independent. Refused images are left out. None with fewer than
    `MIN_IMAGES` dogs, or where a statistic lacks in more than `MAY_NOT_EXIST` of the resamples.

    They say how far other dogs of the population might lead, not another training. With few dogs
    they are too narrow: for the mean error 95 % are 89 % with 16 dogs, 75 % with 4.
    """
    x, y, valid = _measured(asked, measured)
    missing: dict[str, float | None] = {
        f"{key}_{end}": None for key in RESAMPLED for end in ("low", "high")
    }
    names = np.asarray(dogs, dtype=str)[valid]
    if len(set(names)) < MIN_IMAGES or not _varies(x):
        return missing
    x0, error = x - x.mean(), y - x  # slope and R² do not mind the shift, rounding does
    terms = np.stack([np.ones_like(x), x0, x0**2, error, np.abs(error), error**2, x0 * error], 1)
    n, sx, sxx, se, sa, see, sxe = resampled(sums_of_dogs(terms, names), resamples, seed).T
    spread = sxx - sx**2 / n
    spread[spread < 1e-9 * (x0**2).sum()] = np.nan  # only dogs of whom the same was asked
    both = sxx + sxe - sx * (sx + se) / n
    found = sxx + 2 * sxe + see - (sx + se) ** 2 / n
    found[found < 1e-9 * (x0**2).sum()] = np.nan
    drawn = {
        "r": both / np.sqrt(spread * found),
        "mae": sa / n,
        "bias": se / n,
        "slope": 1 + (sxe - sx * se / n) / spread,
        "r2_identity": 1 - see / spread,
    }
    exist = {key: v for key, v in drawn.items() if np.isnan(v).mean() <= MAY_NOT_EXIST}
    ends = {key: np.nanquantile(values, [0.025, 0.975]) for key, values in exist.items()}
    return missing | {
        f"{key}_{end}": float(value)
        for key, pair in ends.items()
        for end, value in zip(("low", "high"), pair, strict=True)
    }


def constant_mae(asked: ArrayLike) -> float | None:
    """Mean absolute error, degrees, of always drawing one angle: the best, the captions' median.

    asked: (n,) degrees; None of none. A generator that hears of the angles lies below.
    """
    x = np.asarray(asked, dtype=np.float64)
    return float(np.abs(x - np.median(x)).mean()) if len(x) else None


def permutation_null(
    asked: ArrayLike,
    measured: ArrayLike,
    dogs: Sequence[str] | None = None,
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> float | None:
    """95th percentile of |r| when the measured angles are dealt to the requests at random.

    A correlation below it is not different from none (0.215 for 84 films with normal errors).
    Several images of one of the ``dogs`` say little more than one: they are dealt together, over
    again to a dog that has more. Deterministic in ``seed``; None where r itself does not exist.
    """
    x, y, valid = _measured(asked, measured)
    if pearson(x, y) is None:
        return None
    names = np.arange(len(x)) if dogs is None else np.asarray(dogs)[valid]
    images = _dealt(names, permutations, np.random.default_rng(seed))
    dx, dy = x - x.mean(), y[images]
    dy = dy - dy.mean(1, keepdims=True)
    spread = np.linalg.norm(dy, axis=1)
    r = dy @ dx / np.linalg.norm(dx) / np.where(spread > 0, spread, 1)
    return float(np.quantile(np.abs(r), 0.95))


def _dealt(names: np.ndarray, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Permutations (permutations, n) of the images of dogs `names` (n,): each dog gets another's.

    A dog that has more images than the one whose it gets has them over again.
    """
    _, first, dog = np.unique(names, return_index=True, return_inverse=True)
    dog = np.argsort(np.argsort(first))[dog]  # numbered in the order in which they appear
    images = [np.flatnonzero(dog == d) for d in range(len(first))]
    most = max(map(len, images))
    over_again = np.stack([np.resize(numbers, most) for numbers in images])
    place = np.empty(len(names), int)  # of an image among its dog's
    for numbers in images:
        place[numbers] = np.arange(len(numbers))
    dealt = rng.permuted(np.tile(np.arange(len(images)), (permutations, 1)), axis=1)
    return over_again[dealt[:, dog], place]


def paired_bootstrap(
    asked: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    dogs: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """Difference of two generators' mean absolute error, ``first`` - ``second``, in degrees.

    asked, first, second: (n, 2) degrees, columns left and right; an image with any NaN in either
    generator is left out, so that both are judged on the same hips. Dogs are resampled, with both
    their hips and all their films (hips of one dog are not independent). Returns ``difference``,
    its 95 % percentile interval ``low``, ``high``, and ``dogs``, the number compared.
    """
    columns = [np.asarray(a, dtype=np.float64) for a in (asked, first, second)]
    if any(c.shape != (len(dogs), 2) for c in columns):
        raise ValueError(
            f"need three (n, 2) arrays for {len(dogs)} dogs, got {[c.shape for c in columns]}"
        )
    x, a, b = columns
    gain = (np.abs(a - x) - np.abs(b - x)).mean(axis=1)
    known = np.isfinite(gain)
    gain, names = gain[known], np.asarray(dogs)[known]
    count = len(set(names.tolist()))
    if count < MIN_IMAGES:
        return {"difference": None, "low": None, "high": None, "dogs": count}
    sums = sums_of_dogs(np.stack([gain, np.ones_like(gain)], 1), names)
    gains, images = resampled(sums, RESAMPLES, seed).T
    low, high = np.quantile(gains / images, [0.025, 0.975])
    difference = float(gain.mean())
    return {"difference": difference, "low": float(low), "high": float(high), "dogs": count}
