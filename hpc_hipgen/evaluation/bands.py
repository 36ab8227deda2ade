"""Errors by how tight the hips are that were asked for.

Few dogs have angles far below the mean, so a mean over a test set says little of how such hips are
drawn, and they are the ones that grading is about.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from hpc_hipgen.radiograph.geometry import FCI_LOWER_BOUNDS, PATIENT_SIDES

SEVERE = 80.0
"""Degrees below which a hip has a band of its own: one in fifty of the phantoms' population."""

_LOWER = (*FCI_LOWER_BOUNDS, ("E", SEVERE), ("below_80", 0.0))
_UPPER = (180.0, *(low for _, low in _LOWER[:-1]))
BANDS = {name: (low, high) for (name, low), high in zip(_LOWER, _UPPER, strict=True)}
"""By name, from tight to severely dysplastic: least angle and upper bound in degrees."""


def bands_of(table: pd.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """`by_band` of an evaluation table."""
    asked, measured = (
        table[[f"{kind}_{side}" for side in PATIENT_SIDES]] for kind in ("asked", "measured")
    )
    return by_band(asked, measured)


def by_band(asked: ArrayLike, measured: ArrayLike) -> dict[str, dict[str, float | int | None]]:
    """Errors of the hips whose asked angle lies in each of `BANDS`, both sides together.

    Args:
        asked: degrees, any shape.
        measured: the same shape, NaN where the ruler refused.

    Returns:
        For each band that was asked for: `n` hips measured, `failed` ones, `mae` and `bias` (mean
        of measured - asked) in degrees, None where none was measured.
    """
    wanted = np.asarray(asked, np.float64).ravel()
    errors = np.asarray(measured, np.float64).ravel() - wanted
    found: dict[str, dict[str, float | int | None]] = {}
    for name, (low, high) in BANDS.items():
        those = errors[(wanted >= low) & ((wanted < high) | (high == 180))]
        if not len(those):
            continue
        known = those[np.isfinite(those)]
        found[name] = {
            "n": len(known),
            "failed": len(those) - len(known),
            "mae": float(np.abs(known).mean()) if len(known) else None,
            "bias": float(known.mean()) if len(known) else None,
        }
    return found
