"""Captions whose angles are spread evenly, of no film: what can a generator draw at all?"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from hpc_hipgen.config import Data
from hpc_hipgen.parallel import run_parallel
from hpc_hipgen.radiograph.captions import caption
from hpc_hipgen.radiograph.dataset import film_pixels, spread_angles
from hpc_hipgen.radiograph.geometry import Angles
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.radiograph.views import make_view

COUNT = 120

_FIRST_INDEX = 30_000_000
"""Of the phantoms with these angles, after those of all splits."""


def even_angles(seed: int, count: int = COUNT) -> list[Angles]:
    """Angles of `count` dogs that there are not, as of `spread_angles`, in half degrees."""
    rng = np.random.default_rng([seed, count])
    return [spread_angles(rng).round_half() for _ in range(count)]


def even_captions(seed: int, classes: Sequence[int], count: int = COUNT) -> Films:
    """Their captions, of the prompt classes in turn, with pictures of one black pixel."""
    angles = even_angles(seed, count)
    of = np.resize(classes, count)
    names = [f"even-{i:03d}" for i in range(count)]
    return Films(
        ids=names,
        images=np.zeros((count, 1, 1), np.uint8),
        landmarks=np.zeros((count, 2, 5)),
        captions=[caption(a, int(c)) for a, c in zip(angles, of, strict=True)],
        patient_left=np.array([a.patient_left for a in angles]),
        patient_right=np.array([a.patient_right for a in angles]),
        prompt_class=of,
        film=names,
    )


def even_phantoms(data: Data, seed: int, captioned: Films) -> Iterator[np.ndarray]:
    """Nominal views (r, r) uint8 of phantoms with those angles and classes, none trained on."""
    asked = zip(captioned.patient_right, captioned.patient_left, strict=True)
    classes = captioned.prompt_class.tolist()
    scenes = [(Angles(*both), c) for both, c in zip(asked, classes, strict=True)]
    return run_parallel(partial(_view, data, seed), list(enumerate(scenes)))


def _view(data: Data, seed: int, numbered: tuple[int, tuple[Angles, int]]) -> np.ndarray:
    number, (angles, prompt_class) = numbered
    size = film_pixels(data.resolution)
    phantom = draw_phantom(seed, _FIRST_INDEX + number, size, prompt_class, angles)
    return make_view(phantom.image, phantom.landmarks, data.resolution, data.head_distance)[0]
