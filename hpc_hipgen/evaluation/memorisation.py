"""Which drawn films are copies of training films, judged by what is normal for held-out films.

An image is measured against all training films in two embeddings: features of an image network
(`FilmFeatures`) and the pixels around the hips (`film_pixels`). Its distance to the nearest one is
compared with those of held-out films, which copy nothing. The distance to the nearest of many films
is the least of many distances, so its distribution is close to a Weibull distribution (Fisher &
Tippett 1928), whose tail can be told from the few held-out films there are: an empirical quantile
of 31 films ends at 3 %.

Positive controls say what the audit can see: training films themselves, mirrored, shifted,
brightened, cropped anew. It sees whole films and no parts of them: a drawing that joins the left
hip of one film to the right hip of another passes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_hipgen.evaluation.faithfulness import NORMAL_975
from hpc_hipgen.evaluation.film_pixels import Nearest, unit

ALARM = 0.001
"""A film is called a copy where a held-out film comes as near with less than this chance, in either
embedding: nominally 2 false alarms in 1,000 films, and some more where few films set the tail."""

LEAST_HELD_OUT = 10
"""Fewer held-out films set no threshold."""

PLANTED = 20
"""Training films that are copied for the positive controls."""

_TINY = 1e-9  # distance of an exact copy, whose logarithm is needed


class FilmFeatures:
    """A gallery of films by their features: cosine distance, each feature on the films' scale.

    The features are those of the Fréchet distance, of whole views: text that is burned in counts.
    """

    def __init__(self, films: np.ndarray) -> None:
        """Takes the scale from the features (m, d) of the films, and keeps them as the gallery."""
        spread = films.std(axis=0)
        self._mean = films.mean(axis=0)
        self._scale = spread + 0.1 * spread.mean() + _TINY  # some features hardly ever differ
        self._gallery = self._standard(films)

    def against(self, films: np.ndarray) -> FilmFeatures:
        """The same measure with another gallery (m, d)."""
        other = copy.copy(self)
        other._gallery = self._standard(films)
        return other

    def nearest(self, features: np.ndarray) -> Nearest:
        """The nearest film of the gallery for each line of features (n, d)."""
        return Nearest.among(self._standard(features) @ self._gallery.T)

    def _standard(self, features: np.ndarray) -> np.ndarray:
        return unit((features - self._mean) / self._scale)


@dataclass(frozen=True)
class Tail:
    """How near held-out films come to their nearest training film: a Weibull distribution.

    location, scale: of the logarithm of the distance, which then has a Gumbel distribution.
    """

    location: float
    scale: float

    @classmethod
    def of(cls, distances: np.ndarray) -> Tail:
        """Fitted to the distances (n,) of held-out films: a line through their quantile plot.

        The nearest tenth is left out, so that a held-out film which does repeat a training film,
        as when a dog has two names, does not widen the tail and hide other copies.
        """
        ordered = np.sort(np.log(distances.clip(_TINY)))
        expected = np.log(-np.log1p(-(np.arange(len(ordered)) + 0.5) / len(ordered)))
        kept = slice(len(ordered) // 10, None)
        scale, location = np.polyfit(expected[kept], ordered[kept], 1)
        return cls(float(location), max(float(scale), 1e-3))

    def chance(self, distances: np.ndarray) -> np.ndarray:
        """Chance (n,) that a held-out film comes as near as this."""
        z = (np.log(distances.clip(_TINY)) - self.location) / self.scale
        return -np.expm1(-np.exp(z.clip(max=9)))

    @property
    def threshold(self) -> float:
        """The distance below which the chance is `ALARM`."""
        return float(np.exp(self.location + self.scale * np.log(-np.log1p(-ALARM))))


@dataclass(frozen=True)
class Verdict:
    """What the audit says of n images.

    nearest: their nearest films by embedding; chance: (n,) of a held-out film to come as near.
    """

    nearest: dict[str, Nearest]
    chance: dict[str, np.ndarray]

    @classmethod
    def of(cls, nearest: dict[str, Nearest], tails: Mapping[str, Tail]) -> Verdict:
        """Compares distances with those of held-out films."""
        return cls(nearest, {name: tails[name].chance(x.distance) for name, x in nearest.items()})

    def flagged(self, source: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Which images (n,) are called copies, by embedding and by ``either``.

        source: the film that each is a copy of; one that is taken for another's does not count.
        """
        found = {name: chance < ALARM for name, chance in self.chance.items()}
        if source is not None:
            found = {name: found[name] & (self.nearest[name].film == source) for name in found}
        return {**found, "either": np.logical_or.reduce(list(found.values()))}

    def closest(self, n: int) -> list[dict[str, Any]]:
        """The n images that are most surprisingly near to a film, the nearest first.

        Keys: image (its number), film (number of its nearest), embedding (in which), distance,
        chance, mirrored, flagged.
        """
        names = list(self.chance)
        chances = np.stack([self.chance[name] for name in names])
        by = chances.argmin(axis=0)
        lines = []
        for image in chances.min(axis=0).argsort(kind="stable")[:n]:
            name = names[by[image]]
            near, chance = self.nearest[name], float(self.chance[name][image])
            lines.append(
                {
                    "image": int(image),
                    "film": int(near.film[image]),
                    "embedding": name,
                    "distance": float(near.distance[image]),
                    "chance": chance,
                    "mirrored": bool(near.mirrored[image]),
                    "flagged": chance < ALARM,
                }
            )
        return lines


def rates(found: Mapping[str, np.ndarray], dogs: Sequence[str] | None = None) -> dict[str, Any]:
    """Share of images called copies, with Wilson's 95 % interval, and how many by each embedding.

    found: what `Verdict.flagged` returns; dogs: whose captions the images were drawn for, by
    default one each. The interval is that of as many images as there are dogs: several drawings for
    one dog may all be one copy. Keys: rate, low, high, n, found, and one an embedding.
    """
    either = found["either"]
    counts = {name: int(x.sum()) for name, x in found.items() if name != "either"}
    rate = float(either.mean())
    low, high = wilson_interval(rate, len(either) if dogs is None else len(set(dogs)))
    shares = {"rate": rate, "low": low, "high": high}
    return {**shares, "n": len(either), "found": int(either.sum()), **counts}


def wilson_interval(rate: float, n: int) -> tuple[float, float]:
    """95 % interval of a share `rate` of n (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    z2 = NORMAL_975**2
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 / n * (rate * (1 - rate) + z2 / (4 * n))) / (1 + z2 / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def planted_copies(films: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of films (n, h, w) uint8 as the positive controls have them, by kind."""
    return {
        "exact": films,
        "mirrored": films[:, :, ::-1],
        "shifted": _shifted(films),
        "brightened": np.clip(1.2 * films.astype(np.float32) + 20, 0, 255).astype(np.uint8),
    }


def _shifted(films: np.ndarray) -> np.ndarray:
    """Films moved by 4 pixels of 128, down, up, right and left in turn; edges are repeated."""
    _, height, width = films.shape
    by = max(1, round(width / 32))
    padded = np.pad(films, ((0, 0), (by, by), (by, by)), mode="edge")
    corners = ((0, by), (2 * by, by), (by, 0), (by, 2 * by))
    moved = [
        film[y : y + height, x : x + width]
        for film, (y, x) in zip(padded, corners * len(films), strict=False)
    ]
    return np.stack(moved)
