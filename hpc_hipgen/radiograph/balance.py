"""How many views each film of a training set becomes, where rare angles are to be seen more often.

Few dogs have angles far below the mean, and they are the ones that matter. A network that has seen
few of them draws and measures them too near to the others. After the label distribution smoothing
of Yang et al. 2021 (arXiv 2102.09554), by the number of views instead of a weight in the loss.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import brentq

from hpc_hipgen.config.data import VIEWS_OF_A_FILM
from hpc_hipgen.radiograph.captions import ANGLE_MAX, ANGLE_MIN

SMOOTHING = 4.0
"""Standard deviation in degrees within which angles count as alike."""


def views_by_rarity(angles: np.ndarray, views: int, balance: float) -> np.ndarray:
    """Views of each film (n,) int64, n * `views` in all.

    In proportion to the density of the rarer one of its angles, raised to -`balance`, within
    `VIEWS_OF_A_FILM` times `views`.

    Args:
        angles: (n, 2) degrees of the films' hips, in any order.
        views: mean number of a film's views.
        balance: 0: all films have as many; 1: as if all angles were equally frequent.
    """
    weights = _density(angles).min(1) ** -balance
    least, most = VIEWS_OF_A_FILM
    low, high = np.ceil(least * views), most * views
    total = len(angles) * views

    def shares(scale: float) -> np.ndarray:
        return np.clip(scale * weights, low, high)

    scale = brentq(lambda scale: shares(scale).sum() - total, 0.0, high / weights.min())
    wanted = shares(scale)
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    # the largest remainders are rounded up; of equal ones those of the first films
    by_remainder = np.argsort(counts - wanted, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts


def _density(angles: np.ndarray) -> np.ndarray:
    """Films around each angle of `angles`, same shape; any unit."""
    edges = np.arange(np.floor(min(ANGLE_MIN, angles.min())), max(ANGLE_MAX, angles.max()) + 2)
    counts, _ = np.histogram(angles, edges)
    smooth = gaussian_filter1d(counts.astype(float), SMOOTHING, mode="constant", truncate=6)
    return np.interp(angles, (edges[:-1] + edges[1:]) / 2, smooth)
