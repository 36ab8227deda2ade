"""Landmarks of a ventrodorsal hip radiograph and the Norberg angle that follows from them.

Pixel centres are at integer coordinates, the centre of the top-left pixel is (0, 0), x runs to
the right and y downwards. A ventrodorsal film shows the patient's left at the image's right;
landmarks are stored by side of the *image*, angles that are asked for or reported by the
*patient's*, and `Angles` (of one film) and `swap_sides` (of many) turn one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_Pairs = TypeVar("_Pairs", np.ndarray, "Tensor")

IMAGE_SIDES = ("image_left", "image_right")
PATIENT_SIDES = ("left", "right")

# Lower bounds of the bands A to D, in degrees: midway between the band means of Comhaire &
# Schoonjans 2011 (n = 4372), where a band's mean is that of its two sub-grades
# (A 106.7, B 103.5, C 99.3, D 94.5, E 89.1). Bands of the angle alone: a real FCI grade also
# weighs the joint's shape and its arthrosis.
FCI_LOWER_BOUNDS = (("A", 105.1), ("B", 101.4), ("C", 96.9), ("D", 91.8))

# A similarity read from a file or composed of float32 parts is off by rounding only.
_ISOTROPY_TOLERANCE = 1e-4


def norberg_angle(head: np.ndarray, other_head: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Norberg angle of a hip in degrees, 0..180.

    `head`, `other_head` and `rim` are points (..., 2) that broadcast against each other: the
    centre of the hip's femoral head, that of the other hip and the hip's craniolateral
    acetabular rim point. The result has the leading shape. NaN where an arm has no length.
    The arctangent keeps its accuracy near 0 and 180, where the arc cosine loses it.
    """
    head = np.asarray(head, dtype=np.float64)
    to_other = np.asarray(other_head, dtype=np.float64) - head
    to_rim = np.asarray(rim, dtype=np.float64) - head
    cross = to_other[..., 0] * to_rim[..., 1] - to_other[..., 1] * to_rim[..., 0]
    dot = np.sum(to_other * to_rim, axis=-1)
    angle = np.degrees(np.arctan2(np.abs(cross), dot))
    no_arm = (np.abs(to_other).max(axis=-1) == 0) | (np.abs(to_rim).max(axis=-1) == 0)
    return np.where(no_arm, np.nan, angle)


def caudal_rims(heads: np.ndarray, rims: np.ndarray) -> np.ndarray:
    """Which rims of a film lie below the line through its heads, where no dog's do; (2,) bool.

    `heads` and `rims`: (2, 2), image left and right; the angle alone cannot tell.
    """
    (x, y), arms = heads[1] - heads[0], rims - heads
    return x * arms[:, 1] - y * arms[:, 0] > 0


def swap_sides(pairs: _Pairs) -> _Pairs:
    """What is said of a film's two hips, by side of the image -> by side of the patient, and back.

    `pairs`: (..., 2), an array or a tensor, in the order of `IMAGE_SIDES` or `PATIENT_SIDES`.
    Returns a copy, which torch takes too.
    """
    return pairs[..., ::-1].copy() if isinstance(pairs, np.ndarray) else pairs.flip(-1)


def fci_grade(angle: float) -> str:
    """Band "A" (tight) to "E" (severe dysplasia) in which a Norberg angle in degrees falls.

    See `FCI_LOWER_BOUNDS` for the thresholds. Raises ValueError for an angle outside 0..180.
    """
    if not 0 <= angle <= 180:
        raise ValueError(f"a Norberg angle lies between 0 and 180 degrees, not at {angle}")
    for grade, lower in FCI_LOWER_BOUNDS:
        if angle >= lower:
            return grade
    return "E"


@dataclass(frozen=True)
class Angles:
    """The two Norberg angles of a film in degrees, by side of the image."""

    image_left: float
    image_right: float

    @property
    def patient_left(self) -> float:
        """Angle of the patient's left hip, at the image's right in a ventrodorsal view."""
        return self.image_right

    @property
    def patient_right(self) -> float:
        """Angle of the patient's right hip, at the image's left in a ventrodorsal view."""
        return self.image_left

    @classmethod
    def of_patient(cls, left: float, right: float) -> Angles:
        """Angles from the patient's sides, in degrees."""
        return cls(image_left=right, image_right=left)

    def round_half(self) -> Angles:
        """Both angles rounded to the nearest half degree, ties upwards."""
        return Angles(
            float(np.floor(self.image_left * 2 + 0.5) / 2),
            float(np.floor(self.image_right * 2 + 0.5) / 2),
        )


@dataclass(frozen=True)
class Hip:
    """Best-fit circle of the femoral head and craniolateral rim point of one hip, in pixels."""

    head_x: float
    head_y: float
    head_radius: float
    rim_x: float
    rim_y: float


_HIP_FIELDS = tuple(field.name for field in fields(Hip))


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of both hips of a film, in pixels of that film."""

    image_left: Hip
    image_right: Hip

    @property
    def head_distance(self) -> float:
        """D, the distance between the two head centres in pixels."""
        left, right = self.image_left, self.image_right
        return float(np.hypot(right.head_x - left.head_x, right.head_y - left.head_y))

    def norberg_angles(self) -> Angles:
        """Both Norberg angles in degrees."""
        points = self.to_array()
        heads, rims = points[:, :2], points[:, 3:5]
        angles = norberg_angle(heads, heads[::-1], rims)
        return Angles(float(angles[0]), float(angles[1]))

    def transform(self, matrix: np.ndarray) -> Landmarks:
        """Landmarks after the similarity `matrix` (2, 3), which maps old pixels to new ones.

        The radius is scaled. A reflection swaps the sides, for it turns the patient's left into
        the right. Raises ValueError for a matrix that scales unevenly, shears or is singular.
        """
        matrix = np.asarray(matrix, dtype=np.float64)
        if matrix.shape != (2, 3):
            raise ValueError(f"a similarity has shape (2, 3), not {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError(f"a similarity must be finite: {matrix.tolist()}")
        linear = matrix[:, :2]
        determinant = float(np.linalg.det(linear))
        scale = float(np.sqrt(abs(determinant)))
        deviation = np.abs(linear @ linear.T - scale**2 * np.eye(2)).max()
        if scale == 0:
            raise ValueError(f"a similarity must be of full rank: {linear.tolist()}")
        if deviation > _ISOTROPY_TOLERANCE * scale**2:
            raise ValueError(f"not a similarity, it would change angles: {linear.tolist()}")
        points = self.to_array()
        moved = np.empty_like(points)
        moved[:, :2] = points[:, :2] @ linear.T + matrix[:, 2]
        moved[:, 2] = points[:, 2] * scale
        moved[:, 3:] = points[:, 3:] @ linear.T + matrix[:, 2]
        return Landmarks.from_array(moved[::-1] if determinant < 0 else moved)

    def flip(self, width: int) -> Landmarks:
        """Landmarks of the film mirrored left to right; `width` in pixels. The sides swap."""
        return self.transform(np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]]))

    def stretch(self, factor: float) -> Landmarks:
        """Landmarks of the film stretched in height, which changes angles; the radius stays."""
        points = self.to_array()
        points[:, [1, 4]] = (points[:, [1, 4]] + 0.5) * factor - 0.5
        return Landmarks.from_array(points)

    def to_array(self) -> np.ndarray:
        """(2, 5) float64: rows as in `IMAGE_SIDES`, columns head x, y, radius, rim x, y."""
        rows = [
            [getattr(getattr(self, side), name) for name in _HIP_FIELDS] for side in IMAGE_SIDES
        ]
        return np.array(rows, dtype=np.float64)

    @classmethod
    def from_array(cls, array: np.ndarray) -> Landmarks:
        """Inverse of `to_array`. Raises ValueError for another shape than (2, 5)."""
        array = np.asarray(array, dtype=np.float64)
        if array.shape != (2, 5):
            raise ValueError(f"landmarks have shape (2, 5), not {array.shape}")
        left, right = (Hip(*(float(value) for value in row)) for row in array)
        return cls(left, right)

    def flat(self) -> dict[str, float]:
        """The ten columns of a manifest, image_left_head_x ... image_right_rim_y, in pixels."""
        return dict(zip(LANDMARK_COLUMNS, self.to_array().ravel().tolist(), strict=True))

    @classmethod
    def from_flat(cls, row: Mapping[str, object]) -> Landmarks:
        """Inverse of `flat`; other keys are ignored, values may be strings.

        Raises ValueError naming the column that is missing or not a number.
        """
        hips = []
        for side in IMAGE_SIDES:
            values = []
            for name in _HIP_FIELDS:
                column = f"{side}_{name}"
                try:
                    # float itself says what is no number
                    values.append(float(row[column]))  # type: ignore[arg-type]
                except KeyError:
                    raise ValueError(f"column {column} is missing") from None
                except (TypeError, ValueError):
                    message = f"column {column} is not a number: {row[column]!r}"
                    raise ValueError(message) from None
            hips.append(Hip(*values))
        return cls(*hips)


LANDMARK_COLUMNS = tuple(f"{side}_{name}" for side in IMAGE_SIDES for name in _HIP_FIELDS)
