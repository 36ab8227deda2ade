"""The parametric pelvis of a phantom: parameters drawn from a population, outlines made from them.

Everything is in units of D, the distance between the femoral head centres, in a frame whose
origin lies midway between the heads with x towards the image's right and y downwards (caudally).
So the heads are at (-0.5, 0) and (0.5, 0) exactly. Outlines of one half are drawn in *lateral*
coordinates, in which x grows away from the midline on either side.

The proportions are the estimates for dogs in hip-extended ventrodorsal position: head radius
0.095..0.133, rim at 1.07..1.41 radii, inlet 0.59..0.63 wide, foramina 0.22..0.28 x 0.29..0.38.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_hipgen.radiograph.geometry import IMAGE_SIDES, Angles, Hip, Landmarks
from hpc_hipgen.radiograph.phantom_look import Look

ANGLE_LIMITS = (58.0, 122.0)
"""Range in degrees of the Norberg angles that the population prior draws."""

# Mean 102 and SD 7 with a tail down to 60 (Comhaire & Schoonjans 2011 and breed ranges): a
# Gaussian of tight to borderline hips, and one dog in seven with an exponential loss of angle.
_TIGHT_MEAN, _TIGHT_SD, _TIGHT_R = 103.5, 5.3, 0.68
_LOOSE_SHARE, _LOOSE_MEAN = 0.15, 11.0

HEAD_X = 0.5  # by the definition of D


@dataclass(frozen=True)
class HipShape:
    """One hip; lengths in units of D unless said otherwise, angles in degrees."""

    norberg: float
    radius: float
    rim_ratio: float
    """Distance of the rim point from the head centre in head radii."""
    gap: float
    """Width of the joint space in head radii, where the head is seated."""
    subluxation: float
    """Lateral displacement of the head out of the cup in head radii."""
    flatness: float
    """0 for a roof concentric with the head, 1 for one that runs straight to the rim."""
    abduction: float
    shaft_half_width: float
    trochanter_x: float
    trochanter_y: float
    osteophyte: float
    """Strength 0..1 of new bone on neck and rim."""
    dorsal_cover: float
    """Where the dorsal rim crosses the head, in radii lateral of its centre."""
    ascent: float = 0.34
    """How far cranially a loose head leaves the cup, as a share of its displacement."""

    @property
    def cup(self) -> np.ndarray:
        """Centre (2,) of the acetabulum in lateral coordinates; the head's when it is seated."""
        shift = self.subluxation * self.radius
        return np.array([HEAD_X - 0.94 * shift, self.ascent * shift])

    @property
    def rim(self) -> np.ndarray:
        """Craniolateral rim point (2,) in lateral coordinates, exactly at the Norberg angle."""
        theta = np.radians(self.norberg)
        reach = self.rim_ratio * self.radius
        return np.array([HEAD_X - reach * np.cos(theta), -reach * np.sin(theta)])


@dataclass(frozen=True)
class Anatomy:
    """The parameters of one pelvis; `left` and `right` are sides of the image."""

    left: HipShape
    right: HipShape
    inlet: float
    """Scale of the pelvis across, 1 for the mean inlet."""
    length: float
    """Scale of the pelvis along the body, 1 for the mean."""
    tilt: float
    """Axial roll, -1..1: one foramen grows and the other shrinks."""
    ischium: float
    """Scale of what lies caudal of the foramina, 1 for the mean."""
    arch: float
    """Shift of the ischial arch's apex in D, positive when shallow."""
    flare: float
    """Lateral lean of the iliac wings, D per D of height."""
    spine_shift: float
    spine_bend: float
    tail_angle: float

    @property
    def angles(self) -> Angles:
        """The Norberg angles by construction, in degrees."""
        return Angles(self.left.norberg, self.right.norberg)

    def landmarks(self, matrix: np.ndarray) -> Landmarks:
        """Landmarks in pixels, `matrix` (2, 3) being the similarity from this frame to pixels."""
        hips = []
        for side, hip in zip(IMAGE_SIDES, (self.left, self.right), strict=True):
            sign = -1.0 if side == "image_left" else 1.0
            hips.append(Hip(sign * HEAD_X, 0.0, hip.radius, sign * hip.rim[0], hip.rim[1]))
        return Landmarks(*hips).transform(matrix)


def sample_angles(rng: np.random.Generator) -> Angles:
    """Norberg angles of one dog from the population prior, within `ANGLE_LIMITS`."""
    shared, *own = rng.standard_normal(3)
    loose = rng.random() < _LOOSE_SHARE
    loss = rng.exponential(_LOOSE_MEAN)
    worse, better = rng.permutation([1.0, rng.uniform(0.35, 1.0)])
    values = []
    for noise, share in zip(own, (worse, better), strict=True):
        tight = np.sqrt(_TIGHT_R) * shared + np.sqrt(1 - _TIGHT_R) * noise
        value = _TIGHT_MEAN + _TIGHT_SD * tight - (loss * share if loose else 0.0)
        values.append(float(np.clip(value, *ANGLE_LIMITS)))
    return Angles(*values)


def _sample_hip(
    rng: np.random.Generator, norberg: float, radius: float, abduction: float
) -> HipShape:
    """Shape of one hip: a small angle goes with a loose, flat and arthrotic joint."""
    looseness = max(0.0, (104.0 - norberg) / 30.0)
    worn = np.clip(looseness * rng.uniform(0.5, 1.5) - 0.15, 0.0, 1.0)
    return HipShape(
        norberg=norberg,
        radius=radius,
        rim_ratio=float(np.clip(rng.normal(1.20, 0.055), 1.08, 1.40)),
        gap=float(rng.uniform(0.045, 0.095)),
        subluxation=float(np.clip(0.55 * looseness * rng.uniform(0.75, 1.25), 0.0, 0.95)),
        flatness=float(np.clip(0.75 * looseness + rng.uniform(0.0, 0.25), 0.0, 1.0)),
        abduction=abduction,
        shaft_half_width=float(np.clip(rng.normal(0.086, 0.006), 0.075, 0.102)),
        trochanter_x=float(np.clip(rng.normal(0.835, 0.022), 0.79, 0.89)),
        trochanter_y=float(np.clip(rng.normal(0.055, 0.025), 0.0, 0.11)),
        osteophyte=float(worn),
        dorsal_cover=float(0.16 - 0.55 * looseness + rng.normal(0, 0.07)),
    )


def sample_anatomy(rng: np.random.Generator, angles: Angles | None = None) -> Anatomy:
    """Draw one pelvis; with `angles` (degrees) given they are hit exactly.

    The same generator state draws the same pelvis otherwise: the prior's angles are drawn and
    thrown away. Raises ValueError for an angle outside 40..140 degrees.
    """
    drawn = sample_angles(rng)
    if angles is not None:
        for side in IMAGE_SIDES:
            if not 40.0 <= getattr(angles, side) <= 140.0:
                value = getattr(angles, side)
                raise ValueError(f"cannot draw a hip of {value} degrees ({side}): 40 to 140 only")
        drawn = angles
    mean_radius = np.clip(rng.normal(0.113, 0.0075), 0.097, 0.131)
    abducted = rng.random() < 0.33
    shared = rng.uniform(8.0, 24.0) if abducted else rng.normal(3.0, 2.5)
    hips = []
    for side in IMAGE_SIDES:
        radius = float(np.clip(mean_radius * rng.normal(1.0, 0.018), 0.095, 0.133))
        abduction = float(np.clip(shared + rng.normal(0.0, 4.0 if abducted else 1.8), -4.0, 33.0))
        hips.append(_sample_hip(rng, float(getattr(drawn, side)), radius, abduction))
    return Anatomy(
        left=hips[0],
        right=hips[1],
        inlet=float(np.clip(rng.normal(1.0, 0.025), 0.94, 1.06)),
        length=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)),
        tilt=float(np.clip(rng.normal(0.0, 0.35), -1.0, 1.0)),
        ischium=float(np.clip(rng.normal(0.97, 0.09), 0.78, 1.15)),
        arch=float(np.clip(rng.normal(0.0, 0.025), -0.06, 0.06)),
        flare=float(np.clip(rng.normal(0.0, 0.07), -0.16, 0.16)),
        spine_shift=float(np.clip(rng.normal(0.0, 0.02), -0.06, 0.06)),
        spine_bend=float(np.clip(rng.normal(0.0, 0.03), -0.08, 0.08)),
        tail_angle=float(rng.normal(0.0, 4.0)),
    )


def spline(points: np.ndarray, closed: bool = False, samples: int = 8) -> np.ndarray:
    """Uniform Catmull-Rom curve through `points` (n, 2): (m, 2), ends included."""
    points = np.asarray(points, dtype=np.float64)
    if closed:
        padded = np.vstack([points[-1], points, points[:2]])
    else:
        padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    p0, p1, p2, p3 = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, samples, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.vstack([curve, points[-1]])


# Outline of the mean half pelvis in lateral coordinates for a seated head and the rim at
# _RIM_TEMPLATE; `_fit` scales it and pulls it onto a hip's own rim.
_RIM_TEMPLATE = np.array([0.535, -0.132])
_LATERAL_ILIUM = np.array(
    [
        (0.66, -1.30),
        (0.60, -1.10),
        (0.54, -0.90),
        (0.475, -0.73),
        (0.440, -0.60),
        (0.430, -0.48),
        (0.438, -0.37),
        (0.460, -0.285),
        (0.497, -0.225),
        (0.528, -0.192),
        (0.541, -0.165),
    ]
)
_LATERAL_ISCHIUM = np.array(
    [
        (0.415, 0.115),
        (0.408, 0.19),
        (0.420, 0.28),
        (0.462, 0.365),
        (0.530, 0.415),
        (0.600, 0.415),
        (0.640, 0.440),
        (0.632, 0.490),
        (0.580, 0.560),
        (0.500, 0.635),
        (0.420, 0.695),
        (0.340, 0.730),
        (0.280, 0.725),
        (0.215, 0.680),
        (0.150, 0.615),
        (0.080, 0.580),
        (-0.004, 0.570),
    ]
)
_MEDIAL = np.array(
    [
        (-0.004, 0.105),
        (0.070, 0.098),
        (0.140, 0.072),
        (0.225, 0.025),
        (0.300, -0.040),
        (0.322, -0.110),
        (0.330, -0.200),
        (0.326, -0.300),
        (0.312, -0.400),
        (0.292, -0.480),
        (0.275, -0.560),
        (0.262, -0.660),
        (0.250, -0.800),
        (0.270, -1.000),
        (0.330, -1.300),
    ]
)
_OBTURATOR = np.array(
    [
        (0.292, 0.045),
        (0.312, 0.120),
        (0.316, 0.200),
        (0.312, 0.280),
        (0.270, 0.350),
        (0.200, 0.395),
        (0.130, 0.390),
        (0.085, 0.330),
        (0.092, 0.240),
        (0.140, 0.165),
        (0.210, 0.100),
    ]
)


def _fit(points: np.ndarray, hip: HipShape, anatomy: Anatomy, pull: float = 0.0) -> np.ndarray:
    """Template points (n, 2) carried to a hip; `pull` > 0 drags those near the rim along with it.

    Across, the midline stays and the cup's centre goes to the hip's own; `pull` is the reach of
    the drag in units of D.
    """

    def carry(at: np.ndarray) -> np.ndarray:
        widening = 1 + (anatomy.inlet - 1) * np.exp(-(at[:, 1] ** 2) / 0.5)
        across = hip.cup[0] / HEAD_X * widening
        return np.stack([at[:, 0] * across, at[:, 1] * anatomy.length + hip.cup[1]], axis=1)

    fitted = carry(points)
    if pull:
        offset = hip.rim - carry(_RIM_TEMPLATE[None])[0]
        near = np.exp(-np.sum((points - _RIM_TEMPLATE) ** 2, axis=1) / (2 * pull**2))
        fitted += near[:, None] * offset
    return fitted


def roof(hip: HipShape) -> np.ndarray:
    """Acetabular surface (n, 2) in lateral coordinates, from the rim point over the head to caudal.

    Concentric with the cup, whose radius leaves the joint space; the lateral part swings out to
    the rim point, the more abruptly the rounder the roof.
    """
    turn = np.linspace(hip.norberg, -62.0, 28)
    theta = np.radians(turn)
    direction = np.stack([-np.cos(theta), -np.sin(theta)], axis=1)
    head = np.array([HEAD_X, 0.0])
    # Intersection of a ray from the head centre with the cup circle.
    radius = hip.radius * (1 + hip.gap + 0.25 * hip.subluxation)
    along = direction @ (hip.cup - head)
    reach = along + np.sqrt(radius**2 - np.sum((hip.cup - head) ** 2) + along**2)
    reach = np.maximum(reach, hip.radius * (1 + 0.6 * hip.gap))
    span = 22.0 + 55.0 * hip.flatness
    blend = np.clip(1 - (hip.norberg - turn) / span, 0, 1) ** 1.5
    reach = reach + blend * (hip.rim_ratio * hip.radius - reach)
    return head + reach[:, None] * direction


def hemipelvis(
    hip: HipShape, anatomy: Anatomy, sign: float, look: Look
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outline (n, 2), obturator foramen (m, 2) and medial border (k, 2) in lateral coordinates.

    `sign` is -1 at the image's left. The outline passes through the rim point as a sharp corner,
    where the lateral border of the ilium meets the acetabular roof. A rolled pelvis shows one
    ilium broad with a narrow foramen and the other the reverse.
    """
    roll = anatomy.tilt * sign
    lateral = _LATERAL_ILIUM.copy()
    wing = np.clip(-(lateral[:, 1] + 0.25), 0, 1)
    lateral[:, 0] += 0.10 * roll * wing
    lateral[:, 0] += anatomy.flare * wing
    lateral = np.vstack([_fit(lateral, hip, anatomy, pull=look.rim_pull), hip.rim])
    caudal, medial = _LATERAL_ISCHIUM.copy(), _MEDIAL.copy()
    caudal[:, 1] += np.clip(caudal[:, 1] - 0.40, 0, None) * (anatomy.ischium - 1)
    caudal[:, 1] += anatomy.arch * np.clip(1 - caudal[:, 0] / 0.25, 0, 1)
    medial[:, 0] += 0.6 * anatomy.flare * np.clip(-(medial[:, 1] + 0.35), 0, 1)
    ischium = spline(_fit(caudal, hip, anatomy))
    medial = spline(_fit(medial, hip, anatomy))
    foramen = _OBTURATOR.copy()
    foramen[:, 0] = 0.316 + (foramen[:, 0] - 0.316) * (1 - 0.14 * roll)
    outline = np.vstack([spline(lateral), roof(hip)[1:], ischium, medial])
    return outline, spline(_fit(foramen, hip, anatomy), closed=True), medial


def acetabulum(hip: HipShape) -> tuple[np.ndarray, np.ndarray]:
    """Dorsal rim (n, 2) and the outline (m, 2) of the wall between it and the roof.

    Lateral coordinates. The rim runs from the landmark across the head and ends at the
    roof's caudal end; a loose head is covered less.
    """
    r, head = hip.radius, np.array([HEAD_X, 0.0])
    cover = np.clip(hip.dorsal_cover, -0.55, 0.4)
    upper = 0.5 * (cover + (hip.rim[0] - HEAD_X) / r) + 0.03
    way = head + r * np.array([(upper, -0.62), (cover, -0.1)])
    lower, surface = hip.cup + r * np.array([(0.45 * cover - 0.34, 0.62)]), roof(hip)
    rim = spline(np.vstack([hip.rim, way, lower, surface[-1:] + 0.003]))
    return rim, np.vstack([rim, surface[::-1]])


def femur(hip: HipShape, look: Look) -> np.ndarray:
    """Outline (n, 2) of neck, trochanters and shaft in lateral coordinates, without the head.

    The neck starts inside the head's circle; the shaft is turned by the abduction about the base
    of the neck and leaves the frame below.
    """
    r, tx, ty = hip.radius, hip.trochanter_x, hip.trochanter_y
    angle = np.radians(hip.abduction)
    axis = np.array([np.sin(angle), np.cos(angle)])
    across = np.array([np.cos(angle), -np.sin(angle)])
    root, w = np.array([tx - 0.168, 0.16]), hip.shaft_half_width

    def shaft(side: float, down: float, width: float) -> np.ndarray:
        return root + side * width * across + down * axis

    notch = 0.5 + look.notch * r
    above, below = look.neck_upper * r, look.neck_lower * r

    def toward_tip(share: float, y: float) -> tuple[float, float]:
        return notch + share * (tx - notch), ty + y

    upper = [(0.5, -0.55 * above), (0.5 + 0.50 * r, -0.76 * above)]
    upper += [(0.5 + 0.90 * r, -0.56 * above)]
    upper += [toward_tip(0.02, -0.098), toward_tip(0.16, -0.102), toward_tip(0.29, -0.138)]
    upper += [toward_tip(0.46, -0.158), toward_tip(0.66, -0.138), toward_tip(0.85, -0.085)]
    upper += [toward_tip(0.97, -0.03), toward_tip(1.0, 0.010), toward_tip(0.90, 0.048)]
    upper += [toward_tip(0.74, 0.095)]
    outer = [shaft(1, 0.14, 1.02 * w), shaft(1, 0.3, w), shaft(1, 0.55, w), shaft(1, 0.9, 1.06 * w)]
    outer += [shaft(1, 1.5, 1.3 * w)]
    inner = [shaft(-1, 1.5, 1.3 * w), shaft(-1, 0.9, 1.06 * w), shaft(-1, 0.55, w)]
    inner += [shaft(-1, 0.3, w), shaft(-1, 0.18, 1.06 * w), shaft(-1, 0.125, 1.36 * w)]
    inner += [shaft(-1, 0.085, 1.60 * w), shaft(-1, 0.04, 1.50 * w), shaft(-1, -0.02, 1.30 * w)]
    lower = [(0.5 + 0.60 * r, 0.92 * below), (0.5 + 0.28 * r, 0.80 * below), (0.5, 0.55 * below)]
    return spline(np.array(upper + outer + inner + lower))


def trochanteric_crest(hip: HipShape) -> np.ndarray:
    """Bright line (n, 2) that runs from the greater trochanter's inner side to the lesser one."""
    tx, ty = hip.trochanter_x, hip.trochanter_y
    return spline(
        np.array(
            [
                (tx - 0.150, ty - 0.145),
                (tx - 0.178, ty - 0.06),
                (tx - 0.168, ty + 0.02),
                (tx - 0.185, ty + 0.09),
                (tx - 0.225, ty + 0.15),
            ]
        )
    )
