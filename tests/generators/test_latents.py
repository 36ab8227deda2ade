"""The cache of latents."""

import dataclasses

import numpy as np
import pytest
import torch

from hpc_hipgen.config import Autoencoder
from hpc_hipgen.generators.autoencoder import build_autoencoder, encode
from hpc_hipgen.generators.latents import cached_latents, check_latents
from hpc_hipgen.radiograph.layouts import Films


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return build_autoencoder(Autoencoder(block_out_channels=(8, 8)), 16).eval()


def some_films(seed=0, n=3):
    images = np.random.default_rng(seed).integers(0, 256, (n, 16, 16), dtype=np.uint8)
    ids = [f"view-{i}" for i in range(n)]
    angles = np.full(n, 100.0)
    classes = np.ones(n, np.int64)
    return Films(ids, images, np.zeros((n, 2, 5)), ids, angles, angles, classes, ids)


def test_they_are_computed_once(autoencoder, tmp_path, monkeypatch):
    films = some_films()
    first = cached_latents(autoencoder, films, tmp_path)
    assert torch.equal(first, encode(autoencoder, films.images))
    monkeypatch.setattr("hpc_hipgen.generators.latents.encode", None)
    assert torch.equal(cached_latents(autoencoder, films, tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_films_or_another_autoencoder_have_their_own(autoencoder, tmp_path):
    films = some_films()
    cached_latents(autoencoder, films, tmp_path)
    cached_latents(autoencoder, some_films(seed=1), tmp_path)
    renamed = dataclasses.replace(films, ids=["a", "b", "c"])
    cached_latents(autoencoder, renamed, tmp_path)
    with torch.no_grad():
        autoencoder.quant_conv.bias[0] += 1
    moved = cached_latents(autoencoder, films, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert torch.equal(moved, encode(autoencoder, films.images))


def test_the_scaling_factor_counts(autoencoder, tmp_path):
    plain = cached_latents(autoencoder, some_films(), tmp_path)
    autoencoder.register_to_config(scaling_factor=0.5)
    assert torch.allclose(cached_latents(autoencoder, some_films(), tmp_path), plain / 2)


def test_views_without_finite_latents_are_named():
    films = some_films()
    latents = torch.zeros(3, 4, 8, 8)
    assert check_latents(latents, films) is latents
    latents[1, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="non-finite latents for view-1"):
        check_latents(latents, films)
