"""The training scenes of a film ruler on disk: drawn once, by all processors, read whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from hpc_hipgen.parallel import run_parallel
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.radiograph.scenes import (
    Scene,
    draw_close_up,
    draw_film_scene,
    draw_wide_film,
    heads_inside,
)

FILM_SIZE, CLOSE_UP_SIZE = 144, 160
"""Pixels a side of the stored drawings; a network sees 128, cut with some variation."""

HELD_OUT_SEED = 8_000_009
"""Of the films that calibrate and test a film ruler: no training scene is drawn from it."""

_HELD_OUT_SIZE = 480  # pixels at the longer side


@dataclass(frozen=True)
class Scenes:
    """Scenes of n dogs, one film and one close-up each.

    `films` (n, 144, 144) and `close_ups` (n, 160, 160) uint8; `heads` (n, 2, 2) and `seen` (n, 2)
    of the films, `points` (n, 2, 2), `radius` (n,) and `present` (n, 1) of the close-ups, see
    `Scene`.
    """

    films: np.ndarray
    heads: np.ndarray
    seen: np.ndarray
    close_ups: np.ndarray
    points: np.ndarray
    radius: np.ndarray
    present: np.ndarray

    def __len__(self) -> int:
        return len(self.films)


def _draw(seed: int, index: int) -> tuple[Scene, Scene]:
    film = draw_film_scene(np.random.default_rng([seed, index, 0]), FILM_SIZE)
    return film, draw_close_up(np.random.default_rng([seed, index, 1]), CLOSE_UP_SIZE)


def draw_scenes(seed: int, dogs: int) -> Scenes:
    """Draws `dogs`; each is a function of (seed, its number) alone."""
    made = progress(run_parallel(partial(_draw, seed), range(dogs)), dogs, "drawing scenes")
    return stack_scenes(list(made))


def stack_scenes(pairs: Sequence[tuple[Scene, Scene]]) -> Scenes:
    """Films of `FILM_SIZE` and close-ups of `CLOSE_UP_SIZE` pixels as one set."""
    films, close_ups = zip(*pairs, strict=True)
    return Scenes(
        np.stack([scene.image for scene in films]),
        np.stack([scene.points for scene in films]).astype(np.float32),
        np.stack([scene.present for scene in films]),
        np.stack([scene.image for scene in close_ups]),
        np.stack([scene.points for scene in close_ups]).astype(np.float32),
        np.array([scene.radius for scene in close_ups], np.float32),
        np.stack([scene.present for scene in close_ups]),
    )


def draw_held_out(index: int) -> tuple[np.ndarray, Landmarks]:
    """A film with both hips: even numbers are phantoms, odd ones of the wide population."""
    if index % 2 == 0:
        phantom = draw_phantom(HELD_OUT_SEED, index, _HELD_OUT_SIZE)
        return phantom.image, phantom.landmarks
    for attempt in count():  # nearly all films of the wide population show both hips
        rng = np.random.default_rng([HELD_OUT_SEED, index, attempt])
        film, landmarks = draw_wide_film(rng, _HELD_OUT_SIZE)
        if heads_inside(landmarks, film.shape).all():
            return film, landmarks
    raise AssertionError("not reached")


def write_scenes(folder: Path, scenes: Scenes) -> None:
    """Stores scenes, one .npy file a field, in an existing folder."""
    for name, values in vars(scenes).items():
        with (folder / f"{name}.npy").open("wb") as file:
            # what is no file for numpy it writes by python, whose error says that a disk is full
            np.save(SimpleNamespace(write=file.write), values, allow_pickle=False)


def read_scenes(folder: Path) -> Scenes:
    """Reads what `write_scenes` stored; images stay on the disk until they are used.

    Raises:
        ValueError: when the folder holds no scenes, or damaged ones.
    """
    try:
        fields = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in Scenes.__dataclass_fields__
        }
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: holds no scenes of a film ruler ({error})") from None
    return Scenes(**fields)
