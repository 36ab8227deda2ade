import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.diffusion import consistency as cm
from hpc_hipgen.diffusion.schedule import (
    PREDICTION_TYPES,
    add_noise,
    scaled_linear_alphas_cumprod,
    training_target,
)

ALPHAS = scaled_linear_alphas_cumprod()


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_boundary_scalings_are_those_of_the_lcm_scheduler():
    scheduler = LCMScheduler()
    for t in (0, 1, 19, 500, 999):
        ours = cm.boundary_scalings(torch.tensor(t))
        reference = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert [float(x) for x in ours] == pytest.approx(reference, rel=1e-14, abs=0)
    assert [float(x) for x in cm.boundary_scalings(torch.tensor(0))] == [1.0, 0.0]


def test_the_consistency_function_is_what_the_lcm_scheduler_denoises_to():
    z, output = normal(2, 3, 4, 8, 8)
    for prediction in PREDICTION_TYPES:
        scheduler = LCMScheduler(prediction_type=prediction)
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            scheduler._step_index = None
            denoised = scheduler.step(output, t, z, torch.Generator()).denoised
            ours = cm.consistency_function(output, z, t, ALPHAS, prediction)
            torch.testing.assert_close(ours, denoised, rtol=1e-4, atol=1e-4)


def test_the_consistency_function_at_the_boundary_and_on_true_noise():
    x0, noise = normal(2, 3, 4, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 20, 999])
    z = add_noise(x0, noise, t, ALPHAS)
    for prediction in PREDICTION_TYPES:
        target = training_target(x0, noise, t, ALPHAS, prediction)
        f = cm.consistency_function(target, z, t, ALPHAS, prediction)
        assert torch.equal(f[0], z[0])
        torch.testing.assert_close(f[1:], x0[1:], rtol=1e-4, atol=1e-4)
    half = cm.consistency_function(noise.bfloat16(), z.bfloat16(), t, ALPHAS, "epsilon")
    assert half.dtype == torch.float32


def test_pseudo_huber_is_its_formula_quadratic_then_linear():
    a, b = normal(2, 5, 4, 3, 3, dtype=torch.float64)
    expected = ((a - b) ** 2 + 0.01).sqrt().sub(0.1).mean()
    torch.testing.assert_close(cm.pseudo_huber(a, b, c=0.1), expected)
    zero = torch.zeros(1, 1)
    assert float(cm.pseudo_huber(zero + 1e-6, zero, c=1e-3)) == pytest.approx(5e-10, rel=1e-4)
    assert float(cm.pseudo_huber(zero + 7, zero, c=1e-3)) == pytest.approx(6.999, rel=1e-6)
    assert cm.pseudo_huber(a.bfloat16(), b.bfloat16(), c=1e-3).dtype == torch.float32
    with pytest.raises(ValueError, match="c must be positive"):
        cm.pseudo_huber(a, b, c=0)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100.0), seed=st.integers(0, 99))
def test_weight_maps_are_normalised_within_each_sample(scale, seed):
    a, b = normal(2, 3, 4, 5, 5, seed=seed, dtype=torch.float64)
    plain = cm.pseudo_huber(a, b, c=1e-3)
    ones = torch.full((3, 1, 5, 5), scale)
    torch.testing.assert_close(cm.pseudo_huber(a, b, c=1e-3, weight=ones), plain)
    weight = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    losses = cm.pseudo_huber(a, b, c=1e-3, weight=weight, per_sample=True)
    assert losses.shape == (3,)
    torch.testing.assert_close(cm.pseudo_huber(a, b, c=1e-3, weight=weight), losses.mean())
    for i in range(3):
        one = slice(i, i + 1)
        alone = cm.pseudo_huber(a[one], b[one], c=1e-3, weight=scale * weight[one])
        torch.testing.assert_close(alone, losses[i])


def test_a_weight_map_looks_only_where_it_is_not_zero():
    a, b = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    b[..., 0, 0], b[..., 1, 1] = 3.0, 50.0
    weight = torch.zeros(1, 1, 2, 2)
    weight[..., 0, 0] = 1.0
    assert float(cm.pseudo_huber(a, b, c=1e-6, weight=weight)) == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize("dim", [4, 32, 33, 256])
def test_guidance_embedding_is_that_of_the_pipeline(dim):
    w = torch.tensor([0.0, 1.0, 2.75, 14.0])
    reference = StableDiffusionPipeline.get_guidance_scale_embedding(None, w, embedding_dim=dim)
    assert torch.equal(cm.guidance_embedding(w, dim), reference)


def test_guidance_embedding_too_narrow():
    with pytest.raises(ValueError, match="at least 4"):
        cm.guidance_embedding(torch.zeros(1), 3)


def test_guided_epsilon():
    conditional, null = normal(2, 3, 4, 2, 2)
    assert torch.equal(cm.guided_epsilon(conditional, null, 0.0), conditional)
    w = torch.tensor([0.0, 1.0, 6.5])
    guided = cm.guided_epsilon(conditional, null, w)
    for i, weight in enumerate(w):
        # the form of the pipelines, guidance_scale = 1 + w
        expected = null[i] + (1 + weight) * (conditional[i] - null[i])
        torch.testing.assert_close(guided[i], expected, rtol=1e-4, atol=1e-5)
