"""Captions: what a generator is asked for, in words.

A caption names both Norberg angles of a ventrodorsal (VD) film and one of four prompt classes:

    ventrodorsal radiograph of a dog's hips, norberg angle left 102.5 degrees, right 98.0 degrees,
    plain view of the hip area with both joints clear

**Side convention.** "left" and "right" in a caption are the *patient's* left and right. On a VD
film the dog lies on its back and faces the reader, so the patient's left hip is drawn at the
image's **right**, as two people face each other across a table. Landmark files and `Landmarks`
store `image_left` and `image_right`, which anybody can check by looking; the patient's sides are
derived from them by `geometry.Angles` and `geometry.swap_sides`. (Annotation tools differ: one
prints "left" for the hip at the image's left. That is the patient's right.) Where a prompt class
speaks of a place on the film ("upper right corner") the words "of the image" go with it.

Angles are rounded to half a degree and always have one decimal, so that "left 102.5 degrees" is an
exact, searchable part of the text that a tokenizer can replace by one measurement token.
"""

import re

from hpc_hipgen.radiograph.geometry import PATIENT_SIDES, Angles

ANGLE_MIN, ANGLE_MAX, ANGLE_STEP = 55.0, 125.0, 0.5
"""Range and step in degrees of the angles that a caption can ask for; breeds reach 55 to 124."""

PROMPT_CLASSES: dict[int, str] = {
    1: "close-up with a date in the upper right corner of the image,"
    " the joint at the right of the image higher",
    2: "detailed hip region with prominent bone structure and a date, black background",
    3: "centred view with a date and a white letter l at the right of the image, dark background",
    4: "plain view of the hip area with both joints clear",
}
"""The four prompt classes of the source paper's DALL-E evaluation, in our own words."""

MIRROR_CLASSES: frozenset[int] = frozenset({4})
"""Classes whose mirrored films are still true: no phrase that names a side, no date, no marker.

A real film can hold a letter all the same; see `film_set.Loaded`.
"""

DATE_CLASSES: frozenset[int] = frozenset({1, 2, 3})
"""Classes whose caption names a date on the film."""

_PREFIX = "ventrodorsal radiograph of a dog's hips, norberg angle"
_SIDE = {side: re.compile(rf"\b{side} (\d+(?:\.\d+)?) degrees\b") for side in PATIENT_SIDES}


def caption(angles: Angles, prompt_class: int) -> str:
    """Describe one film in lower case.

    Args:
        angles: both Norberg angles in degrees; rounded here to half a degree.
        prompt_class: a key of `PROMPT_CLASSES`.

    Raises:
        ValueError: an unknown class, or an angle outside `ANGLE_MIN`..`ANGLE_MAX`.
    """
    if prompt_class not in PROMPT_CLASSES:
        known = ", ".join(map(str, PROMPT_CLASSES))
        raise ValueError(f"prompt class {prompt_class!r} is not one of {known}")
    rounded = angles.round_half()
    for side, value in (("left", rounded.patient_left), ("right", rounded.patient_right)):
        if not ANGLE_MIN <= value <= ANGLE_MAX:  # also catches NaN
            raise ValueError(
                f"Norberg angle of the patient's {side} is {value} degrees, outside the range"
                f" {ANGLE_MIN} to {ANGLE_MAX} that a caption can name"
            )
    return (
        f"{_PREFIX} left {rounded.patient_left:.1f} degrees,"
        f" right {rounded.patient_right:.1f} degrees, {PROMPT_CLASSES[prompt_class]}"
    )


def parse_caption(text: str) -> Angles | None:
    """Return the angles that a prompt asks for, or None when it does not name both."""
    left, right = (_SIDE[side].search(text.lower()) for side in PATIENT_SIDES)
    if left is None or right is None:
        return None
    return Angles.of_patient(left=float(left[1]), right=float(right[1]))
