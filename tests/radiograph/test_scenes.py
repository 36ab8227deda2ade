"""Scenes of the film ruler: what is there is marked, and nothing else changes the phantoms."""

import errno
from pathlib import Path

import numpy as np
import pytest

from hpc_hipgen.files import disk_full
from hpc_hipgen.radiograph import scenes
from hpc_hipgen.radiograph.phantom_overlays import _write as write
from hpc_hipgen.radiograph.scene_store import draw_scenes, read_scenes, write_scenes
from hpc_hipgen.radiograph.scenes import (
    draw_close_up,
    draw_film_scene,
    draw_wide_film,
    heads_inside,
    sample_wide_anatomy,
)


def rng(*numbers):
    return np.random.default_rng(numbers)


def test_a_scene_depends_on_its_random_numbers_alone():
    for draw in (draw_close_up, draw_film_scene):
        np.testing.assert_array_equal(draw(rng(3), 96).image, draw(rng(3), 96).image)


def test_close_ups_have_their_head_in_the_middle_and_a_rim_above():
    scenes = [scene for i in range(12) if (scene := draw_close_up(rng(1, i), 96)).present[0]]
    assert len(scenes) > 6
    for scene in scenes:
        head, rim = scene.points
        np.testing.assert_allclose(head, 47.5)
        assert rim[1] < head[1]
        assert 1.0 < np.hypot(*(rim - head)) / scene.radius < 1.6


def test_heads_that_are_cut_away_are_not_there():
    scenes = [draw_film_scene(rng(5, i), 96) for i in range(40)]
    kinds = {tuple(scene.present.tolist()) for scene in scenes}
    assert {(True, True), (False, False)} <= kinds
    assert kinds & {(True, False), (False, True)}
    for scene in scenes:
        inside = scene.points[scene.present]
        assert ((inside > 0) & (inside < 96)).all()


def test_wide_films_name_the_heads_that_they_show():
    film, landmarks = draw_wide_film(rng(9), 160)
    heads = landmarks.to_array()[:, :2]
    beyond = ((heads < 0) | (heads > np.array(film.shape[::-1]))).any(1)
    assert not (heads_inside(landmarks, film.shape) & beyond).any()


def test_a_mark_may_lie_half_outside_of_a_film():
    film = np.full((60, 60), 100.0)
    inside, outside = (write(film, "L", np.array([x, 30.0]), 12, 252, "mm") for x in (40, 62.5))
    assert inside.max() == 252
    assert 100 < outside.max() < 150, "nothing but a faint seam of it lies within"


def test_looseness_does_not_tell_the_angle():
    hips = [sample_wide_anatomy(rng(2, i)).left for i in range(400)]
    angles = np.array([hip.norberg for hip in hips])
    loose = np.array([hip.subluxation for hip in hips])
    assert np.ptp(angles) > 45
    low = loose[angles < 85]
    assert (low < 0.2).any() and (low > 0.7).any()


def test_a_full_disk_is_known_as_one(tmp_path, monkeypatch):
    """numpy's own writing of a file says so and so many bytes of so many, and nothing else."""
    scenes = draw_scenes(0, 1)

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with pytest.raises(OSError) as error:
        write_scenes(tmp_path, scenes)
    assert disk_full(error.value)


def test_stored_scenes_are_read_back(tmp_path):
    scenes = draw_scenes(0, 3)
    write_scenes(tmp_path, scenes)
    loaded = read_scenes(tmp_path)
    for name, values in vars(scenes).items():
        np.testing.assert_array_equal(getattr(loaded, name), values)
    again = draw_scenes(0, 1)
    np.testing.assert_array_equal(again.close_ups[0], scenes.close_ups[0])


def test_heads_are_there_unless_they_are_hidden(monkeypatch):
    heads, hidden = np.array([[30.0, 60.0], [150.0, 60.0]]), 0
    for i in range(400):
        film = np.full((128, 180), 100, np.uint8)
        seen = scenes._hide(film, heads, 60.0, rng(i))
        assert seen.tolist() == (film[60, [30, 150]] == 100).tolist()
        hidden += not seen.all()
    assert hidden > 10
    monkeypatch.setattr(scenes, "_hide", lambda *_: np.zeros(2, bool))
    assert not any(draw_film_scene(rng(i), 64).present.any() for i in range(8))
