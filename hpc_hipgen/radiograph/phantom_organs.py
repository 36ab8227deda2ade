"""The organs of a phantom film: soft tissue, spine, pelvis and femora, added to a `Canvas`.

Gains are grey levels above the soft tissue of a well exposed film, where lateral thigh is at 56,
pelvic canal 68, obturator foramen 75, pubis 93, vertebra 101, medulla 105, ilium 131, shaft cortex
137, acetabular roof 138, head 145 and medial iliac cortex 155 of 255.
"""

from __future__ import annotations

import numpy as np

from hpc_hipgen.radiograph.phantom_anatomy import (
    HEAD_X,
    Anatomy,
    HipShape,
    acetabulum,
    femur,
    hemipelvis,
    roof,
    spline,
    trochanteric_crest,
)
from hpc_hipgen.radiograph.phantom_look import Look
from hpc_hipgen.radiograph.phantom_render import (
    Canvas,
    chord,
    draw_bone,
    mirrored,
    shell,
    smoothstep,
    textures,
)

Textures = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------ soft tissue


def _blob(
    canvas: Canvas,
    centre: tuple[float, float],
    axes: tuple[float, float],
    turn: float,
    soft: float,
    rough: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Mask (H, W) of an ellipse, `turn` in degrees, with an edge `soft` (share of its axes)."""
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    x, y = canvas.x - np.float32(centre[0]), canvas.y - np.float32(centre[1])
    u, v = (cos * x + sin * y) / axes[0], (cos * y - sin * x) / axes[1]
    return smoothstep(1 - np.sqrt(u * u + v * v) + rough, -soft, soft)


def _flank(canvas: Canvas, rng: np.random.Generator, sign: float, texture: Textures) -> np.ndarray:
    """Muscles and fat of one side (H, W): gluteals, thigh and the fat planes between them."""
    lumpy = 0.05 * texture["cloud"]

    def draw(x: float, y: float, a: float, b: float, turn: float, soft: float) -> np.ndarray:
        x, y = x + rng.normal(0, 0.04), y + rng.normal(0, 0.05)
        turn = sign * (turn + rng.normal(0, 6))
        return _blob(canvas, (sign * x, y), (a, b), turn, soft, lumpy)

    tissue = rng.uniform(5, 20) * draw(0.72, -0.50, 0.26, 0.48, 8, rng.uniform(0.04, 0.16))
    tissue += rng.uniform(2, 13) * draw(0.56, -0.42, 0.14, 0.42, -12, rng.uniform(0.08, 0.25))
    tissue += rng.uniform(4, 17) * draw(0.78, 0.75, 0.36, 0.75, -6, rng.uniform(0.04, 0.2))
    tissue += rng.uniform(3, 13) * draw(0.60, 0.80, 0.22, 0.60, 4, rng.uniform(0.05, 0.2))
    tissue -= rng.uniform(3, 14) * draw(0.93, 0.05, 0.05, 0.45, -4, 0.5)
    tissue -= rng.uniform(2, 10) * draw(0.50, 0.30, 0.07, 0.14, 10, 0.5)
    for _ in range(rng.integers(0, 4)):  # skin folds: a thin line with a step of thickness
        x, y, turn = rng.uniform(0.62, 1.05), rng.uniform(-0.7, 0.7), rng.uniform(-40, 40)
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        across = cos * (sign * canvas.x - x) + sin * (canvas.y - y) + 0.02 * texture["cloud"]
        along = cos * (canvas.y - y) - sin * (sign * canvas.x - x)
        near = np.exp(-((along / rng.uniform(0.2, 0.5)) ** 2)) * smoothstep(
            sign * canvas.x, 0.45, 0.6
        )
        step = smoothstep(across, -0.01, 0.01) * np.exp(-np.clip(across, 0, None) / 0.15)
        tissue += rng.uniform(-9, 9) * step * near
    return tissue


def _skin(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Thickness 0..1 (H, W) of the body: trunk above, two thighs below, air beside them."""
    y = canvas.y
    mask = np.zeros_like(y)
    for sign in (-1.0, 1.0):
        trunk = rng.uniform(0.80, 1.22)
        thigh = max(0.98, trunk) + rng.uniform(0.0, 0.22)
        fold = rng.uniform(-0.35, 0.0)
        edge = trunk + (thigh - trunk) * smoothstep(y, fold - 0.30, fold + 0.30)
        edge = edge + 0.015 * np.sin(5 * y + rng.uniform(0, 6.28))
        depth = edge - sign * canvas.x
        # A rounded flank: thickness grows like a chord from the skin inwards.
        side = chord(np.clip(depth, 0, 0.36), 0.36) / 0.72
        mask += np.where(sign * canvas.x >= 0, side, 0)
    return mask


def _between_thighs(canvas: Canvas, rng: np.random.Generator, texture: Textures) -> np.ndarray:
    """Perineum, tail root and the inner outlines of the thighs (H, W)."""
    y = canvas.y
    half = rng.uniform(0.16, 0.30) - rng.uniform(-0.02, 0.08) * (y - 0.6)
    soft = rng.uniform(0.006, 0.02)
    start = smoothstep(y, rng.uniform(0.30, 0.45), rng.uniform(0.55, 0.75))
    x = canvas.x - rng.normal(0, 0.02) + 0.012 * texture["cloud"]
    perineum = rng.uniform(5, 26) * smoothstep(half - np.abs(x), -soft, soft) * start
    groove = np.exp(-0.5 * ((np.abs(x) - half - 0.015) / 0.014) ** 2) * start
    tail = rng.uniform(0.075, 0.11)
    tail = rng.uniform(2, 8) * smoothstep(tail - np.abs(x), -0.015, 0.015) * smoothstep(y, 0.3, 0.6)
    return perineum - rng.uniform(0, 12) * groove + tail


def _bowel(canvas: Canvas, rng: np.random.Generator, texture: Textures) -> np.ndarray:
    """Rectum (H, W): a column beside the spine, empty, with faeces or with gas."""
    kind = str(rng.choice(["empty", "faeces", "gas", "mixed"], p=[0.35, 0.30, 0.2, 0.15]))
    offset, half = rng.normal(0, 0.05), rng.uniform(0.09, 0.17)
    if kind == "empty":
        half = rng.uniform(0.05, 0.09)
    low = rng.uniform(-0.05, 0.45)
    x = canvas.x - offset - 0.03 * np.sin(3 * canvas.y + rng.uniform(0, 6.28))
    x = x + 0.012 * texture["cloud"]
    soft = rng.uniform(0.008, 0.03)
    column = smoothstep(half - np.abs(x), -soft, soft) * smoothstep(canvas.y, low + 0.12, low - 0.1)
    level = rng.uniform(3, 10) + 0 * texture["coarse"]
    if kind in ("faeces", "mixed"):
        level = level + rng.uniform(3, 8) * texture["coarse"] + 2.5 * texture["fine"]
    if kind in ("gas", "mixed"):
        field = texture["lump"]
        level = level - rng.uniform(12, 30) * smoothstep(field, 0.3, 0.9)
    return column * level


def draw_soft_tissue(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Add body, muscles, bowel and what lies between the thighs; air outside.

    Flesh has no sharp edges: it is drawn at half the resolution and enlarged.
    """
    small = canvas.halved()
    texture = textures(rng, small)
    x = np.abs(small.x)
    level = 64 + 6 * smoothstep(x, 0.75, 0.30) + rng.uniform(-6, 6) * smoothstep(small.y, 0.8, -0.8)
    tissue = level + rng.uniform(1.5, 4.5) * texture["cloud"] + 2.2 * texture["lump"]
    tissue += rng.uniform(0.4, 1.6) * texture["coarse"]
    tissue += rng.uniform(0.8, 2.4) * texture["streak"] * smoothstep(x, 0.35, 0.55)
    inlet = _blob(small, (0.0, -0.26), (0.33 * anatomy.inlet, 0.40), 0.0, 0.08)
    tissue -= rng.uniform(2, 15) * inlet
    for sign in (-1.0, 1.0):
        tissue += _flank(small, rng, sign, texture)
    tissue += _between_thighs(small, rng, texture) + _bowel(small, rng, texture)
    canvas.enlarge(_skin(small, rng) * np.maximum(tissue, 6))


# ------------------------------------------------------------------------------------------ spine


def vertebra(centre: np.ndarray, width: float, height: float, angle: float) -> np.ndarray:
    """Outline (n, 2) of a vertebral body with flared ends; `angle` in radians from the y axis."""
    side = [(0.50, -0.5), (0.47, -0.36), (0.425, -0.1), (0.42, 0.12), (0.45, 0.38), (0.47, 0.5)]
    half = np.array([*side, (0.0, 0.46)])
    points = np.vstack([half, half[-2::-1] * [-1, 1], [(0.0, -0.46)]]) * [width, height]
    cos, sin = np.cos(angle), np.sin(angle)
    return spline(points @ np.array([[cos, -sin], [sin, cos]]) + centre, closed=True, samples=4)


def spine(anatomy: Anatomy) -> list[tuple[np.ndarray, float, float, float]]:
    """Centre (2,), width, height (D) and angle (radians) of the caudal vertebrae from -0.2 on."""
    bodies = []
    point = np.array([anatomy.spine_shift, -0.22 * anatomy.length])
    for i in range(10):
        height, width = (0.142 + 0.004 * i, 0.150 - 0.0055 * i)
        heading = np.radians(0.30 * anatomy.tail_angle * i) + 0.5 * anatomy.spine_bend
        along = np.array([np.sin(heading), np.cos(heading)])
        bodies.append((point + 0.5 * height * along, width, height - 0.024, -heading))
        point = point + height * along
    return bodies


def draw_spine(canvas: Canvas, anatomy: Anatomy, texture: Textures) -> None:
    """Add the last lumbar vertebra, the sacrum with its wings, and the caudal vertebrae."""
    place = np.array([1.0, anatomy.length])
    shift = np.array([anatomy.spine_shift, 0.0])

    def side_and_mirror(half: np.ndarray) -> np.ndarray:
        return np.vstack([half, half[::-1] * [-1, 1]]) * place + shift

    wings = [(0.075, -0.20), (0.10, -0.33), (0.125, -0.46), (0.19, -0.56), (0.30, -0.62)]
    wings += [(0.33, -0.72), (0.24, -0.78), (0.12, -0.76)]
    found = shell(
        canvas, spline(side_and_mirror(np.array(wings)), closed=True), texture["coarse"],
        radius=0.07, cortex=0.012, cortex_gain=58, spongy_gain=33, grain=0.18,
    )  # fmt: skip
    if found is not None:
        where, bone = found  # the wings thin out under the ilium
        canvas.image[where] += bone * (1 - 0.7 * smoothstep(np.abs(canvas.x[where]), 0.17, 0.32))
    lumbar = [
        (0.13, -0.80),
        (0.14, -0.90),
        (0.28, -1.0),
        (0.30, -1.06),
        (0.13, -1.02),
        (0.15, -1.1),
    ]
    draw_bone(
        canvas, spline(side_and_mirror(np.array(lumbar)), closed=True), texture["coarse"],
        radius=0.07, cortex=0.012, cortex_gain=56, spongy_gain=36, grain=0.10,
    )  # fmt: skip
    for x in (-0.065, 0.065):
        for y, gain in ((-0.55, -11), (-0.42, -11), (-0.31, -8)):
            spot = np.array([(x * 1.1, y - 0.015), (x, y + 0.015)]) * place + shift
            canvas.stroke(spot, 0.020, gain)
    ridge = np.array([(0.0, -0.74), (0.006, -0.6), (-0.004, -0.45), (0.0, -0.27)]) * place + shift
    canvas.stroke(ridge, 0.009, 15, taper=(0.2, 0.4))
    for y in (-0.49, -0.36):
        plate = np.array([(-0.08, y), (0.0, y + 0.008), (0.08, y)]) * place + shift
        canvas.stroke(plate, 0.007, 9)
    for x in (-1.0, 1.0):  # the sacroiliac joints
        joint = (
            np.array([(x * 0.262, -0.60), (x * 0.285, -0.70), (x * 0.25, -0.82)]) * place + shift
        )
        canvas.stroke(joint, 0.008, 16, taper=(0.2, 0.3))
    for i, (centre, width, height, angle) in enumerate(spine(anatomy)):
        draw_bone(
            canvas, vertebra(centre, width, height, angle), texture["fine"], radius=0.05,
            cortex=0.009, cortex_gain=46, spongy_gain=15, grain=0.2,
        )  # fmt: skip
        if i < 3:  # transverse processes
            reach = 0.13 - 0.02 * i
            arms = np.array([(-reach, 0.03), (-0.05, -0.02), (0.05, -0.02), (reach, 0.03)]) + centre
            canvas.stroke(arms, 0.020, 12, taper=(0.2, 0.2))


# ------------------------------------------------------------------------------- pelvis and femur


def _head(
    canvas: Canvas, hip: HipShape, sign: float, where: tuple, texture: Textures, look: Look
) -> np.ndarray:
    """Femoral head in a window: a thin shell of spongy bone, exactly the landmark's circle."""
    x, y = canvas.x[where] - sign * HEAD_X, canvas.y[where]
    distance = np.hypot(x, y)
    if look.squash:
        along = (x * sign * np.cos(look.squash_turn) + y * np.sin(look.squash_turn)) / hip.radius
        short = np.square(along) / np.maximum(np.square(distance / hip.radius), 1e-6)
        distance = distance * (1 + look.squash * (2 * short - 1))
    depth = hip.radius - distance
    pixel = 1 / canvas.scale
    coverage = smoothstep(depth, -0.75 * pixel, 0.75 * pixel)
    whole = chord(np.maximum(depth, 0), hip.radius)
    hollow = chord(np.maximum(depth - 0.011, 0), hip.radius - 0.011)
    spongy = 41 * hollow * (1 + 0.09 * texture["fine"][where])
    shell_gain = 100 * look.head_shell
    ball = 7 + (spongy + shell_gain * (whole - hollow)) / (2 * hip.radius)
    return look.head_gain * coverage * ball


def _femur(canvas: Canvas, hip: HipShape, sign: float, texture: Textures, look: Look) -> None:
    """Add head, neck, trochanters and shaft; where head and neck overlap they are one bone."""
    outline, reach = mirrored(femur(hip, look), sign), 1.05 * hip.radius
    corners = np.array([[sign * HEAD_X - reach, -reach], [sign * HEAD_X + reach, reach]])
    # Cortex is thin on neck and trochanters and thick along the shaft.
    cortex = 0.012 + 0.014 * smoothstep(canvas.y, 0.08, 0.36) * (1 + 0.12 * texture["cloud"])
    found = shell(
        canvas, outline, texture["fine"], radius=hip.shaft_half_width, cortex=cortex,
        cortex_gain=92 * look.femur_cortex, spongy_gain=8 * look.femur_spongy, grain=0.14,
        where=canvas.window(np.vstack([outline, corners]), 0.0),
    )  # fmt: skip
    if found is None:
        return
    where, bone = found
    x, y = canvas.x[where], canvas.y[where]
    from_head = np.hypot(x - sign * HEAD_X, y)
    beyond = smoothstep(from_head, 0.35 * hip.radius, 1.0 * hip.radius)
    toward_neck = smoothstep((sign * x - HEAD_X) + 0.5 * y, -0.1 * hip.radius, 0.9 * hip.radius)
    merged = look.merge * toward_neck
    beyond = beyond + merged * (1 - beyond)
    bone = bone * (1 + 0.25 * smoothstep(y, 0.34, 0.10)) * beyond
    bone = bone * (1 + (look.neck_gain - 1) * smoothstep(y, 0.45, 0.2))
    fossa = np.hypot(sign * x - hip.trochanter_x + 0.185, y - hip.trochanter_y + 0.02)
    bone = bone * (1 - 0.18 * np.exp(-0.5 * (fossa / 0.035) ** 2))
    ball = _head(canvas, hip, sign, where, texture, look) * (1 - merged)
    canvas.image[where] += bone + ball - 0.80 * np.minimum(bone, ball)
    canvas.stroke(
        mirrored(trochanteric_crest(hip), sign), 0.009, 20 * look.crest_gain, taper=(0.15, 0.3)
    )
    if look.physis:
        canvas.stroke(mirrored(_physis(hip, look), sign), 0.007, look.physis, taper=(0.15, 0.15))
    if hip.osteophyte > 0.1:  # new bone around the neck
        r = hip.radius
        collar = np.array(
            [(0.5 + 0.95 * r, -0.62 * r), (0.5 + 1.12 * r, 0.0), (0.5 + 0.75 * r, 0.85 * r)]
        )
        canvas.stroke(mirrored(spline(collar), sign), 0.010, 22 * hip.osteophyte)


def _physis(hip: HipShape, look: Look) -> np.ndarray:
    """Growth plate of the head (n, 2) in lateral coordinates: an arc across the neck's axis."""
    across = np.linspace(-0.85, 0.85, 9)
    along = look.physis_place - 0.25 * np.square(across)
    axis, side = np.array([0.89, 0.45]), np.array([0.45, -0.89])
    points = along[:, None] * axis + across[:, None] * side
    return np.array([HEAD_X, 0.0]) + hip.radius * points


def _innominate(
    canvas: Canvas,
    outline: np.ndarray,
    foramen: np.ndarray,
    sign: float,
    texture: Textures,
    look: Look,
) -> None:
    """Add ilium, ischium and pubis of one side; the outlines are in film coordinates."""
    grain = 0.8 * texture["fine"] + 0.6 * texture["coarse"]
    cortex = 0.0115 * (1 + 0.14 * texture["lump"] + 0.10 * texture["coarse"])
    found = shell(
        canvas, outline, grain, radius=0.050, cortex=cortex, cortex_gain=82 * look.pelvis_cortex,
        spongy_gain=46 * look.pelvis_spongy, grain=0.11, holes=(foramen,),
    )  # fmt: skip
    if found is None:
        return
    where, bone = found
    x, y = sign * canvas.x[where], canvas.y[where]
    # The flat bones around the foramen are thinner than the ilium and the ischium's body, and the
    # iliac wing is seen obliquely: thick along its medial border only.
    body = (0.18 + 0.30 * smoothstep(x, 0.24, 0.34)) * smoothstep(y, 0.46, 0.22)
    thick = 0.40 + body + 0.17 * smoothstep(y, 0.12, -0.1)
    thick += 0.10 * smoothstep(x, 0.45, 0.62) * smoothstep(y, 0.2, 0.4)
    wing = smoothstep(y, -0.40, -0.75) * smoothstep(x, 0.35, 0.46)
    thick = look.pelvis_gain * np.clip(thick, 0, 1)
    canvas.image[where] += bone * thick * (1 - 0.35 * wing)


def _acetabular_wall(
    canvas: Canvas, hip: HipShape, outline: np.ndarray, sign: float, texture: Textures, look: Look
) -> None:
    """Add the bone that the head is seen through: thin at the dorsal rim, thick medially."""
    found = shell(
        canvas, mirrored(outline, sign), texture["fine"], radius=0.03, cortex=0.006,
        cortex_gain=30, spongy_gain=24, grain=0.06,
    )  # fmt: skip
    if found is None:
        return
    where, bone = found
    x, y = sign * canvas.x[where] - HEAD_X, canvas.y[where]
    medial = smoothstep(-x / hip.radius, 0.3, 1.15)
    # The joint space itself, between roof and head, is crossed by hardly any bone.
    cranial = smoothstep(-y / hip.radius, 0.55, 0.95)
    bone = look.wall_gain * bone * (1 - look.wall_fade * smoothstep(y / hip.radius, 0.1, 0.9))
    canvas.image[where] += bone * (0.62 + 1.0 * medial) * (1 - look.joint_clear * cranial)


def draw_half(
    canvas: Canvas,
    hip: HipShape,
    anatomy: Anatomy,
    sign: float,
    texture: Textures,
    look: Look,
) -> None:
    """Add one half of the pelvis and its femur; `sign` is -1 at the image's left."""
    outline, foramen, medial = hemipelvis(hip, anatomy, sign, look)
    _innominate(canvas, mirrored(outline, sign), mirrored(foramen, sign), sign, texture, look)
    surface, (rim, wall) = roof(hip), acetabulum(hip)
    _acetabular_wall(canvas, hip, wall, sign, texture, look)
    _femur(canvas, hip, sign, texture, look)
    subchondral = (surface - [HEAD_X, 0.0]) * (1 + 0.010 / hip.radius) + [HEAD_X, 0.0]
    roof_line, cup_line = subchondral[: len(surface) * 3 // 5], subchondral[len(surface) // 3 :]
    canvas.stroke(mirrored(roof_line, sign), 0.010, 24 * look.roof_gain, taper=(0.0, 0.45))
    canvas.stroke(mirrored(cup_line, sign), 0.008, 13 * look.roof_gain, taper=(0.3, 0.2))
    canvas.stroke(mirrored(rim, sign), 0.006, 10 * look.dorsal_gain, taper=(0.0, 0.2))
    if hip.osteophyte > 0.1:
        canvas.stroke(mirrored(surface[:4], sign), 0.012, 18 * hip.osteophyte)
    inner = medial[(medial[:, 1] < 0.02) & (medial[:, 1] > -1.0)]
    canvas.stroke(
        mirrored(inner + np.array([0.016, 0.0]), sign),
        0.013,
        32 * look.medial_gain,
        taper=(0.2, 0.3),
    )
    edge = foramen[(foramen[:, 0] > 0.27) & (foramen[:, 1] < 0.33)]
    edge = edge[np.argsort(edge[:, 1])]
    line = np.vstack(
        [inner[inner[:, 1] > -0.16][::-1][-1:] + np.array([0.02, 0]), edge + np.array([0.012, 0.0])]
    )
    canvas.stroke(mirrored(line, sign), 0.010, 26 * look.medial_gain, taper=(0.0, 0.4))
