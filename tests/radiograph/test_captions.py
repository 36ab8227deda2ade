"""Captions: exact wording, patient sides, range, and the way back."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.radiograph.captions import (
    ANGLE_MAX,
    ANGLE_MIN,
    ANGLE_STEP,
    PROMPT_CLASSES,
    caption,
    parse_caption,
)
from hpc_hipgen.radiograph.geometry import Angles

HALVES = st.integers(round(ANGLE_MIN / ANGLE_STEP), round(ANGLE_MAX / ANGLE_STEP)).map(
    lambda n: n * ANGLE_STEP
)


def test_left_is_the_patients_left_which_is_the_images_right():
    text = caption(Angles(image_left=98.0, image_right=102.5), 4)
    assert text == (
        "ventrodorsal radiograph of a dog's hips, norberg angle left 102.5 degrees,"
        " right 98.0 degrees, plain view of the hip area with both joints clear"
    )


@settings(max_examples=30, deadline=None)
@given(HALVES, HALVES, st.sampled_from(sorted(PROMPT_CLASSES)))
def test_what_is_written_is_read_back(left, right, prompt_class):
    angles = Angles(image_left=left, image_right=right)
    text = caption(angles, prompt_class)
    assert text == text.lower()
    assert text.endswith(PROMPT_CLASSES[prompt_class])
    assert parse_caption(text) == angles


def test_angles_are_rounded_to_half_a_degree():
    assert "left 100.5 degrees, right 99.0 degrees" in caption(Angles(99.2, 100.3), 1)


@pytest.mark.parametrize("angle", [54.7, 125.3, math.nan])
def test_an_angle_outside_the_range_is_refused(angle):
    with pytest.raises(ValueError, match="patient's right"):
        caption(Angles(image_left=angle, image_right=100.0), 1)


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="prompt class 5 is not one of 1, 2, 3, 4"):
        caption(Angles(100.0, 100.0), 5)


def test_a_free_prompt_may_name_the_sides_in_any_order():
    assert parse_caption("Hips, right 98 degrees and Left 102 degrees") == Angles(98.0, 102.0)


@pytest.mark.parametrize("text", ["", "a hip", "left 100 degrees"])
def test_a_text_without_both_angles_parses_to_none(text):
    assert parse_caption(text) is None
