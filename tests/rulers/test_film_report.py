"""What is said of a measured film: each side with what belongs to it."""

import numpy as np
import pytest

from hpc_hipgen.radiograph.films import SpacedFilm
from hpc_hipgen.rulers.film_report import _angles, film_line
from hpc_hipgen.rulers.film_ruler import FilmMeasurement

FOUND = FilmMeasurement(
    image_left=92.0,
    image_right=104.0,
    uncertainty=np.array([2.0, 5.0]),
    features=np.zeros((2, 2)),
    presence=0.9,
    landmarks=np.array([[10.0, 20, 4, 8, 14], [40.0, 20, 4, 43, 15]]),
)


@pytest.mark.parametrize(
    ("at_right", "order", "text"),
    [
        ("", ("right", "left"), "R 92.0 ± 2.0° (band D)      L 104.0 ± 5.0° (band B)"),
        ("right", ("left", "right"), "L 92.0 ± 2.0° (band D)      R 104.0 ± 5.0° (band B)"),
    ],
)
def test_each_side_has_its_own_angle_and_uncertainty_and_its_place(at_right, order, text):
    film = SpacedFilm(np.zeros((30, 50), np.uint8), patient_at_right=at_right)
    line = film_line("a.png", film, FOUND)
    for side, expected in zip(order, ((92, 2, "D"), (104, 5, "B")), strict=True):
        names = (f"patient_{side}", f"uncertainty_{side}", f"fci_{side}")
        assert tuple(line[name] for name in names) == expected
    assert _angles(line) == text
