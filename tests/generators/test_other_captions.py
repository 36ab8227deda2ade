"""Captions of other views: whose, how many, and what is predicted for them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.diffusion.schedule import add_noise, scaled_linear_alphas_cumprod, to_x0
from hpc_hipgen.generators.other_captions import NEAR_BY, OtherCaptions
from hpc_hipgen.generators.probe import MeasurementLoss, ProbeNetwork, move_to_angles
from hpc_hipgen.generators.stable_diffusion import DenoiserLoss
from hpc_hipgen.training.clock import ImageRandom

TRAINING = {"images": 8, "batch": 4, "lr": 1e-3}


def films():
    """Two films: three views of one, the second flipped; and the only view of another."""
    left = np.array([100.0, 120.0, 100.0 + NEAR_BY, 90.0])
    return SimpleNamespace(
        film=["a", "a", "a", "b"], patient_left=left, patient_right=np.full(4, 95.0)
    )


def chosen(clock, share=0.5, first=0.0):
    others = OtherCaptions(films(), share, first)
    return others.choose(clock % 4, ImageRandom(0, clock))


def test_a_share_of_the_images_gets_the_caption_of_a_near_view():
    clock = np.arange(800)
    given = chosen(clock)
    assert set(given[clock % 4 == 0]) == {0, 2} and set(given[clock % 4 == 2]) == {0, 1, 2}
    assert set(given[clock % 4 == 1]) == {1, 2} and set(given[clock % 4 == 3]) == {3}
    assert 0.4 < (given != clock % 4)[clock % 4 != 3].mean() < 0.6
    assert np.array_equal(chosen(clock, share=0.0), clock % 4)
    assert chosen(clock[97:98]) == given[97:98], "a function of the clock, not of the batch"


def test_it_begins_where_it_was_told_to():
    clock = np.arange(800)
    late, early = chosen(clock, first=400.0), chosen(clock)
    assert np.array_equal(late[:400], clock[:400] % 4) and np.array_equal(late[400:], early[400:])


@pytest.mark.parametrize(
    ("data", "section", "message"),
    [
        ({"warp": 0.0}, {"measurement_weight": 0.1}, r"other_captions: all views .* data.warp"),
        ({"warp": 5.0}, {}, r"other_captions: needs a probe; give \w+.measurement_weight"),
    ],
)
@pytest.mark.parametrize("model", ["stable_diffusion", "llcm"])
def test_what_it_needs_is_said(tiny_settings, model, data, section, message):
    tiny_settings["data"] |= {"views": 2} | data
    tiny_settings["probe"] = {"training": TRAINING}
    for name in ("stable_diffusion", "llcm"):  # so that the probe is asked by somebody
        tiny_settings[name] |= {"measurement_weight": 0.1}
    tiny_settings[model].pop("measurement_weight")
    tiny_settings[model] |= {"other_captions": 0.5} | section
    with pytest.raises(ConfigError, match=f"{model}.{message}"):
        parse_experiment(tiny_settings, "test")


def small_probe():
    torch.manual_seed(0)
    probe = ProbeNetwork(4, 8, 8)
    places = [[20.0, 64], [26, 50], [108, 64], [102, 50]]
    probe.usual.copy_(torch.tensor(places))
    return probe


def test_moved_latents_are_read_as_asked_and_nothing_nearer_is():
    probe, latents = small_probe().double(), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    degrees = [[0.03, -0.05], [torch.nan, torch.nan], [0.04, 0.01]]
    asked = probe.angles(latents).detach() + torch.tensor(degrees, dtype=torch.float64)
    moved = move_to_angles(probe, latents, asked)
    assert torch.allclose(probe.angles(moved)[::2], asked[::2], atol=1e-3)
    assert torch.equal(moved[1], latents[1])
    step = (moved - latents)[0].flatten()
    slopes = torch.autograd.functional.jacobian(lambda x: probe.angles(x)[0], latents[:1])
    across = torch.randn(len(step), dtype=torch.float64)
    slopes = slopes.reshape(2, -1)
    across -= slopes.T @ torch.linalg.solve(slopes @ slopes.T, slopes @ across)
    assert abs(step @ across) < 1e-5 * step.norm() * across.norm(), "no part that moves no angle"


def test_autocast_does_not_round_where_latents_are_moved():
    probe, latents = small_probe(), torch.randn(2, 4, 8, 8)
    asked = probe.angles(latents).detach() + 5.0
    expected = move_to_angles(probe, latents, asked) - latents
    with torch.autocast("cpu", torch.bfloat16):
        found = move_to_angles(probe, latents, asked) - latents
    assert torch.equal(found, expected)


def test_latents_move_while_operations_are_counted():
    """The FLOP counter of the benchmark hooks what enters a module; a leaf had stopped it."""
    probe, latents = small_probe(), torch.randn(2, 4, 8, 8)
    asked = probe.angles(latents).detach() + 5.0
    expected = move_to_angles(probe, latents, asked)
    with FlopCounterMode(display=False) as counter:
        found = move_to_angles(probe, latents, asked)
    assert counter.get_total_flops() > 0
    assert torch.allclose(found, expected, atol=1e-5), "some operations are taken apart, to count"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_moved_latents_are_what_is_predicted_from_the_same_noisy_ones(prediction):
    probe, alphas = small_probe(), scaled_linear_alphas_cumprod()
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t, moved = torch.tensor([100, 700]), torch.tensor([True, False])
    asked = probe.angles(latents).detach() + torch.tensor([2.0, -1.0])
    wanted = move_to_angles(probe, latents, asked)
    wanted[1] = latents[1]
    noisy = add_noise(latents, noise, t, alphas)

    class Perfect(torch.nn.Module):
        def forward(self, z, t, states):
            assert torch.equal(z, noisy)
            alpha, sigma = (a[t].sqrt()[:, None, None, None] for a in (alphas, 1 - alphas))
            epsilon = (z - alpha * wanted) / sigma
            says = epsilon if prediction == "epsilon" else alpha * epsilon - sigma * wanted
            assert torch.allclose(to_x0(says, z, t, alphas, prediction).float(), wanted, atol=1e-3)
            return SimpleNamespace(sample=says.float())

    parts = SimpleNamespace(unet=Perfect(), prediction=prediction)
    module = DenoiserLoss(parts, False, None)
    module.measured = MeasurementLoss(probe, 0.0)
    weight = torch.ones(2, 1, 8, 8)
    losses, _ = module(latents, noise, t, torch.zeros(2, 1, 1), weight, asked, moved)
    assert losses.max() < 1e-6
    losses, _ = module(latents, noise, t, torch.zeros(2, 1, 1), weight, asked)
    assert losses[0] > 1e-4
