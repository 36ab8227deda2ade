"""The learning curves of rulers of few films, with and without films that have no landmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpc_hipgen.comparisons.downstream_utility import ALONE, ARMS

RESAMPLES = 2000
COLUMNS = (
    "films", "arm", "seeds", "mae", "low", "high", "bias", "refused",
    "difference", "difference_low", "difference_high",
)  # fmt: skip


def learning_curve(
    results: Sequence[Mapping[str, Any]], dogs: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """A line for each number of films and arm: errors in degrees, with 95 % intervals.

    Dogs (with both hips and all films) and seeds are resampled, each on its own, the same way for
    every line, so that `difference` (MAE minus that of the arm `alone`) is paired.

    Args:
        results: of all cells: arm, number (of films), seed, errors (f, 2), refused. Every arm and
            number has the same seeds.
        dogs: f names, of the films' dogs.
        seed: of the bootstrap.
    """
    table: dict[tuple[int, str], dict[int, Mapping[str, Any]]] = {}
    for result in results:
        table.setdefault((result["number"], result["arm"]), {})[result["seed"]] = result
    seeds = sorted(next(iter(table.values())))
    weights = _resampled(len(seeds), dogs, seed)
    lines, alone = [], {}
    for (number, arm), cells in sorted(table.items(), key=lambda x: (x[0][0], ARMS.index(x[0][1]))):
        errors = np.array([cells[s]["errors"] for s in seeds])  # seeds, films, sides
        off = np.abs(errors).mean(2)
        spread = np.einsum("bs,sf,bf->b", weights[0], off, weights[1])
        line = {
            "films": number, "arm": arm, "seeds": len(seeds), "mae": float(off.mean()),
            "bias": float(errors.mean()), "refused": sum(cells[s]["refused"] for s in seeds),
            **dict(zip(("low", "high"), _interval(spread), strict=True)),
            "difference": None, "difference_low": None, "difference_high": None,
        }  # fmt: skip
        if arm == ALONE:
            alone[number] = (line["mae"], spread)
        elif number in alone:
            mae, other = alone[number]
            low, high = _interval(spread - other)
            line |= {"difference": line["mae"] - mae}
            line |= {"difference_low": low, "difference_high": high}
        lines.append(line)
    return lines


def _resampled(seeds: int, dogs: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of seeds (b, s) and of films (b, f) in resamples of seeds and of dogs; sums are 1."""
    rng = np.random.default_rng(seed)
    _, whose = np.unique(np.asarray(dogs), return_inverse=True)
    count = whose.max() + 1
    of_dogs = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    of_films = of_dogs[:, whose].astype(float)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    return of_seeds, of_films / of_films.sum(1, keepdims=True)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
