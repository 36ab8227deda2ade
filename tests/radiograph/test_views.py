"""Views: closed forms of the crop, pixels and landmarks that stay together, antialiasing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.views import crop_matrix, make_view, resample, resolution_budget

FILM = Landmarks(
    image_left=Hip(110.3, 170.2, 21.0, 104.1, 145.6),
    image_right=Hip(270.8, 180.9, 20.0, 278.7, 152.3),
)


def film_with_dots(landmarks: Landmarks, width: int, height: int, sigma: float) -> np.ndarray:
    """Black film with a Gaussian dot at every head centre and rim point."""
    y, x = np.mgrid[:height, :width]
    film = np.zeros((height, width))
    for cx, cy in points(landmarks):
        film += 250 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    return np.clip(np.rint(film), 0, 255).astype(np.uint8)


def points(landmarks: Landmarks) -> np.ndarray:
    """(4, 2) head and rim points."""
    return landmarks.to_array()[:, [0, 1, 3, 4]].reshape(4, 2)


def centroid(view: np.ndarray, near: np.ndarray, reach: int = 5) -> np.ndarray:
    """Centre of mass (x, y) of the grey levels around a point."""
    column, row = np.rint(near).astype(int)
    rows, columns = np.mgrid[row - reach : row + reach + 1, column - reach : column + reach + 1]
    weight = view[rows, columns].astype(float)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


def test_the_nominal_view_has_the_heads_where_they_belong():
    matrix = crop_matrix(FILM, 128, 0.6)
    heads = FILM.transform(matrix).to_array()[:, :2]
    assert heads.mean(0) == pytest.approx([63.5, 0.47 * 128 - 0.5])
    assert np.linalg.norm(heads[1] - heads[0]) == pytest.approx(0.6 * 128)
    # The film's own rotation is kept.
    slope = (180.9 - 170.2) / (270.8 - 110.3)
    assert (heads[1, 1] - heads[0, 1]) / (heads[1, 0] - heads[0, 0]) == pytest.approx(slope)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-30, 30),
    st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1)),
    st.floats(0.5, 2),
    st.booleans(),
)
def test_angles_survive_any_crop(rotation, shift, zoom, flip):
    matrix = crop_matrix(FILM, 96, 0.5, rotation=rotation, shift=shift, zoom=zoom, flip=flip)
    old, new = FILM.norberg_angles(), FILM.transform(matrix).norberg_angles()
    if flip:
        assert new.patient_left == pytest.approx(old.patient_right)
        assert new.patient_right == pytest.approx(old.patient_left)
    else:
        assert new.patient_left == pytest.approx(old.patient_left)
        assert new.patient_right == pytest.approx(old.patient_right)
    assert FILM.transform(matrix).head_distance == pytest.approx(0.5 * 96 * zoom)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("resolution", "scale"), [(128, 1.0), (128, 4.0), (256, 0.5)])
def test_pixels_and_landmarks_stay_together(resolution, scale, flip):
    landmarks = FILM.transform(np.array([[scale, 0, 0], [0, scale, 0]]))
    width, height = int(384 * scale), int(360 * scale)
    film = film_with_dots(landmarks, width, height, sigma=2.5 * scale)
    for seed in (None, 0, 1, 2):
        rng = None if seed is None else np.random.default_rng(seed)
        view, moved = make_view(film, landmarks, resolution, 0.6, rng, flip)
        for point in points(moved):
            assert np.abs(centroid(view, point) - point).max() < 0.1


def test_a_flipped_view_is_the_mirror_image_of_the_plain_one():
    film = film_with_dots(FILM, 384, 360, sigma=3)
    film[:, 300:] |= 7
    plain, landmarks = make_view(film, FILM, 128, 0.6)
    flipped, mirrored = make_view(film, FILM, 128, 0.6, flip=True)
    assert np.abs(flipped[:, ::-1].astype(int) - plain).max() <= 1
    np.testing.assert_allclose(mirrored.to_array(), landmarks.flip(128).to_array())


def test_the_identity_returns_the_film():
    film = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    np.testing.assert_array_equal(resample(film, np.eye(2, 3), 40), film)


def test_shrinking_does_not_alias():
    """A one-pixel chequerboard is grey when it is shrunk, never a coarser pattern."""
    film = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)
    view = resample(film, np.array([[0.3, 0, 2.0], [0, 0.3, 3.0]]), 100)
    assert np.abs(view[10:-10, 10:-10].astype(int) - 128).max() <= 2


def test_outside_the_film_is_black():
    film = np.full((50, 50), 200, np.uint8)
    far = resample(film, np.array([[1.0, 0, 500], [0, 1, 0]]), 32)
    assert far.max() == 0
    half = resample(film, np.array([[1.0, 0, 16], [0, 1, 0]]), 32)
    assert half[:, :15].max() == 0 and half[:, 17:].min() == 200


def test_jitter_is_repeatable_and_moves_the_view():
    film = film_with_dots(FILM, 384, 360, sigma=3)
    one, two, other = (
        make_view(film, FILM, 64, 0.6, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1] != other[1]


def test_jitter_can_be_a_share_of_the_full_one():
    film = film_with_dots(FILM, 384, 360, sigma=3)
    nominal = points(make_view(film, FILM, 64, 0.6)[1])
    moved = {
        share: points(make_view(film, FILM, 64, 0.6, np.random.default_rng(5), jitter=share)[1])
        for share in (0.0, 0.5, 1.0)
    }
    np.testing.assert_allclose(moved[0.0], nominal)
    half, full = (np.abs(moved[share] - nominal).mean() for share in (0.5, 1.0))
    assert 0.4 * full < half < 0.6 * full


def test_training_views_lie_evenly_around_the_nominal_one():
    film, rng = np.zeros((8, 8), np.uint8), np.random.default_rng(0)
    nominal = make_view(film, FILM, 64, 0.6)[1]
    moved = [make_view(film, FILM, 64, 0.6, rng)[1] for _ in range(400)]
    zoom = np.array([landmarks.head_distance for landmarks in moved]) / nominal.head_distance
    assert 0.95 <= zoom.min() < 0.955 and 1.045 < zoom.max() <= 1.05
    assert zoom.mean() == pytest.approx(1, abs=0.005)
    off = np.mean([points(landmarks) for landmarks in moved], 0) - points(nominal)
    assert np.abs(off).max() < 0.3


def test_the_resolution_budget_is_one_pixel_over_the_shorter_arm():
    arms = [math.hypot(6.2, 24.6), math.hypot(7.9, 28.6)]
    assert resolution_budget(FILM) == pytest.approx(math.degrees(1 / arms[0]))
