"""Where in a view the angle is decided: weight maps around the hips.

Both angles hang on a few per cent of the pixels. A weight map in a regression loss leaves the
optimum where it is (each pixel's conditional mean) and spends the network's capacity there.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 1.0
"""Standard deviation of the focus in head radii."""


def hip_focus(landmarks: Tensor, size: int, resolution: int, extra: float) -> Tensor:
    """Weight maps 1 + extra * (Gaussians midway between head centre and rim point of each hip).

    Args:
        landmarks: (b, 2, 5) in pixels of the view.
        size: height and width of the map; the view has `resolution` pixels.
        extra: weight added at the middle of a hip.

    Returns:
        (b, 1, size, size) float32.
    """
    scale = size / resolution
    middle = (landmarks[..., :2] + landmarks[..., 3:]) / 2
    middle = (middle + 0.5) * scale - 0.5
    reach = landmarks[..., 2] * REACH * scale
    grid = torch.arange(size, dtype=torch.float32)
    dx = grid - middle[..., :1].float()
    dy = grid - middle[..., 1:].float()
    square = dy[..., :, None] ** 2 + dx[..., None, :] ** 2
    bumps = torch.exp(-square / (2 * reach.float()[..., None, None] ** 2))
    return 1 + extra * bumps.amax(1, keepdim=True)


AT_A_HIP = 0.75
"""Share of the windows of `hip_windows` that lie at a hip; the others lie anywhere."""


def hip_windows(landmarks: Tensor, size: int, resolution: int, draws: Tensor) -> Tensor:
    """Where square windows of a view lie that train a network which only looks at neighbourhoods.

    Three in four lie at a hip, off its middle by up to 3/8 of their size, so that hips are seen at
    every place of a window; the others lie anywhere, so that nothing of a view is never seen.

    Args:
        landmarks: (b, 2, 5) in pixels of the view.
        size: width and height of a window in pixels, at most `resolution`.
        resolution: width and height of the view.
        draws: (b, 4) uniform in [0, 1).

    Returns:
        (b, 2) int64, x and y of the upper left pixels, within 0 .. resolution - size.
    """
    middles = (landmarks[..., :2] + landmarks[..., 3:]) / 2
    side = (draws[:, 1] < 0.5).long()
    middle = middles[torch.arange(len(middles)), side].float()
    hips = middle - size / 2 + (draws[:, 2:] - 0.5) * size * 0.75
    anywhere = draws[:, 2:] * (resolution - size)
    corner = torch.where(draws[:, :1] < AT_A_HIP, hips, anywhere)
    return corner.round().long().clamp(0, resolution - size)
