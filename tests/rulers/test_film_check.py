"""The check of a film ruler: what is shown to it, and what it is told."""

from types import SimpleNamespace

import numpy as np
import pytest
from films_with_markers import dot_ruler

from hpc_hipgen.rulers import film_check
from hpc_hipgen.rulers.film_check import non_films, verdict


def test_refused_films_count_as_no_hips_that_are_known(monkeypatch):
    read = [SimpleNamespace(uncertainty=(1.0, 1.0), reason=r) for r in ("", "", "two sizes", "two")]
    errors = np.array([[0.5, 0.5], [1.0, 3.0], [np.nan, np.nan], [np.nan, np.nan]])
    monkeypatch.setattr(film_check, "measured_phantoms", lambda *_: (read, errors))
    found = film_check.film_ruler_error(None, [0, 2, 4, 6])
    assert (found["called"], found["within"], found["refused"]) == (4, 0.75, 2)


ERROR = {"films": 200, "refused": 1, "mae": 0.7, "worst": 3.0, "called": 390, "within": 0.96}


class Ruler:
    """Refuses all films but the first few."""

    def __init__(self, measured):
        self.measured = measured

    def measure(self, films):
        found = dot_ruler().measure([np.zeros((100, 100), np.uint8)])[0]
        good = type(found)(*[getattr(found, name) for name in vars(found) if name != "reason"])
        return [good] * self.measured + [found] * (len(films) - self.measured)


def test_forty_pictures_of_many_kinds():
    pictures = non_films()
    assert len(pictures) == 40
    for name, picture in pictures.items():
        assert picture.ndim == 2 and picture.dtype == np.uint8 and min(picture.shape) >= 96, name
    assert len({picture.tobytes() for picture in pictures.values()}) == 40


def test_a_missing_picture_is_named(monkeypatch):
    monkeypatch.setattr(film_check, "BUNDLED", {"skimage/data": ("nothing.png",)})
    with pytest.raises(ValueError, match=r"nothing\.png"):
        non_films()


@pytest.mark.parametrize(
    "measured, refused, good", [(0, 1, True), (2, 0, True), (3, 0, False), (0, 2, False)]
)
def test_the_bars(measured, refused, good, monkeypatch):
    error = {**ERROR, "refused": refused}
    monkeypatch.setattr(film_check, "film_ruler_error", lambda *_: error)
    lines, passed = verdict(Ruler(measured))
    assert passed == good
    assert lines[0].startswith(f"pictures that are no films, refused: {40 - measured} of 40")
    assert f"phantoms, refused: {refused} of 200" in lines
    assert ("astronaut.png" in lines[0]) == bool(measured), "what it took for a film is named"
