"""What the drawing of a hip is allowed to vary in: `Look`, whose defaults are the phantom films.

Real hips differ from a phantom's most in what lies on the head: how far the wall of the acetabulum
covers it, whether its edge is seen against the neck, how wide the neck is, whether a growth plate
crosses it. A network that is to measure real films must not lean on any of these, so its training
scenes (`scenes.py`) draw them at random; the films of an experiment keep the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Look:
    """Shape of the neck and gains of what is drawn; gains are factors on the phantom's own."""

    notch: float = 1.18
    """Where the neck ends at the greater trochanter, in head radii lateral of the head centre."""
    neck_upper: float = 1.0
    neck_lower: float = 1.0
    """Factors on how far the neck's borders lie from its axis, at the head."""
    neck_gain: float = 1.0
    head_gain: float = 1.0
    head_shell: float = 1.0
    """Of the thin cortex that draws the head's edge."""
    femur_cortex: float = 1.0
    femur_spongy: float = 1.0
    pelvis_cortex: float = 1.0
    pelvis_spongy: float = 1.0
    merge: float = 0.0
    """0: the head's whole edge is seen; 1: towards the neck head and neck are one bone."""
    squash: float = 0.0
    """Flattening of the head: its axes are 1 - squash and 1 + squash of the radius."""
    squash_turn: float = 0.0
    """Direction of the short axis, radians from the lateral one."""
    physis: float = 0.0
    """Grey levels of a growth plate or its scar across the head, either sign."""
    physis_place: float = 0.3
    """Where that crosses the neck's axis, in head radii lateral of the centre."""
    pelvis_gain: float = 1.0
    wall_gain: float = 1.0
    """Of the acetabulum's wall, through which the head is seen."""
    wall_fade: float = 0.0
    """How much of the wall is lost caudally: 0 none, 1 all."""
    joint_clear: float = 0.75
    """How little of that wall crosses the cranial joint space: 1 none, 0 all."""
    roof_gain: float = 1.0
    dorsal_gain: float = 1.0
    medial_gain: float = 1.0
    crest_gain: float = 1.0
    """Of the lines: subchondral roof, dorsal rim, medial borders, trochanteric crest."""
    rim_pull: float = 0.14
    """Reach in D of the drag of the ilium's outline towards the rim point: a long or short lip."""


PHANTOM_LOOK = Look()
"""The look of the phantom films."""


def sample_look(rng: np.random.Generator) -> Look:
    """A look from a population far wider than any hospital's films."""

    def gain(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    plain = rng.random() < 0.4
    return Look(
        notch=float(rng.uniform(1.1, 2.1)),
        neck_upper=float(rng.uniform(0.75, 1.3)),
        neck_lower=float(rng.uniform(0.65, 1.15)),
        neck_gain=gain(0.6, 2.2),
        head_gain=gain(0.45, 1.6),
        head_shell=float(rng.uniform(0.05, 1.2)),
        femur_cortex=float(rng.uniform(0.15, 1.15)),
        femur_spongy=gain(0.7, 6.0),
        pelvis_cortex=float(rng.uniform(0.3, 1.2)),
        pelvis_spongy=gain(0.5, 1.8),
        merge=float(np.clip(rng.uniform(-0.3, 1.3), 0, 1)),
        squash=float(rng.uniform(0, 0.04) if rng.random() < 0.7 else rng.uniform(0.04, 0.14)),
        squash_turn=float(rng.uniform(0, np.pi)),
        physis=0.0 if plain else float(rng.uniform(-14, 26)),
        physis_place=float(rng.uniform(-0.2, 0.75)),
        pelvis_gain=gain(0.6, 1.5),
        wall_gain=gain(0.3, 2.6),
        wall_fade=float(rng.uniform(0.2, 1.0)),
        joint_clear=float(rng.uniform(0.0, 0.9)),
        roof_gain=gain(0.25, 3.0),
        dorsal_gain=gain(0.3, 5.0),
        medial_gain=gain(0.3, 2.0),
        crest_gain=gain(0.3, 2.0),
        rim_pull=float(rng.uniform(0.09, 0.22)),
    )
