"""The two networks of the film ruler, what goes into them and what is read off their maps.

The finder sees a whole film, shrunk, and marks both femoral heads; the hip network sees a close-up
of one hip, always as at the image's left, and marks head and rim. Either may also answer that there
is nothing to mark: a heat map's evidence, log mean exp of its logits, is the logit of its presence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_hipgen.rulers.ruler import RulerNetwork, standardise

SIZE = 128
"""Width and height in pixels of what either network sees."""

_POINT_WINDOW = 5  # half width, in heat map pixels, of what a point is read from
_CONTRAST_CELL = 8  # pixels; local contrast is taken over about three cells


class FilmNetworks(nn.Module):
    """Finder and hip network."""

    def __init__(self, finder: tuple[int, ...], hip: tuple[int, ...]) -> None:
        """`finder` and `hip`: channels of the levels of each, see `RulerNetwork`."""
        super().__init__()
        self.channels = {"finder": list(finder), "hip": list(hip)}
        self.finder = RulerNetwork(finder, inputs=2, points=2, radii=0)
        self.hip = RulerNetwork(hip, inputs=2, points=2, radii=1)


def network_input(images: Tensor) -> Tensor:
    """Images (b, 1, n, n) float to (b, 2, n, n): exposure does not count, not even a local one.

    The first channel is the image standardised as a whole, the second by its surroundings, where
    a head in a burnt-out corner looks like any other.
    """
    whole = standardise(images)
    mean = _surroundings(whole)
    variance = (_surroundings(whole.square()) - mean.square()).clamp_min(0)
    local = (whole - mean) / (variance.sqrt() + 0.1)
    return torch.cat([whole.clamp(-4, 4), local.clamp(-4, 4)], 1)


def _surroundings(images: Tensor) -> Tensor:
    cells = F.avg_pool2d(images, _CONTRAST_CELL)
    cells = F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False)
    return F.interpolate(cells, size=images.shape[2:], mode="bilinear", align_corners=False)


def presence_logit(logits: Tensor) -> Tensor:
    """Logit (b, k) that the point of each map (b, k, h, w) is there."""
    flat = logits.flatten(2).float()
    return flat.logsumexp(-1) - torch.log(torch.tensor(float(flat.shape[-1])))


def read_peaks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Points (b, k, 2) in pixels of the image around the highest place of each map (b, k, h, w).

    The expectation within a window: a second, lower peak does not pull. Also the share (b, k) of
    the mass that lies within.
    """
    b, k, h, w = logits.shape
    mass = logits.flatten(2).float().softmax(-1)
    best = mass.argmax(-1)
    ys = torch.arange(h, device=logits.device, dtype=torch.float32)
    xs = torch.arange(w, device=logits.device, dtype=torch.float32)
    near_y = (ys - (best // w)[..., None]).abs() <= _POINT_WINDOW
    near_x = (xs - (best % w)[..., None]).abs() <= _POINT_WINDOW
    mass = mass.view(b, k, h, w) * near_y[..., :, None] * near_x[..., None, :]
    share = mass.sum((2, 3))
    x, y = (mass.sum(2) * xs).sum(-1) / share, (mass.sum(3) * ys).sum(-1) / share
    return torch.stack([x, y], -1) * 2 + 0.5, share


def read_radius(logits: Tensor, log_radii: Tensor) -> Tensor:
    """Head radius (b,) in pixels of the hip network's maps, read under the head's heat map."""
    mass = logits[:, 0].flatten(1).float().softmax(-1)
    log_radius = (mass * log_radii[:, 0].flatten(1).float()).sum(-1)
    return log_radius.exp() * (0.1 * 2 * logits.shape[-1])


def cut(images: Tensor, matrices: Tensor, size: int, bend: Tensor | None = None) -> Tensor:
    """Views (b, 1, size, size) of images (b, 1, n, m) uint8 or float; black beyond the edges.

    Args:
        images: what is cut from.
        matrices: (b, 2, 3), from pixels of the view to pixels of the image.
        size: of the views in pixels.
        bend: (b, 2, size, size), added to where each pixel of a view is taken from, in pixels of
            the image.
    """
    steps = torch.arange(size, dtype=torch.float32, device=images.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    source = (matrices.float() @ places).view(-1, 2, size, size)
    if bend is not None:
        source = source + bend
    height, width = images.shape[2:]
    extent = torch.tensor([width - 1, height - 1], device=images.device).view(1, 2, 1, 1)
    grid = (source * 2 / extent - 1).permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), grid, mode="bilinear", align_corners=True)
