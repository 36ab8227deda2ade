"""The discrete VAE: the Gumbel-softmax and its temperature, the codebook, and what is exported."""

import json
import math

import numpy as np
import pytest
import torch

from hpc_hipgen.config import DiscreteVAE
from hpc_hipgen.generators.discrete_vae import (
    USAGE_IMAGES,
    DiscreteAutoencoder,
    DiscreteLoss,
    DiscreteVAETask,
    decode_images,
    divergence_from_even,
    encode_codes,
    gumbel_noise,
    gumbel_softmax,
    perplexity,
    round_trip,
    straight_through,
    temperature_at,
)
from hpc_hipgen.radiograph.layouts import read_pairs
from hpc_hipgen.tasks import load_discrete_vae
from hpc_hipgen.training.clock import ImageRandom


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return DiscreteAutoencoder((8, 16, 16), 1, codes=12, code_width=4).eval()


def views(n=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32), dtype=np.uint8)


def draws(*shape, seed=0):
    return gumbel_noise(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))


def test_gumbel_noise_is_gumbel():
    noise = draws(400_000)
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.02)
    assert torch.isfinite(gumbel_noise(torch.tensor([0.0, 0.5, 1 - 2**-24]))).all()


def test_cold_shares_are_exact_draws_from_the_distribution():
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0])[None, :, None, None].expand(1, 4, 300, 300)
    noise = draws(1, 4, 300, 300)
    cold = gumbel_softmax(logits, noise, torch.tensor([1e-4]))
    assert cold.max(1).values.mean() > 0.999
    assert torch.equal(cold.argmax(1), (logits + noise).argmax(1))
    found = torch.bincount(cold.argmax(1).flatten(), minlength=4) / 90_000
    assert torch.allclose(found, logits[0, :, 0, 0].softmax(0), atol=0.01)


def test_warm_shares_are_even_and_each_image_has_its_temperature():
    logits, noise = torch.randn(2, 5, 3, 3), draws(2, 5, 3, 3)
    shares = gumbel_softmax(logits, noise, torch.tensor([1e6, 0.5]))
    assert torch.allclose(shares.sum(1), torch.ones(2, 3, 3))
    assert torch.allclose(shares[0], torch.full((5, 3, 3), 0.2), atol=1e-4)
    assert torch.allclose(shares[1], ((logits + noise)[1] / 0.5).softmax(0))


def test_single_entries_have_the_gradient_of_their_mixture():
    logits = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    shares = gumbel_softmax(logits, torch.zeros(2, 1, 1, 1), torch.ones(2))
    mixed = straight_through(shares, torch.tensor([True, False]))
    entries = torch.nn.functional.one_hot(logits[0].argmax(0), 5).movedim(-1, 0)
    assert torch.allclose(mixed[0], entries.float(), atol=1e-6)
    assert torch.equal(mixed[1], shares[1])
    values = torch.arange(5.0)[None, :, None, None]
    (straight,) = torch.autograd.grad((mixed * values).sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad((shares * values).sum(), logits)
    assert torch.allclose(straight, plain)


def test_the_temperature_is_a_function_of_the_clock():
    training = {"images": 1000, "batch": 10, "lr": 1e-3}
    section = DiscreteVAE(temperature=(1.0, 0.25), anneal=0.5, training=training)
    found = temperature_at(torch.tensor([0, 250, 500, 900]), section)
    assert torch.allclose(found, torch.tensor([1.0, 0.625, 0.25, 0.25]))


def test_divergence_and_perplexity():
    even = torch.zeros(1, 8, 2, 3)
    assert divergence_from_even(even) == pytest.approx(0, abs=1e-5)
    sure = even.clone()
    sure[:, 2] = 100
    assert divergence_from_even(sure).item() == pytest.approx(6 * math.log(8), rel=1e-5)
    assert perplexity(torch.tensor([3.0, 3.0, 0.0, 3.0])).item() == pytest.approx(3)
    assert perplexity(torch.tensor([0.0, 7.0])).item() == pytest.approx(1)


def test_codes_and_shares_decode_alike(autoencoder):
    assert autoencoder.stride == 4
    codes = encode_codes(autoencoder, views())
    assert codes.shape == (6, 8, 8) and codes.dtype == torch.int32
    assert codes.min() >= 0 and codes.max() < 12
    shares = torch.nn.functional.one_hot(codes.long(), 12).movedim(-1, 1).float()
    with torch.no_grad():
        same = torch.allclose(
            autoencoder.decode(shares), autoencoder.decode_codes(codes), atol=1e-5
        )
    assert same
    assert np.array_equal(round_trip(autoencoder, views()), decode_images(autoencoder, codes))
    assert torch.equal(encode_codes(autoencoder, views(), 2), codes)
    with pytest.raises(ValueError, match="views of 30 pixels, but its stride is 4"):
        encode_codes(autoencoder, views()[:, :30, :30])


def test_the_loss_weighs_the_focus_and_counts_the_codes(autoencoder):
    loss = DiscreteLoss(autoencoder, kl_weight=0.0)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    noise, warm = torch.zeros(2, 1, 1, 1), torch.ones(2)
    hard = torch.ones(2, dtype=torch.bool)
    weight = torch.zeros(2, 1, 32, 32)
    weight[..., 5, 7] = 9.0
    with torch.no_grad():
        codes = autoencoder.logits(pixels).argmax(1)
        error = (autoencoder.decode_codes(codes) - pixels).square()
        losses, scalars = loss(pixels, noise, warm, hard, weight)
        assert torch.allclose(losses, error[..., 5, 7].mean(1), rtol=1e-3)
        assert scalars["mse"].item() == pytest.approx(error.mean().item(), rel=1e-3)
        assert scalars["codes_used"] == len(codes.unique())
        counts = torch.bincount(codes.flatten(), minlength=12).float()
        assert torch.allclose(scalars["code_perplexity"], perplexity(counts))
        loss(pixels, noise, warm, hard, weight)
        assert torch.allclose(loss.counts, counts * (1 + math.exp(-2 / USAGE_IMAGES)))
        loss.kl_weight = 0.5
        divergence = divergence_from_even(autoencoder.logits(pixels))
        assert torch.allclose(loss(pixels, noise, warm, hard, weight)[0], losses + 0.5 * divergence)


@pytest.mark.parametrize("hard", [False, True])
def test_the_codebook_and_the_encoder_are_trained(autoencoder, hard):
    loss = DiscreteLoss(autoencoder, kl_weight=1e-4)
    pixels, warm = torch.rand(2, 3, 32, 32), torch.ones(2)
    losses, _ = loss(
        pixels, draws(2, 12, 8, 8), warm, torch.tensor([hard] * 2), torch.ones(2, 1, 32, 32)
    )
    losses.mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in autoencoder.parameters())
    autoencoder.zero_grad()


def test_batches_follow_the_clock(token_run):
    films = read_pairs(token_run.path("data"))
    task = DiscreteVAETask(token_run.config, films)
    one, two = (
        task.batch(np.array(indices), ImageRandom(3, np.array(clock)))
        for indices, clock in (([5, 2], [0, 1]), ([2], [1]))
    )
    assert all(torch.equal(one[name][1:], two[name]) for name in one)
    assert not one["noise"].any() and one["pixels"].shape == (2, 3, 16, 16)
    assert one["temperature"][0] == 1 and one["temperature"][1] < 1
    section = token_run.config.discrete_vae
    end = section.anneal * section.training.images
    late = task.batch(np.array([2, 2]), ImageRandom(3, np.array([math.ceil(end) - 1, end])))
    assert late["hard"].tolist() == [False, True]
    noisy = section.model_copy(update={"noise": 1.0})
    noisy = token_run.config.model_copy(update={"discrete_vae": noisy})
    noise = DiscreteVAETask(noisy, films).batch(np.array([2]), ImageRandom(3, [1]))["noise"]
    assert noise.shape == (1, 16, 4, 4) and noise.std() > 0.5
    assert task.describe(np.array([0])) == [films.ids[0]]
    again = DiscreteVAETask(token_run.config, films)
    pairs = zip(task.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_export_says_how_the_codebook_is_used(token_run):
    vae = load_discrete_vae(token_run)
    codes = encode_codes(vae, read_pairs(token_run.path("data")).images)
    done = token_run.done("train-discrete_vae")
    assert done["codes"] == 16 and done["codes_used"] == len(codes.unique())
    assert 1 <= done["code_perplexity"] <= done["codes_used"]
    log = token_run.path("discrete_vae", "metrics.jsonl").read_text().splitlines()
    assert {"codes_used", "code_perplexity", "temperature", "mse"} <= set(json.loads(log[-1]))


def test_the_export_is_the_average(token_run, tmp_path):
    task = DiscreteVAETask(token_run.config, read_pairs(token_run.path("data")))
    average = task.averages["export"].module
    torch.nn.init.constant_(average.codebook.weight, 2.0)
    task.export(tmp_path)
    assert (DiscreteAutoencoder.from_pretrained(tmp_path).codebook.weight == 2).all()
