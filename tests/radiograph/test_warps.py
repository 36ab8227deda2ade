"""Warps: the inverse is one, angles change as asked, pixels and landmarks move together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.radiograph.captions import ANGLE_MAX, ANGLE_MIN
from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.views import make_view
from hpc_hipgen.radiograph.warps import draw_rim_warp, rim_warp

VIEW = Landmarks(
    image_left=Hip(85.0, 120.0, 22.0, 79.0, 92.0),
    image_right=Hip(171.0, 122.0, 21.0, 184.0, 97.0),
)
degrees = st.floats(-14, 14)


def both(angles):
    return np.array([angles.image_left, angles.image_right])


@settings(max_examples=50, deadline=None)
@given(st.tuples(degrees, degrees))
def test_angles_change_by_what_is_asked(asked):
    changed = both(rim_warp(VIEW, asked).landmarks(VIEW).norberg_angles())
    assert changed - both(VIEW.norberg_angles()) == pytest.approx(np.array(asked), rel=0.1, abs=0.2)


@settings(max_examples=50, deadline=None)
@given(st.tuples(degrees, degrees), st.tuples(st.floats(0, 255), st.floats(0, 255)))
def test_every_point_comes_from_where_it_went(asked, point):
    warp, point = rim_warp(VIEW, asked), np.array([point])
    assert warp.source(warp.moved(point)) == pytest.approx(point, abs=1e-6)
    assert warp.moved(warp.source(point)) == pytest.approx(point, abs=1e-6)


def test_nothing_folds_at_the_most():
    warp = rim_warp(VIEW, (90.0, -90.0))  # limited to 14
    y, x = np.mgrid[:256, :256].astype(float)
    source = warp.source(np.stack([x, y], -1))
    along_y, along_x = np.gradient(source, axis=(0, 1))
    area = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
    assert area.min() > 0.5
    assert source[0, 0] == pytest.approx([0, 0], abs=1e-6)  # far from the hips all stays


def test_pixels_move_with_the_landmarks():
    y, x = np.mgrid[:400, :512]
    rim = VIEW.image_right
    film = 250 * np.exp(-((x - 2 * rim.rim_x) ** 2 + (y - 2 * rim.rim_y) ** 2) / (2 * 4.0**2))
    twice = Landmarks.from_array(2 * VIEW.to_array())
    view, moved = make_view(
        np.rint(film).astype(np.uint8), twice, 256, 0.335, np.random.default_rng(3), warp=6.0
    )
    assert abs(both(moved.norberg_angles()) - both(twice.norberg_angles())).min() > 0.5
    rows, columns = np.mgrid[:256, :256]
    centre = np.array([(view * columns).sum(), (view * rows).sum()]) / view.sum()
    assert centre == pytest.approx([moved.image_right.rim_x, moved.image_right.rim_y], abs=0.3)


def test_without_a_warp_a_view_is_what_it_was():
    film = np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8)
    plain, _ = make_view(film, VIEW, 128, 0.6, np.random.default_rng(5))
    none, _ = make_view(film, VIEW, 128, 0.6, np.random.default_rng(5), warp=0.0)
    some, _ = make_view(film, VIEW, 128, 0.6, np.random.default_rng(5), warp=5.0)
    assert np.array_equal(plain, none) and not np.array_equal(plain, some)
    # only around the rims: the corners, and the turn, shift and zoom of the view, are the same
    assert np.array_equal(plain[-20:], some[-20:])


def test_a_warped_angle_can_still_be_named():
    rng = np.random.default_rng(0)
    wide = Landmarks(
        image_left=Hip(85.0, 120.0, 22.0, 69.0, 98.0),
        image_right=Hip(171.0, 120.0, 21.0, 187.0, 98),
    )
    assert min(both(wide.norberg_angles())) > 124
    for _ in range(50):
        angles = draw_rim_warp(wide, 6.0, rng).landmarks(wide).norberg_angles()
        assert max(both(angles)) < ANGLE_MAX
    narrow = Landmarks(
        image_left=Hip(85.0, 120.0, 22.0, 102.0, 96.0),
        image_right=Hip(171.0, 120.0, 21.0, 154.0, 96.0),
    )
    assert max(both(narrow.norberg_angles())) < 57
    for _ in range(50):
        angles = draw_rim_warp(narrow, 6.0, rng).landmarks(narrow).norberg_angles()
        assert min(both(angles)) > ANGLE_MIN


def test_each_hip_is_warped_by_an_amount_of_its_own():
    rng, before = np.random.default_rng(0), both(VIEW.norberg_angles())
    warped = [draw_rim_warp(VIEW, 3.0, rng).landmarks(VIEW) for _ in range(300)]
    changes = np.array([both(landmarks.norberg_angles()) - before for landmarks in warped])
    assert changes.std(0) == pytest.approx([3.0, 3.0], rel=0.15)
    assert abs(np.corrcoef(changes.T)[0, 1]) < 0.2
