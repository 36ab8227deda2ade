"""Captions of other views: how a generator learns to believe the caption, not the picture.

A film always shows the angles of its caption, so a generator that has only seen films takes the
angles from the picture as soon as it can make them out. While it draws, the picture is its own and
a little off, and nothing puts that right. Here some images come with the caption of another view
of their film, which a warp gave other angles (radiograph/warps.py).
"""

from __future__ import annotations

import numpy as np

from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.clock import ImageRandom

NEAR_BY = 15.0
"""Degrees by which the angles of two captions may differ, for one to be taken for the other."""


class OtherCaptions:
    """Chooses whose captions go with images."""

    def __init__(self, films: Films, share: float, first: float = 0.0) -> None:
        """`share` of the images from number `first` on the clock on get another's caption."""
        self.share, self.first = share, first
        self.film = films.film
        self.angles = np.stack([films.patient_left, films.patient_right], 1)
        self.views_of: dict[str, list[int]] = {}
        for view, film in enumerate(films.film):
            self.views_of.setdefault(film, []).append(view)

    def choose(self, indices: np.ndarray, random: ImageRandom) -> np.ndarray:
        """For the images `indices` (b,) the views whose captions they get; mostly themselves."""
        swapped = (random.uniform("swapped") < self.share).tolist()
        choice = random.integers("other view", 1 << 30).tolist()
        chosen = indices.copy()
        for place, view in enumerate(indices):
            swap = swapped[place] and random.clock[place] >= self.first
            if others := self._others(view) if swap else []:
                chosen[place] = others[choice[place] % len(others)]
        return chosen

    def _others(self, view: int) -> list[int]:
        """Other views of the film with angles near by; those of a flipped one are exchanged."""
        views = [v for v in self.views_of[self.film[view]] if v != view]
        return [v for v in views if np.abs(self.angles[v] - self.angles[view]).max() <= NEAR_BY]
