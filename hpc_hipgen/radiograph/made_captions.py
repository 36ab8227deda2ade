"""Captions of no film: what can a generator draw at all, and on what has nobody looked before?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hpc_hipgen.config import Data
from hpc_hipgen.parallel import run_parallel
from hpc_hipgen.radiograph.captions import caption
from hpc_hipgen.radiograph.film_set import film_pixels, spread_angles
from hpc_hipgen.radiograph.geometry import Angles
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.radiograph.phantom_anatomy import sample_angles
from hpc_hipgen.radiograph.views import make_view


@dataclass(frozen=True)
class CaptionSet:
    """Captions of dogs that there are not.

    count: how many; angles: of one dog; first_index: of the phantoms with these angles, which lie
    after those of all splits.
    """

    name: str
    count: int
    angles: Callable[[np.random.Generator], Angles]
    first_index: int


EVEN = CaptionSet("even", 120, spread_angles, 30_000_000)
"""Angles spread evenly: few films have hips far below the mean."""

FRESH = CaptionSet("fresh", 240, sample_angles, 40_000_000)
"""The angles of the phantoms' population, as the test films have them."""

CAPTION_SETS = {made.name: made for made in (EVEN, FRESH)}


def made_angles(made: CaptionSet, seed: int) -> list[Angles]:
    """The angles of the dogs of a set, in half degrees."""
    rng = np.random.default_rng([seed, made.count])
    return [made.angles(rng).round_half() for _ in range(made.count)]


def made_captions(made: CaptionSet, seed: int, classes: Sequence[int]) -> Films:
    """Their captions, of the prompt classes in turn, with pictures of one black pixel."""
    angles = made_angles(made, seed)
    of = np.resize(classes, made.count)
    names = [f"{made.name}-{i:03d}" for i in range(made.count)]
    return Films(
        ids=names,
        images=np.zeros((made.count, 1, 1), np.uint8),
        landmarks=np.zeros((made.count, 2, 5)),
        captions=[caption(a, int(c)) for a, c in zip(angles, of, strict=True)],
        patient_left=np.array([a.patient_left for a in angles]),
        patient_right=np.array([a.patient_right for a in angles]),
        prompt_class=of,
        film=names,
    )


def made_phantoms(
    made: CaptionSet, data: Data, seed: int, captioned: Films
) -> Iterator[np.ndarray]:
    """Nominal views (r, r) uint8 of phantoms with those angles and classes, none trained on."""
    asked = zip(captioned.patient_right, captioned.patient_left, strict=True)
    classes = captioned.prompt_class.tolist()
    scenes = [(Angles(*both), c) for both, c in zip(asked, classes, strict=True)]
    return run_parallel(partial(_view, data, seed, made.first_index), list(enumerate(scenes)))


def _view(
    data: Data, seed: int, first: int, numbered: tuple[int, tuple[Angles, int]]
) -> np.ndarray:
    number, (angles, prompt_class) = numbered
    size = film_pixels(data.resolution)
    phantom = draw_phantom(seed, first + number, size, prompt_class, angles)
    return make_view(phantom.image, phantom.landmarks, data.resolution, data.head_distance)[0]
