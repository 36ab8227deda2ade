"""Weight maps around the hips."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.generators.focus import AT_A_HIP, REACH, hip_focus, hip_windows

# heads at (40, 70) and (90, 66), rims up and outwards; view of 128 px
LANDMARKS = torch.tensor([[[40.0, 70.0, 9.0, 34.0, 60.0], [90.0, 66.0, 9.0, 96.0, 56.0]]])


def test_it_peaks_between_head_and_rim_of_each_hip():
    focus = hip_focus(LANDMARKS, 128, 128, extra=4.0)
    assert focus.shape == (1, 1, 128, 128) and focus.dtype == torch.float32
    assert focus.min() >= 1 and focus.max() <= 5
    for half, x, y in ((slice(0, 64), 37, 65), (slice(64, 128), 93, 61)):
        part = focus[0, 0, :, half]
        row, column = divmod(int(part.argmax()), part.shape[1])
        assert (column + half.start, row) == (x, y)
        assert focus[0, 0, y, x] == 5
        at_reach = focus[0, 0, y, x + (-1 if x < 64 else 1) * round(9 * REACH)]
        assert at_reach == pytest.approx(1 + 4 * 0.6065, abs=0.1)
    assert focus[0, 0, 120, 64] < 1.01


def test_without_extra_weight_it_is_one():
    assert torch.equal(hip_focus(LANDMARKS, 16, 128, 0.0), torch.ones(1, 1, 16, 16))


@settings(max_examples=10, deadline=None)
@given(factor=st.sampled_from([2, 4, 8]), shift=st.floats(-9, 9))
def test_a_coarser_map_is_the_same_function(factor, shift):
    landmarks = LANDMARKS.double() + torch.tensor([shift, shift / 2, 0, shift, shift / 2])
    fine = hip_focus(landmarks, 128, 128, 4.0)
    coarse = hip_focus(landmarks, 128 // factor, 128, 4.0)
    pooled = torch.nn.functional.avg_pool2d(fine, factor)
    # A Gaussian's mean over a cell of width f is below its middle by f^2 / (12 sigma^2) at most.
    sigma = float(landmarks[..., 2].min()) * REACH
    assert torch.allclose(coarse, pooled, atol=4.0 * factor**2 / (12 * sigma**2))


def test_views_of_another_size_have_the_same_map():
    grown = LANDMARKS.clone()
    grown[..., [0, 1, 3, 4]] = (grown[..., [0, 1, 3, 4]] + 0.5) * 4 - 0.5
    grown[..., 2] *= 4
    assert torch.allclose(
        hip_focus(grown, 32, 512, 4.0), hip_focus(LANDMARKS, 32, 128, 4.0), atol=1e-5
    )


def test_every_image_has_its_own():
    both = torch.cat([LANDMARKS, LANDMARKS + torch.tensor([5.0, 5.0, 0.0, 5.0, 5.0])])
    focus = hip_focus(both, 64, 128, 4.0)
    assert torch.equal(focus[:1], hip_focus(LANDMARKS, 64, 128, 4.0))
    assert not torch.equal(focus[0], focus[1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), size=st.sampled_from([16, 48, 64, 128]), shift=st.floats(-60, 60))
def test_windows_lie_within_the_view_and_most_hold_a_hip(seed, size, shift):
    count = 400
    landmarks = (LANDMARKS + torch.tensor([shift, 0, 0, shift, 0])).expand(count, -1, -1)
    draws = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    corners = hip_windows(landmarks, size, 128, draws)
    assert corners.shape == (count, 2) and corners.dtype == torch.int64
    assert corners.min() >= 0 and corners.max() <= 128 - size
    middles = (landmarks[..., :2] + landmarks[..., 3:]) / 2
    inside = (middles >= corners[:, None]) & (middles < corners[:, None] + size)
    visible = ((middles >= 0) & (middles < 128)).all(-1)
    if visible.all():
        assert inside.all(-1).any(-1).float().mean() > AT_A_HIP - 0.1


def test_windows_reach_both_hips_and_every_corner():
    draws = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))
    corners = hip_windows(LANDMARKS.expand(4000, -1, -1), 32, 128, draws)
    # the middles of the hips are at x = 37 and 93
    left, right = [float(((corners[:, 0] + 16 - x).abs() < 12).float().mean()) for x in (37, 93)]
    assert left == pytest.approx(right, abs=0.05) and left > 0.3
    assert corners.min() == 0 and corners.max() == 96
    assert not hip_windows(LANDMARKS.expand(4000, -1, -1), 128, 128, draws).any()
