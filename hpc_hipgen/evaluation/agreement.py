"""Agreement of measured Norberg angles with annotated ones, in degrees (Bland & Altman 1986).

Differences are measured - annotated. Intervals come from a bootstrap over dogs, with both hips and
all films of each: hips of one dog are not independent. What cannot be computed is None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from hpc_hipgen.evaluation.faithfulness import MIN_IMAGES, NORMAL_975, resampled, sums_of_dogs

RESAMPLES = 2000
"""Of the bootstrap."""

FIGURES = ("mae", "bias", "limit_low", "limit_high")

Agreement = dict[str, float | int | list[float] | None]


def agreement(differences: ArrayLike, dogs: Sequence[str], *, seed: int = 0) -> Agreement:
    """How far two ways of measuring agree.

    Args:
        differences: (n, 2), a row a film, both hips; NaN where a hip was refused.
        dogs: (n,), whose film it is.
        seed: of the bootstrap.

    Returns:
        `mae`, `bias` and the limits of agreement `limit_low`, `limit_high` (bias ± 1.96 SD of the
        differences), each with `..._interval`, a 95 % percentile interval, None below four dogs;
        `worst`, the largest absolute difference; the numbers of `films`, `refused` films (no hip
        measured), `dogs` and `hips` measured.
    """
    values = np.asarray(differences, dtype=np.float64).reshape(-1, 2)
    if len(values) != len(dogs):
        raise ValueError(f"need a dog for each film, got {len(dogs)} for {len(values)}")
    measured = np.isfinite(values)
    known = np.where(measured, values, 0.0)
    parts = np.stack([measured, np.abs(known), known, known**2], -1).sum(1)
    of_dog = sums_of_dogs(parts, dogs)
    result: Agreement = {
        "films": len(values),
        "refused": int((~measured.any(1)).sum()),
        "dogs": len(of_dog),
        "hips": int(measured.sum()),
        "worst": float(np.abs(values[measured]).max()) if measured.any() else None,
    }
    figures = _figures(of_dog.sum(0, keepdims=True))[0]
    seen = of_dog[of_dog[:, 0] > 0]
    intervals = np.full((2, len(FIGURES)), np.nan)
    if len(seen) >= MIN_IMAGES:
        drawn = _figures(resampled(seen, RESAMPLES, seed))
        intervals = np.quantile(drawn, [0.025, 0.975], axis=0)
    for name, value, interval in zip(FIGURES, figures, intervals.T, strict=True):
        result[name] = float(value) if np.isfinite(value) else None
        there = np.isfinite(interval).all() and np.isfinite(value)
        result[f"{name}_interval"] = [float(v) for v in interval] if there else None
    return result


def _figures(sums: np.ndarray) -> np.ndarray:
    """`FIGURES` (m, 4) of counts, and sums of |d|, d and d², (m, 4); NaN where there are none."""
    count, absolute, total, squares = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = total / count
        variance = (squares - total * bias) / (count - 1)
        half = NORMAL_975 * np.sqrt(np.maximum(variance, 0))
        half = np.where(count > 1, half, np.nan)
        return np.stack([absolute / count, bias, bias - half, bias + half], -1)
