"""Phantom films: exact landmarks, population, what can be seen, and what does not change."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from hpc_hipgen.radiograph import phantom as phantom_module
from hpc_hipgen.radiograph.captions import PROMPT_CLASSES
from hpc_hipgen.radiograph.geometry import Angles
from hpc_hipgen.radiograph.phantom import draw_phantom, sample_parameters
from hpc_hipgen.radiograph.phantom_anatomy import (
    ANGLE_LIMITS,
    acetabulum,
    femur,
    hemipelvis,
    roof,
    sample_anatomy,
)
from hpc_hipgen.radiograph.phantom_look import PHANTOM_LOOK

FEW = settings(max_examples=25, deadline=None)


@cache
def good_films(count=10):
    """Well exposed films of the classes of ordinary contrast."""
    films, index = [], 0
    while len(films) < count:
        prompt_class, _, exposure = sample_parameters(5, index)
        if exposure.kind == "good" and prompt_class != 2:
            films.append(draw_phantom(5, index))
        index += 1
    return films


@cache
def population(count=2000):
    """Classes and pelves of `count` dogs."""
    return [sample_parameters(7, index)[:2] for index in range(count)]


def in_anatomical_frame(film):
    """Function from points (n, 2) in units of D, heads at (-0.5, 0), (0.5, 0), to grey levels."""
    points = film.landmarks.to_array()[:, :2]
    across = points[1] - points[0]
    down = np.array([-across[1], across[0]])
    middle = points.mean(axis=0)
    image = film.image.astype(np.float64)

    def look(at):
        at = np.atleast_2d(at)
        x, y = (middle + at[:, :1] * across + at[:, 1:] * down).T
        return map_coordinates(image, [y, x], order=1, mode="constant")

    return look


def anatomical_landmarks(film):
    """Landmarks (2, 5) in units of D, in the frame of `in_anatomical_frame`."""
    points, distance = film.landmarks.to_array(), film.landmarks.head_distance
    across = (points[1, :2] - points[0, :2]) / distance
    down = np.array([-across[1], across[0]])
    middle = points[:, :2].mean(axis=0)
    turn = np.stack([across, down], axis=1) / distance
    return np.hstack(
        [
            (points[:, :2] - middle) @ turn,
            points[:, 2:3] / distance,
            (points[:, 3:] - middle) @ turn,
        ]
    )


# --------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("left, right", [(60.0, 118.5), (104.25, 97.0), (122.0, 58.0)])
def test_requested_angles_are_hit_exactly(left, right):
    asked = Angles(image_left=left, image_right=right)
    for index in range(2):
        film = draw_phantom(1, index, size=96, angles=asked)
        assert film.angles.image_left == pytest.approx(left, abs=1e-6)
        assert film.angles.image_right == pytest.approx(right, abs=1e-6)


def test_landmarks_show_the_sampled_anatomy():
    for index in range(6):
        film = draw_phantom(2, index, size=96)
        prompt_class, anatomy, _ = sample_parameters(2, index)
        assert film.prompt_class == prompt_class
        assert film.angles.image_left == pytest.approx(anatomy.angles.image_left, abs=1e-6)
        found = anatomical_landmarks(film)
        for row, sign, hip in ((0, -1, anatomy.left), (1, 1, anatomy.right)):
            assert found[row, :3] == pytest.approx([sign * 0.5, 0.0, hip.radius], abs=1e-9)
            assert found[row, 3:] == pytest.approx(hip.rim * [sign, 1], abs=1e-9)


def test_landmarks_scale_with_the_size_and_lie_on_the_film():
    for index in range(4):
        small, large = (draw_phantom(3, index, size=size) for size in (96, 192))
        ratio = large.landmarks.head_distance / small.landmarks.head_distance
        assert ratio == pytest.approx(2.0, rel=1e-9)
        assert max(large.image.shape) == 192
        height, width = large.image.shape
        points = large.landmarks.to_array()[:, [0, 1, 3, 4]].reshape(-1, 2)
        assert (points > 5).all() and (points < [width - 6, height - 6]).all()
        assert 0.42 <= large.landmarks.head_distance / width <= 0.60


@FEW
@given(st.integers(0, 10_000), st.floats(50, 130))
def test_outlines_meet_at_the_rim(seed, angle):
    """The rim point is a corner of the ilium, the first point of the roof and of the dorsal rim."""
    anatomy = sample_anatomy(np.random.default_rng(seed), Angles(angle, angle))
    for sign, hip in ((-1.0, anatomy.left), (1.0, anatomy.right)):
        outline, foramen, _ = hemipelvis(hip, anatomy, sign, PHANTOM_LOOK)
        rim, wall = acetabulum(hip)
        assert np.hypot(*(outline - hip.rim).T).min() < 1e-12
        assert roof(hip)[0] == pytest.approx(hip.rim, abs=1e-12)
        assert rim[0] == pytest.approx(hip.rim, abs=1e-12)
        for curve in (outline, foramen, wall, femur(hip, PHANTOM_LOOK)):
            assert np.isfinite(curve).all()
        # No part of the roof cuts into the head.
        assert np.hypot(*(roof(hip) - [0.5, 0.0]).T).min() > hip.radius


def test_a_small_angle_goes_with_a_loose_hip():
    tight, loose = (
        sample_anatomy(np.random.default_rng(4), Angles(angle, angle)).left for angle in (108, 75)
    )
    assert loose.subluxation > tight.subluxation == 0
    assert loose.flatness > tight.flatness
    assert loose.dorsal_cover < tight.dorsal_cover
    assert loose.cup[0] < tight.cup[0] == 0.5


# ------------------------------------------------------------------------------------- population


def test_population_of_angles():
    angles = np.array([(p.left.norberg, p.right.norberg) for _, p in population()])
    assert angles.mean() == pytest.approx(102, abs=0.7)
    assert angles.std(axis=0) == pytest.approx([7, 7], abs=0.7)
    assert np.corrcoef(angles.T)[0, 1] == pytest.approx(0.75, abs=0.06)
    assert ANGLE_LIMITS[0] <= angles.min() < 68 and 116 < angles.max() <= ANGLE_LIMITS[1]
    assert abs(np.diff(angles.mean(axis=0))[0]) < 0.5
    # Heavier below than above: a Gaussian of that SD would put 0.1 % below 80.
    assert 0.008 < (angles < 80).mean() < 0.04


def test_population_of_shapes():
    pelves = [pelvis for _, pelvis in population()]
    hips = [hip for pelvis in pelves for hip in (pelvis.left, pelvis.right)]
    radius = np.array([hip.radius for hip in hips])
    ratio = np.array([hip.rim_ratio for hip in hips])
    abduction = np.array([hip.abduction for hip in hips])
    assert radius.min() >= 0.095 and radius.max() <= 0.133
    assert radius.mean() == pytest.approx(0.115, abs=0.004)
    assert ratio.min() >= 1.07 and ratio.max() <= 1.41
    assert ratio.mean() == pytest.approx(1.2, abs=0.02)
    assert (abduction > 10).mean() > 0.15 and (abduction < 8).mean() > 0.5 and abduction.max() <= 35


def test_classes_are_equally_likely():
    drawn = [prompt_class for prompt_class, _ in population()]
    counts = [drawn.count(prompt_class) for prompt_class in PROMPT_CLASSES]
    assert sum(counts) == 2000 and min(counts) > 430


# ------------------------------------------------------------------------------------ determinism


def test_a_film_depends_on_its_arguments_alone():
    first = draw_phantom(9, 3, size=128)
    np.random.seed(0)
    draw_phantom(9, 2, size=128)
    again = draw_phantom(9, 3, size=128)
    assert np.array_equal(first.image, again.image) and first.landmarks == again.landmarks
    for other in (draw_phantom(9, 4, size=128), draw_phantom(10, 3, size=128)):
        assert other.landmarks != first.landmarks


def test_class_and_angles_leave_the_rest_of_the_dog():
    plain, _, other = (sample_parameters(9, 5, prompt_class=c)[1] for c in (4, 4, 1))
    assert plain == other
    asked = Angles(90.0, 110.0)
    changed = sample_parameters(9, 5, angles=asked)[1]
    assert changed.angles == asked and changed.left.radius == plain.left.radius
    assert changed.tail_angle == plain.tail_angle and changed.inlet == plain.inlet


def test_random_streams_are_independent(monkeypatch):
    """Another use of the overlays' random numbers changes nothing outside what they draw."""
    before = draw_phantom(9, 6, size=128, prompt_class=4)
    original = phantom_module.draw_overlays

    def wasteful(film, canvas, prompt_class, rng):
        rng.random(100)
        return original(film, canvas, 4, np.random.default_rng(0))

    monkeypatch.setattr(phantom_module, "draw_overlays", wasteful)
    after = draw_phantom(9, 6, size=128, prompt_class=4)
    assert after.landmarks == before.landmarks
    assert (before.image == after.image).mean() > 0.9


def test_bad_arguments():
    with pytest.raises(ValueError, match="class"):
        draw_phantom(0, 0, prompt_class=5)
    with pytest.raises(ValueError, match="image_left"):
        draw_phantom(0, 0, angles=Angles(20.0, 100.0))
    with pytest.raises(ValueError, match="pixels"):
        draw_phantom(0, 0, size=32)


# -------------------------------------------------------------------------------- what can be seen


def test_head_edge_lies_on_the_circle():
    """Along rays through the free border of the head, the steepest fall is at the radius."""
    errors = []
    for film in good_films():
        look, found = in_anatomical_frame(film), anatomical_landmarks(film)
        pixel = 1 / film.landmarks.head_distance
        for row, sign in ((0, -1), (1, 1)):
            radius = found[row, 2]
            rim = np.degrees(np.arctan2(-found[row, 4], sign * found[row, 3] - 0.5))
            for turn in np.radians(np.linspace(52, min(66, rim - 12), 4)):
                reach = radius + np.linspace(-0.025, 0.025, 41)
                ray = np.stack([sign * (0.5 + reach * np.cos(turn)), -reach * np.sin(turn)], axis=1)
                steepest = np.argmin(np.gradient(look(ray)))
                errors.append((reach[steepest] - radius) / pixel)
    # A ball has no thickness at its very edge: the steepest fall is a little inside.
    assert abs(np.median(errors)) < 0.7
    assert np.mean(np.abs(errors) < 1.5) > 0.9


def test_rim_point_is_a_bright_corner():
    """Bone craniomedially of the rim point, none laterally or caudolaterally of it."""
    drops = []
    for film in good_films():
        look, found = in_anatomical_frame(film), anatomical_landmarks(film)
        for row, sign in ((0, -1), (1, 1)):
            rim = found[row, 3:]
            inside = look(rim + np.array([[-0.020 * sign, -0.014], [-0.028 * sign, -0.02]])).mean()
            outside = look(rim + np.array([[0.022 * sign, 0.0], [0.016 * sign, 0.014]])).mean()
            drops.append(inside - outside)
    assert np.median(drops) > 25 and min(drops) > 8


def test_joint_space_is_darker_than_roof_and_head():
    """Halfway between the head and the roof above it, where the hip is seated."""
    contrast = []
    for film in good_films():
        look = in_anatomical_frame(film)
        for index_hip, sign in ((0, -1), (1, 1)):
            angle = (film.angles.image_left, film.angles.image_right)[index_hip]
            if angle < 98:
                continue
            radius = anatomical_landmarks(film)[index_hip, 2]
            turn = np.radians(angle - 25)
            reach = radius * np.linspace(0.8, 1.4, 40)
            ray = np.stack([0.5 - reach * np.cos(turn), -reach * np.sin(turn)], axis=1) * [sign, 1]
            profile = look(ray)
            space = profile[(reach > 0.95 * radius) & (reach < 1.25 * radius)].min()
            contrast.append(min(profile[reach < 0.95 * radius].mean(), profile[-12:].max()) - space)
    assert np.median(contrast) > 15


GREY = {  # grey level of a well exposed film, and where: |x| and y in units of D
    "lateral thigh": (56, 0.93, 0.45),
    "pelvic canal": (68, 0.22, -0.20),
    "obturator foramen": (75, 0.21, 0.25),
    "femoral neck": (88, 0.62, 0.05),
    "pubis": (93, 0.20, 0.045),
    "ilium": (131, 0.385, -0.40),
    "medial iliac cortex": (155, 0.34, -0.40),
    "head": (145, 0.50, 0.0),
    "vertebra": (101, 0.0, -0.14),  # over the canal, not over the symphysis
}


def test_grey_levels_of_well_exposed_films():
    """Means over films within 18 of 255 levels of the table; single films vary by more."""
    for name, (level, x, y) in GREY.items():
        near = np.array([(dx, dy) for dx in (-0.012, 0, 0.012) for dy in (-0.012, 0, 0.012)])
        seen = [
            np.median(in_anatomical_frame(film)(near + np.array([sign * x, y])))
            for film in good_films()
            for sign in (-1, 1)
        ]
        assert np.mean(seen) == pytest.approx(level, abs=18), name


def test_shaft_is_a_tube():
    """Across a femoral shaft two bright cortices stand beside a medulla of the table's 105."""
    cortices, medullas = [], []
    for film in good_films():
        look = in_anatomical_frame(film)
        for sign in (-1, 1):
            x = np.linspace(0.5, 0.95, 180)
            row = look(np.stack([sign * x, np.full_like(x, 0.42)], axis=1))
            inner = np.argmax(row * (x > 0.55) * (x < 0.72))
            outer = np.argmax(row * (x > x[inner] + 0.10) * (x < x[inner] + 0.24))
            middle = (inner + outer) // 2
            cortices.append(min(row[inner], row[outer]))
            medullas.append(np.median(row[middle - 6 : middle + 6]))
    assert np.mean(medullas) == pytest.approx(105, abs=18)
    # The table's 137 is a mean over the cortex; this is its crest.
    assert 137 < np.mean(cortices) < 185
    assert np.median(np.subtract(cortices, medullas)) > 25


def test_class_1_is_close_and_its_right_joint_is_higher():
    for index in range(5):
        film = draw_phantom(12, index, size=128, prompt_class=1)
        left, right = film.landmarks.image_left, film.landmarks.image_right
        turn = np.degrees(np.arctan2(left.head_y - right.head_y, right.head_x - left.head_x))
        assert 3.0 <= turn <= 7.0
        assert film.landmarks.head_distance / film.image.shape[1] >= 0.55


def overlay_of(index, prompt_class, monkeypatch):
    """What the overlays changed on a film, and the film."""
    film = draw_phantom(12, index, size=256, prompt_class=prompt_class)
    with monkeypatch.context() as patch:
        patch.setattr(phantom_module, "draw_overlays", lambda image, *_: image)
        bare = draw_phantom(12, index, size=256, prompt_class=prompt_class)
    return np.abs(film.image.astype(int) - bare.image) > 25, film


def test_dates_and_marker(monkeypatch):
    for prompt_class in PROMPT_CLASSES:
        changed, film = overlay_of(1, prompt_class, monkeypatch)
        rows, columns = np.nonzero(changed)
        height, width = changed.shape
        date = changed[: int(0.3 * height), int(0.5 * width) :].sum()
        assert (date > 30) == (prompt_class in (1, 2, 3))
        if prompt_class == 3:
            white = (film.image > 245) & changed
            assert white[:, int(0.6 * width) :].sum() > 20
            assert white[:, : int(0.6 * width)].sum() == 0
        if len(rows):  # never on a joint
            for hip in (film.landmarks.image_left, film.landmarks.image_right):
                gap = np.hypot(columns - hip.head_x, rows - hip.head_y)
                assert gap.min() > 1.5 * hip.head_radius


def test_class_2_has_more_contrast_than_class_4():
    spread = {2: [], 4: []}
    for prompt_class, values in spread.items():
        for index in range(4):
            film = draw_phantom(12, index, size=192, prompt_class=prompt_class)
            look = in_anatomical_frame(film)
            bone = look([[0.34, -0.4], [-0.34, -0.4], [0.5, 0.0], [-0.5, 0.0]]).mean()
            values.append(bone / look([[0.68, -0.35], [-0.68, -0.35], [0.2, -0.2]]).mean())
    assert np.mean(spread[2]) > 1.15 * np.mean(spread[4])
