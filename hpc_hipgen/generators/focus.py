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
