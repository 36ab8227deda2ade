"""Agreement with annotators, and what the folds of a lab's films say."""

import numpy as np
import pytest

from hpc_hipgen.evaluation.agreement import agreement
from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.lab_films import LabFilm
from hpc_hipgen.rulers.cross_validation import (
    COLUMNS,
    FEW_DOGS,
    hips_of,
    stretch,
    summary,
    to_markdown,
)
from hpc_hipgen.rulers.film_ruler import FilmMeasurement
from hpc_hipgen.tables import csv_text

NAN = np.nan


def test_figures_by_hand():
    found = agreement([[1.0, -2.0], [3.0, NAN], [NAN, NAN]], ["a", "b", "c"])
    assert found["films"] == 3 and found["refused"] == 1 and found["hips"] == 3
    assert found["mae"] == pytest.approx(2.0) and found["bias"] == pytest.approx(2 / 3)
    spread = 1.96 * np.std([1, -2, 3], ddof=1)
    assert found["limit_low"] == pytest.approx(2 / 3 - spread, abs=1e-3)
    assert found["worst"] == 3 and found["mae_interval"] is None, "three dogs say too little"


def test_nothing_measured_is_no_error():
    found = agreement([[NAN, NAN]], ["a"])
    assert found["mae"] is None and found["worst"] is None and found["refused"] == 1
    assert agreement(np.empty((0, 2)), [])["films"] == 0


def test_intervals_resample_dogs():
    rng = np.random.default_rng(0)
    of_dog = np.repeat(rng.normal(0, 4, 40), 5)  # all films of a dog are off alike
    differences = np.stack([of_dog, of_dog], 1)
    by_dog = agreement(differences, [str(n // 5) for n in range(200)])
    by_film = agreement(differences, [str(n) for n in range(200)])
    widths = [np.ptp(found["bias_interval"]) for found in (by_dog, by_film)]
    assert widths[0] == pytest.approx(2 * 1.96 * np.std(of_dog) / np.sqrt(40), rel=0.2)
    assert widths[0] == pytest.approx(widths[1] * np.sqrt(5), rel=0.2)


def hips(count, error=1.0, stated=2.0):
    """Hips of films of a dog each, all off by one error after training and by twice it before."""
    return [
        {
            "film": f"film-{n}.png",
            "dog": f"dog-{n}",
            "fold": n % 2,
            "side": side,
            "annotated": 100.0,
            **{f"{turn}_reason": "" for turn in ("before", "after")},
            **{f"{turn}_uncertainty": stated for turn in ("before", "after")},
            **{f"before_{name}": 100 + 2 * error for name in ("angle", "found")},
            **{f"after_{name}": 100 + error for name in ("angle", "found")},
        }
        for n in range(count)
        for side in ("left", "right")
    ]


def test_a_hip_has_the_angle_and_the_uncertainty_of_its_side():
    landmarks = Landmarks(Hip(10, 20, 4, 8, 12), Hip(40, 20, 4, 46, 12))
    angles = landmarks.norberg_angles()
    found = FilmMeasurement(
        angles.image_left, angles.image_right, np.array([2.0, 5.0]), np.zeros((2, 2)), 0.9,
        landmarks.to_array(),
    )  # fmt: skip
    left, right = hips_of([LabFilm("a.png", "rex", 0, landmarks.flat())], [found], [found])
    for hip, angle, doubt in ((left, angles.image_right, 5), (right, angles.image_left, 2)):
        assert hip["after_uncertainty"] == hip["before_uncertainty"] == doubt
        assert hip["annotated"] == hip["after_angle"] == pytest.approx(angle, abs=1e-3)


def test_folds_before_and_after():
    some = hips(12)
    for hip in some[:2]:
        hip |= {"after_angle": None, "after_reason": "too uncertain (± 20 degrees)"}
    found = summary(some, count=2, limit=12.0)
    assert found["before"]["mae"] == pytest.approx(2) and found["after"]["mae"] == pytest.approx(1)
    assert found["after"]["refused"] == 1 and found["before"]["refused"] == 0
    assert [fold["after"]["films"] for fold in found["folds"]] == [6, 6]
    assert found["gain"]["difference"] == pytest.approx(1) and found["gain"]["dogs"] == 11
    page = to_markdown(some, found)
    assert "Refused: film-0.png: too uncertain" in page and page.count("| fold ") == 4
    rows = [line for line in page.splitlines() if line.startswith("| all |")]
    assert rows[0].endswith("| +2.0, film-0.png, patient's left |")
    assert rows[1].endswith("| +1.0, film-1.png, patient's left |")
    assert "film-" not in str(found), "figures go into the export, which names no film"
    assert csv_text(some, COLUMNS).count("\n") == 1 + 24


def test_stated_uncertainties_are_stretched_to_hold():
    few, many = hips(FEW_DOGS - 1), hips(FEW_DOGS)
    assert stretch(few) == 1 and stretch(many) == pytest.approx(0.5), "few never narrow them"
    assert stretch(hips(4, error=6.0)) == pytest.approx(3)
    found = summary(hips(4, error=6.0), 2, limit=5.0)
    assert found["refused_by_stretch"] == 4 and found["within"] == 0, "of what was stated"
    one_sure = hips(4, error=6.0)
    for hip in one_sure[::2]:
        hip["after_uncertainty"] = 0.1
    assert summary(one_sure, 2, limit=100.0)["refused_by_stretch"] == 0, "one sure hip is enough"
    assert stretch([]) == 1
