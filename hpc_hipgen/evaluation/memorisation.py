"""How many drawn films are copies: nearer to a training film than held-out films are."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest

QUANTILE = 0.05
"""Share of the held-out films that lie as near to a training film as what counts as a copy."""


def nearest(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Cosine distance (n,) of features (n, d) to the nearest of the training films' (m, d)."""
    first, second = (
        x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
        for x in (features, training)
    )
    return 1 - (first @ second.T).max(axis=1)


def copy_rate(features: np.ndarray, training: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Share of drawn films below the QUANTILE of the held-out films' distances, all (n, d).

    A generator that copies nothing and draws like the films themselves has a rate of QUANTILE;
    one whose drawings look otherwise has less, so a low rate alone is no proof. One embedding, and
    no flips or shifts: a first look, not an audit.
    """
    threshold = float(np.quantile(nearest(held_out, training), QUANTILE))
    found = nearest(features, training) < threshold
    interval = binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
    return {
        "rate": float(found.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "threshold": threshold,
        "n": len(found),
    }
