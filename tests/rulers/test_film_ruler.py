"""The film ruler around its networks: from a film of any size to angles, or a refusal."""

import re

import numpy as np
import pytest
import torch
from films_with_markers import GREY, dot_ruler, dotted, marked_film

from hpc_hipgen.radiograph.films import SpacedFilm
from hpc_hipgen.rulers.film_networks import FilmNetworks, cut, presence_logit
from hpc_hipgen.rulers.film_report import UNCERTAIN, film_line
from hpc_hipgen.rulers.film_ruler import (
    Calibration,
    FilmRuler,
    _implausible,
    load_film_ruler,
    save_film_ruler,
)
from hpc_hipgen.rulers.film_ruler_training import _bend, _seen_at, calibrate, vary_close_ups
from hpc_hipgen.training.clock import ImageRandom


@pytest.mark.parametrize(
    "look",
    [
        {},
        {"turn": 14.0, "angles": (72.0, 110.0)},
        {"turn": -9.0, "shape": (1300, 1000), "distance": 330, "middle": (620, 820)},
        {"shape": (200, 260), "distance": 120},
    ],
)
def test_angles_and_landmarks_of_any_film(look):
    film, landmarks = marked_film(**look)
    (found,) = dot_ruler().measure([film])
    assert found.reason == ""
    true = landmarks.norberg_angles()
    np.testing.assert_allclose(
        [found.image_left, found.image_right], [true.image_left, true.image_right], atol=0.7
    )
    off = found.landmarks - landmarks.to_array()
    assert np.abs(off[:, [0, 1, 3, 4]]).max() < 0.004 * landmarks.head_distance


def test_a_batch_gives_what_single_films_give():
    films = [marked_film()[0], marked_film((400, 520), distance=250)[0], np.zeros((300, 300), "u1")]
    ruler = dot_ruler()
    together, alone = ruler.measure(films), [ruler.measure([film])[0] for film in films]
    for a, b in zip(together, alone, strict=True):
        assert a.reason == b.reason
        np.testing.assert_allclose(a.image_left, b.image_left, atol=1e-3)


def test_an_inverted_film_is_measured_and_said_to_be():
    film, landmarks = marked_film()
    (found,) = dot_ruler().measure([255 - film])
    assert found.inverted and found.reason == ""
    assert found.image_left == pytest.approx(landmarks.norberg_angles().image_left, abs=0.7)


def test_refusals_say_why():
    film, landmarks = marked_film()
    grey = np.full((300, 400), GREY, np.uint8)
    noise = np.random.default_rng(0).integers(90, 110, (300, 400), dtype=np.uint8)
    films = {
        "not a film: 90 x 80": film[:80, :90],
        "a strip": np.tile(film[:100], (1, 4)),
        "dark and bright": grey,
        "no hips found": noise,
        r"one hip missing \(image_right\)": dotted(film.shape, landmarks, sides=(0,)),
    }
    for reason, found in zip(films, dot_ruler().measure(list(films.values())), strict=True):
        assert np.isnan(found.image_left) and np.isnan(found.image_right)
        assert re.search(reason, found.reason)


def test_impossible_and_uncertain_landmarks_are_refused():
    film, _ = marked_film(angles=(38.0, 100.0))
    found = dot_ruler().measure([film])[0]
    assert "angle" in found.reason and not found.unsure
    good, _ = marked_film()
    found = dot_ruler(max_uncertainty=0.4).measure([good])[0]
    assert "too uncertain" in found.reason and found.unsure and not found.inverted
    found = dot_ruler().measure([good])[0]
    assert not found.unsure and not found.warning


def test_a_view_that_goes_astray_moves_no_landmark_and_counts_as_uncertainty():
    _, landmarks = marked_film()
    rows, sure = np.stack([landmarks.to_array()] * 3), np.full(2, 0.99)
    rows[0, :, 3] += 12
    found = dot_ruler()._verdict(rows, np.full((3, 2), 0.04), sure, sure, inverted=False)
    assert found.image_left == pytest.approx(landmarks.norberg_angles().image_left)
    assert (found.features[:, 0] > 1).all() and found.features[:, 1] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(("ratio", "said"), [(1.29, ""), (1.31, "heads of two sizes")])
def test_the_heads_of_a_dog_are_of_one_size(ratio, said):
    rows = marked_film()[1].to_array()
    rows[1, 2] = ratio * rows[0, 2]
    assert _implausible(rows) == said


def test_uncertain_hips_are_measured_with_a_warning():
    film, landmarks = marked_film()
    sure, other = sorted(dot_ruler().measure([film])[0].uncertainty)
    assert sure < other
    found = dot_ruler(doubtful=(sure + other) / 2).measure([film])[0]
    assert not found.reason and found.warning.count("±") == 1
    assert dot_ruler(doubtful=sure / 2).measure([film])[0].warning.count("±") == 2
    assert found.image_left == pytest.approx(landmarks.norberg_angles().image_left, abs=0.7)
    line = film_line("film.png", SpacedFilm(film), found)
    assert line["status"] == UNCERTAIN and line["reason"] == found.warning
    assert line["patient_right"] == round(found.image_left, 2)


def test_calibration_covers_its_hips():
    rng = np.random.default_rng(1)
    features = np.abs(rng.normal(0, [2.0, 0.2], (4000, 2)))
    errors = np.abs(rng.normal(0, 0.3 + 0.5 * features[:, 0] + 2 * features[:, 1]))
    widths = calibrate(features[:2000], errors[:2000]).half_width(features[2000:])
    assert 0.93 < (errors[2000:] <= widths).mean() < 0.985
    called = widths <= 2
    assert called.any() and (errors[2000:][called] <= 2).mean() > 0.93


def test_presence_is_the_mean_evidence():
    logits = torch.full((1, 2, 8, 8), -3.0)
    logits[0, 1, 4, 5] = 12.0
    assert presence_logit(logits)[0].tolist() == pytest.approx([-3.0, 12 - np.log(64)], abs=1e-2)


def test_points_stay_on_what_they_mark_when_views_are_bent():
    random = ImageRandom(0, np.arange(6))
    bend = _bend(random)
    linear = torch.tensor([[1.1, -0.2], [0.2, 1.1]]).expand(6, 2, 2)
    offset = torch.tensor([[12.0, -9.0]]).expand(6, 2)
    point = torch.tensor([[[70.0, 84.0]]]).expand(6, 1, 2)
    y, x = torch.meshgrid(torch.arange(160.0), torch.arange(160.0), indexing="ij")
    dot = torch.exp(-((x - 70) ** 2 + (y - 84) ** 2) / 18).expand(6, 1, 160, 160)
    views = cut(dot, torch.cat([linear, offset[..., None]], -1), 128, bend)[:, 0]
    seen = _seen_at(point, linear, offset, bend)[:, 0]
    mass = views / views.sum((1, 2), keepdim=True)
    steps = torch.arange(128.0)
    centre = torch.stack([(mass.sum(1) * steps).sum(-1), (mass.sum(2) * steps).sum(-1)], -1)
    assert bend.abs().max() > 0.5
    torch.testing.assert_close(seen, centre, atol=0.25, rtol=0)


def test_the_same_image_of_the_clock_is_varied_in_the_same_way():
    images, points = torch.rand(2, 160, 160) * 255, torch.full((2, 2, 2), 80.0)
    first = vary_close_ups(images, points, ImageRandom(4, np.array([7, 8])))
    second = vary_close_ups(images[1:], points[1:], ImageRandom(4, np.array([8])))
    for a, b in zip(first, second, strict=True):
        # A batch's size changes how coordinates are rounded: by 1e-5 px, over which noise of
        # variance 1 changes by some 1e-4. Other random numbers would change it by 1.
        torch.testing.assert_close(a[1:], b, atol=2e-3, rtol=0)


def test_a_stored_ruler_measures_as_before(tmp_path):
    torch.manual_seed(0)
    networks = FilmNetworks((8, 8), (8, 8))
    ruler = FilmRuler(networks, Calibration(0.3, 1.5, 4.0), min_presence=0.0)
    save_film_ruler(ruler, tmp_path, {})
    loaded = load_film_ruler(tmp_path, min_presence=0.0)
    assert loaded.calibration == ruler.calibration
    film, _ = marked_film((300, 400), distance=180)
    first, second = ruler.measure([film])[0], loaded.measure([film])[0]
    np.testing.assert_array_equal(first.landmarks, second.landmarks)


def test_a_folder_without_a_ruler_or_with_a_damaged_one_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no film ruler"):
        load_film_ruler(tmp_path)
    (tmp_path / "film_ruler.json").write_text('{"finder": [8, 8], "hip": [8, 8]}')
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_film_ruler(tmp_path)
