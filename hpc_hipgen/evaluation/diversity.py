"""How much the images of a set differ from each other, by structural similarity.

The mean SSIM over pairs of images of one set: 1 for one image over and over, near 0 for unrelated
ones. Smooth images are alike too: blur alone raises it, and so test films that went through an
autoencoder are more alike than before. A latent generator is compared with that round trip: one
whose pairs are more alike draws smoother films, or too few kinds of film.
The mean over pairs is unbiased at every number of images, so sets of different size compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from hpc_hipgen.evaluation import samples
from hpc_hipgen.run import Run

MOST = 48
"""Images of a row that are compared with each other, spread over its captions: 1,128 pairs."""

PIXELS = 128
"""Larger images are shrunk to that: what is compared is the view, not its grain."""

RESAMPLES = 1000
LEAST = 3  # images: two have one pair, and a bootstrap of it has no width


def pairwise_ssim(images: np.ndarray, batch: int = 128) -> np.ndarray:
    """SSIM (n, n) of every pair of images (n, h, w) uint8; symmetric, 1 on the diagonal.

    With the publication's Gaussian window of sigma 1.5 (Wang et al. 2004, doi
    10.1109/TIP.2003.819861), on images of at most `PIXELS` a side. Raises ValueError below 11
    pixels, the window's width.
    """
    if min(images.shape[1:]) < 11:
        raise ValueError(f"need images of 11 x 11 pixels or more, got {images.shape[1:]}")
    views = torch.from_numpy(images).float()[None] / 255
    if max(images.shape[1:]) > PIXELS:
        views = F.interpolate(views, (PIXELS, PIXELS), mode="area")
    result = np.eye(len(images))
    pairs = np.array(list(combinations(range(len(images)), 2)), dtype=int).reshape(-1, 2)
    for start in range(0, len(pairs), batch):
        i, j = pairs[start : start + batch].T
        # pairs as channels: the same numbers in a third of the time on a CPU
        _, maps = structural_similarity_index_measure(
            views[:, i], views[:, j], data_range=1.0, return_full_image=True
        )
        result[i, j] = result[j, i] = maps.mean((0, 2, 3)).numpy()
    return result


def diversity(ssim: np.ndarray, seed: int = 0) -> dict[str, float | int | None]:
    """Mean SSIM over the pairs of a set, with its 95 % percentile interval.

    ssim: (n, n) of `pairwise_ssim`. Images are resampled, not pairs, which share images; an image
    that is drawn twice is not compared with itself. Keys: ssim, low, high, n, all None but n below
    three images.
    """
    n = len(ssim)
    if n < LEAST:
        return {"ssim": None, "low": None, "high": None, "n": n}
    between = ssim - np.diag(np.diag(ssim))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    pairs = n * n - (counts**2).sum(1)
    sums = ((counts @ between) * counts).sum(1)
    low, high = np.quantile(sums[pairs > 0] / pairs[pairs > 0], [0.025, 0.975])
    mean = float(between.sum() / (n * (n - 1)))
    return {"ssim": mean, "low": float(low), "high": float(high), "n": n}


def of_rows(run: Run, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Diversity of every row's images, of all and per prompt class."""
    result: dict[str, Any] = {
        "name": "mean SSIM over pairs of images of one row",
        "interval": f"95 %, bootstrap over images, {RESAMPLES} resamples",
        "rows": {},
    }
    for row, table in tables.items():
        chosen = table.iloc[samples.spread(list(table["film"]), MOST)]
        images = samples.read_images(run, row, zip(chosen["key"], chosen["shard"], strict=True))
        chosen = chosen[chosen["key"].isin(list(images))]  # a shard may have been removed since
        if chosen.empty:
            continue
        ssim = pairwise_ssim(np.stack([images[key] for key in chosen["key"]]))
        classes = chosen["prompt_class"].to_numpy()
        groups = {"all": np.arange(len(chosen))}
        groups |= {str(c): np.flatnonzero(classes == c) for c in sorted(set(classes.tolist()))}
        result["rows"][row] = {
            group: diversity(ssim[np.ix_(pick, pick)], run.config.seed)
            for group, pick in groups.items()
        }
    return result
