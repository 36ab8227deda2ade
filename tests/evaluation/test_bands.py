"""Errors by band of the angle asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_hipgen.evaluation.bands import BANDS, by_band
from hpc_hipgen.radiograph.geometry import fci_grade


@given(st.floats(0, 180))
def test_every_angle_has_the_band_of_its_grade(angle):
    (name,) = by_band([angle], [angle])
    assert fci_grade(angle) == ("E" if name == "below_80" else name)
    assert (name == "below_80") == (angle < 80)


def test_errors_are_those_of_the_band():
    asked = np.array([[110.0, 75.0], [106.0, 70.0], [95.0, 85.0]])
    measured = np.array([[111.0, 85.0], [103.0, np.nan], [95.0, np.nan]])
    found = by_band(asked, measured)
    assert list(found) == ["A", "D", "E", "below_80"]
    assert found["A"] == {"n": 2, "failed": 0, "mae": pytest.approx(2), "bias": pytest.approx(-1)}
    assert found["below_80"] == {"n": 1, "failed": 1, "mae": 10.0, "bias": 10.0}
    assert found["E"] == {"n": 0, "failed": 1, "mae": None, "bias": None}
    assert list(BANDS) == ["A", "B", "C", "D", "E", "below_80"]
