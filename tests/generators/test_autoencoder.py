"""The autoencoder: pixels, standardised latents, and what is exported."""

import copy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from hpc_hipgen.config import Autoencoder, parse_experiment
from hpc_hipgen.generators.autoencoder import (
    AutoencoderLoss,
    AutoencoderTask,
    build_autoencoder,
    encode,
    round_trip,
    standardise_latents,
    stride,
    to_images,
    to_pixels,
    views_at_once,
)
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.tasks import load_autoencoder
from hpc_hipgen.training.clock import ImageRandom


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return build_autoencoder(Autoencoder(block_out_channels=(8, 16, 16)), 32).eval()


def views(n=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32), dtype=np.uint8)


def test_pixels_and_images_are_inverse():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    pixels = to_pixels(images)
    assert pixels.shape == (1, 3, 16, 16) and pixels.is_contiguous()
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert np.array_equal(to_images(pixels), images)
    assert to_images(torch.full((1, 3, 2, 2), 1.2)).max() == 255


def test_shapes(autoencoder):
    assert stride(autoencoder) == 4
    assert encode(autoencoder, views()).shape == (6, 4, 8, 8)
    assert round_trip(autoencoder, views()).shape == (6, 32, 32)


def test_batches_change_nothing_but_rounding(autoencoder):
    assert torch.allclose(encode(autoencoder, views(), 2), encode(autoencoder, views()), atol=1e-5)


def test_standard_latents_leave_the_images(autoencoder):
    changed = copy.deepcopy(autoencoder)
    with torch.no_grad():
        pixels = to_pixels(views())
        posterior = autoencoder.encode(pixels).latent_dist
        before = autoencoder.decode(posterior.mode()).sample
        latents = encode(autoencoder, views())
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        standardise_latents(changed, mean, std)
        new = changed.encode(pixels).latent_dist
        after = changed.decode(new.mode()).sample
    assert torch.allclose(after, before, atol=1e-5)
    standard = encode(changed, views())
    assert torch.allclose(standard.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(standard.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    # the posterior's width is carried along
    assert torch.allclose(new.std * std[:, None, None], posterior.std, rtol=1e-4)


def test_the_loss_weighs_the_focus(autoencoder):
    loss = AutoencoderLoss(autoencoder, kl_weight=0.0, scale_equivariance=0.0)
    pixels, noise = to_pixels(views(2)), torch.zeros(2, 4, 8, 8)
    with torch.no_grad():
        even, scalars = loss(pixels, noise, torch.ones(2, 1, 32, 32))
        assert even.shape == (2,)
        assert even.mean() == pytest.approx(float(scalars["mse"]), rel=1e-5)
        weight = torch.zeros(2, 1, 32, 32)
        weight[..., 5, 7] = 9.0
        error = (autoencoder(pixels).sample - pixels).square()[..., 5, 7].mean(1)
        assert torch.allclose(loss(pixels, noise, weight)[0], error, rtol=1e-5)
        loss.kl_weight = 0.5
        divergence = autoencoder.encode(pixels).latent_dist.kl()
        assert torch.allclose(loss(pixels, noise, weight)[0], error + 0.5 * divergence)


def test_latents_of_half_the_size_are_views_of_half_the_size(autoencoder):
    """Against means of four, by hand."""

    def halved(maps):
        return maps.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))

    loss = AutoencoderLoss(autoencoder, kl_weight=0.1, scale_equivariance=0.0)
    pixels, noise = to_pixels(views(2)), torch.randn(2, 4, 8, 8)
    weight = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        without, scalars = loss(pixels, noise, weight)
        assert "half_size_mse" not in scalars
        posterior = autoencoder.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        decoded = autoencoder.decode(halved(latents)).sample
        assert decoded.shape == (2, 3, 16, 16)
        error = (decoded - halved(pixels)).square()
        shares = halved(weight) / halved(weight).sum((1, 2, 3), keepdim=True)
        half = (shares * error.mean(1, keepdim=True)).sum((1, 2, 3))
        loss.scale_equivariance = 0.25
        losses, scalars = loss(pixels, noise, weight)
    assert torch.allclose(losses, without + 0.25 * half, rtol=1e-5)
    assert float(scalars["half_size_mse"]) == pytest.approx(float(error.mean()), rel=1e-5)


def test_the_export_is_standard_and_stock(tiny_run):
    exported = AutoencoderKL.from_pretrained(tiny_run.path("autoencoder", "export"))
    assert exported.config.scaling_factor == 1.0
    latents = encode(exported, read_manifest(tiny_run.path("data"), "train").images)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    ours = load_autoencoder(tiny_run).state_dict()
    assert all(torch.equal(ours[k], v) for k, v in exported.state_dict().items())


def test_first_weights_and_batches_follow_the_seed(tiny_run, tiny_settings):
    films = read_manifest(tiny_run.path("data"), "train")
    tasks = [AutoencoderTask(tiny_run.config, films) for _ in range(2)]
    pairs = zip(*(task.module.parameters() for task in tasks), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other = AutoencoderTask(parse_experiment(tiny_settings | {"seed": 4}, "x"), films)
    assert not torch.equal(
        other.autoencoder.encoder.conv_in.weight, tasks[0].autoencoder.encoder.conv_in.weight
    )
    one, two = (
        tasks[0].batch(np.array(indices), ImageRandom(3, np.array(clock)))
        for indices, clock in (([5, 2], [0, 1]), ([2], [1]))
    )
    assert all(torch.equal(one[name][1:], two[name]) for name in one)
    assert tasks[0].describe(np.array([0])) == [films.ids[0]]


def test_windows_are_cut_from_the_same_place_of_pixels_and_focus(tiny_run, tiny_settings):
    films = read_manifest(tiny_run.path("data"), "train")
    tree = copy.deepcopy(tiny_settings)
    tree["autoencoder"] |= {"window": 16, "hip_weight": 5.0}
    whole, cut = (
        AutoencoderTask(parse_experiment(t, "x"), films)
        for t in (tree | {"autoencoder": tree["autoencoder"] | {"window": None}}, tree)
    )
    indices, clock = np.array([0, 3]), np.array([7, 8])
    views = whole.batch(indices, ImageRandom(3, clock))
    windows = cut.batch(indices, ImageRandom(3, clock))
    assert windows["pixels"].shape == (2, 3, 16, 16) and windows["weight"].shape == (2, 1, 16, 16)
    size = 16 // stride(cut.autoencoder)
    assert windows["noise"].shape[2:] == (size, size)
    for i in range(2):
        every = views["pixels"][i].unfold(1, 16, 1).unfold(2, 16, 1)
        places = (every == windows["pixels"][i][:, None, None]).flatten(3).all(3).all(0)
        y, x = places.nonzero()[0].tolist()
        assert torch.equal(windows["weight"][i], views["weight"][i][:, y : y + 16, x : x + 16])
    losses, _ = cut.module(**windows)
    assert losses.shape == (2,)


def test_large_views_are_taken_a_few_at_a_time():
    found = {size: views_at_once(size) for size in (32, 128, 256, 512, 1024, 2048)}
    assert found == {32: 32, 128: 32, 256: 32, 512: 8, 1024: 2, 2048: 1}
