"""Views: square crops of a film around the hips, at the size that the networks see.

A view is a similarity transform of the film (rotation, one zoom, shift, perhaps a mirror image):
the aspect ratio is always kept, because stretching a film changes every angle in it. Pixel centres
are at integer coordinates, (0, 0) is the centre of the top-left pixel, x to the right, y down.
"""

import math

import numpy as np
from scipy import ndimage

from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.radiograph.warps import Warp, draw_rim_warp

HEIGHT_OF_HEADS = 0.47
"""Where the midpoint of the heads lies in a view, as a fraction of its height from the top."""

JITTER_DEGREES, JITTER_SHIFT, JITTER_ZOOM = 4.0, 0.03, (0.95, 1.05)
"""Training views: rotation up to +-4 degrees, shift up to +-3 % of the width, zoom 0.95 to 1.05."""

_TARGET_SIGMA = 0.5
"""Blur of one view pixel, in view pixels: a Gaussian of 0.5 px passes 29 % at the Nyquist limit."""


def crop_matrix(
    landmarks: Landmarks,
    resolution: int,
    head_distance: float,
    *,
    rotation: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    zoom: float = 1.0,
    flip: bool = False,
) -> np.ndarray:
    """Return the (2, 3) similarity that takes film pixels to view pixels.

    Args:
        landmarks: of the film, in its pixels; the heads set the crop.
        resolution: width and height of the view in pixels.
        head_distance: distance between the head centres as a fraction of the view's width.
        rotation: degrees, positive turns x towards y (clockwise on the screen).
        shift: of the head midpoint to the right and down, as fractions of the view's width.
        zoom: multiplies the size of everything.
        flip: mirror the view left to right, last.
    """
    left, right = landmarks.image_left, landmarks.image_right
    middle = np.array([left.head_x + right.head_x, left.head_y + right.head_y]) / 2
    scale = zoom * head_distance * resolution / landmarks.head_distance
    angle = math.radians(rotation)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    # A view of n pixels spans -0.5 .. n - 0.5, hence the half pixel.
    target = resolution * (np.array([0.5, HEIGHT_OF_HEADS]) + shift) - 0.5
    matrix = np.column_stack([linear, target - linear @ middle])
    if flip:
        matrix = np.array([[-1.0, 0.0], [0.0, 1.0]]) @ matrix
        matrix[0, 2] += resolution - 1
    return matrix


def resample(
    image: np.ndarray, matrix: np.ndarray, resolution: int, warp: Warp | None = None
) -> np.ndarray:
    """Draw the view (resolution, resolution) uint8 of a grey film (h, w) uint8.

    `matrix` takes film pixels to view pixels, where `warp` then moves them.

    When the film is shrunk, it is blurred first so that a view pixel averages over the area that
    it covers: film pixels already have a spread of about half a film pixel, which is taken off.
    Only the part of the film under the view is touched. Outside the film: black.
    """
    inverse = np.linalg.inv(matrix[:, :2])
    offset = -inverse @ matrix[:, 2]
    shrink = math.sqrt(abs(np.linalg.det(inverse)))
    sigma = _TARGET_SIGMA * math.sqrt(max(shrink**2 - 1, 0.0))

    last = resolution - 1
    corners = inverse @ np.array([[0, last, 0, last], [0, 0, last, last]]) + offset[:, None]
    margin = math.ceil(4 * sigma) + 4
    low = np.floor(corners.min(1)).astype(int) - margin
    high = np.ceil(corners.max(1)).astype(int) + margin + 1
    low = np.maximum(low, 0)
    high = np.minimum(high, image.shape[::-1])
    if (high <= low).any():  # the view does not touch the film
        return np.zeros((resolution, resolution), np.uint8)
    part = image[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    if sigma > 0.3:  # weaker than that, the kernel is a delta
        part = ndimage.gaussian_filter(part, sigma, mode="constant")
    # scipy works in (row, column)
    order = 1 if sigma > 0.6 else 3  # linear is exact enough on a blurred film
    if warp is None:
        view = ndimage.affine_transform(
            part,
            inverse[::-1, ::-1],
            (offset - low)[::-1],
            output_shape=(resolution, resolution),
            order=order,
            mode="grid-constant",
        )
    else:
        pixels = np.stack(np.meshgrid(*2 * [np.arange(resolution, dtype=np.float64)]), -1)
        points = warp.source(pixels) @ inverse.T + (offset - low)
        view = ndimage.map_coordinates(
            part, points.transpose(2, 0, 1)[::-1], order=order, mode="grid-constant"
        )
    return np.clip(np.rint(view), 0, 255).astype(np.uint8)


def make_view(
    image: np.ndarray,
    landmarks: Landmarks,
    resolution: int,
    head_distance: float,
    rng: np.random.Generator | None = None,
    flip: bool = False,
    jitter: float = 1.0,
    warp: float = 0.0,
) -> tuple[np.ndarray, Landmarks]:
    """Crop a film to the hips.

    Args:
        image: (h, w) uint8 film.
        landmarks: of the film, in its pixels.
        resolution: width and height of the view in pixels.
        head_distance: distance between the head centres as a fraction of the view's width.
        rng: draws the jitter of a training view; None for the nominal view, which centres the
            heads' midpoint and keeps the film's own rotation.
        flip: mirror the view; the sides of the landmarks are swapped with the pixels.
        jitter: share of the full jitter (`JITTER_DEGREES` and the rest), 0 to 1.
        warp: standard deviation in degrees of the change of each Norberg angle (warps.py).

    Returns:
        The view (resolution, resolution) uint8 and its landmarks in view pixels.
    """
    rotation, right, down, zoom = 0.0, 0.0, 0.0, 1.0
    if rng is not None:
        rotation = jitter * rng.uniform(-JITTER_DEGREES, JITTER_DEGREES)
        right, down = jitter * rng.uniform(-JITTER_SHIFT, JITTER_SHIFT, size=2)
        zoom = 1 + jitter * (rng.uniform(*JITTER_ZOOM) - 1)
    matrix = crop_matrix(
        landmarks,
        resolution,
        head_distance,
        rotation=rotation,
        shift=(right, down),
        zoom=zoom,
        flip=flip,
    )
    placed = landmarks.transform(matrix)
    if rng is None or not warp:
        return resample(image, matrix, resolution), placed
    rims = draw_rim_warp(placed, warp, rng)
    return resample(image, matrix, resolution, rims), rims.landmarks(placed)


def resolution_budget(landmarks: Landmarks) -> float:
    """Degrees of Norberg angle that one pixel is worth: degrees(1 / arm length in pixels).

    The arm runs from a head centre to the rim point; the shorter of the two counts. `landmarks`
    are in the pixels of the image that is judged.
    """
    arm = min(
        math.hypot(hip.rim_x - hip.head_x, hip.rim_y - hip.head_y)
        for hip in (landmarks.image_left, landmarks.image_right)
    )
    return math.degrees(1 / arm)
