"""Structural similarity within a set of images, against scikit-image and brute force."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from skimage.metrics import structural_similarity

from hpc_hipgen.evaluation import diversity as d


def films(n, size=32, seed=0):
    """Smooth random images."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, size // 8, size // 8))
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8)


def test_pairs_agree_with_scikit_image():
    images = films(4)
    found = d.pairwise_ssim(images, batch=4)
    assert np.array_equal(found, found.T) and (np.diag(found) == 1).all()
    wide = np.pad(images, ((0, 0), (5, 5), (5, 5)), mode="reflect")  # torchmetrics' border
    for i, j in combinations(range(4), 2):
        _, whole = structural_similarity(
            wide[i], wide[j], data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert found[i, j] == pytest.approx(whole[5:-5, 5:-5].mean(), abs=5e-4)


def test_flat_images_have_a_closed_form():
    a, b, c = 100 / 255, 180 / 255, 0.01**2
    images = np.stack([np.full((16, 16), v, np.uint8) for v in (100, 180)])
    expected = (2 * a * b + c) / (a * a + b * b + c)
    assert d.pairwise_ssim(images)[0, 1] == pytest.approx(expected, abs=5e-4)


def test_one_image_over_and_over_has_no_diversity():
    same = d.diversity(d.pairwise_ssim(np.repeat(films(1), 6, axis=0)))
    assert [same[k] for k in ("ssim", "low", "high")] == pytest.approx([1, 1, 1], abs=1e-3)
    varied = d.diversity(d.pairwise_ssim(films(6)))
    assert varied["low"] <= varied["ssim"] < 0.5


def test_the_interval_holds_as_often_as_it_says():
    """Similarities that are the sum of two images' own effects: the mean over pairs is 0."""
    rng, held, trials = np.random.default_rng(1), 0, 200
    for trial in range(trials):
        effect = rng.normal(size=30)
        found = d.diversity(effect[:, None] + effect[None], seed=trial)
        assert found["ssim"] == pytest.approx(2 * effect.mean())
        held += found["low"] <= 0 <= found["high"]
    assert 0.88 < held / trials < 0.99


def test_captions_that_were_drawn_twice_keep_their_shares(monkeypatch):
    films = [f"film-{i}" for i in range(d.MOST)] * 2
    keys = [str(i) for i in range(len(films))]
    table = pd.DataFrame({"film": films, "key": keys, "shard": 0, "prompt_class": 1})
    asked = []
    monkeypatch.setattr(d.samples, "read_images", lambda *given: asked.extend(given[2]) or {})
    d.of_rows(None, {"llcm_4": table})
    assert [key for key, _ in asked] == keys[: d.MOST]


def test_large_images_are_shrunk():
    small = films(3, d.PIXELS)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    assert d.pairwise_ssim(large) == pytest.approx(d.pairwise_ssim(small), abs=1e-6)


def test_too_few_images_have_no_number():
    assert d.diversity(np.eye(2)) == {"ssim": None, "low": None, "high": None, "n": 2}
    with pytest.raises(ValueError, match="11 x 11"):
        d.pairwise_ssim(np.zeros((2, 8, 8), np.uint8))
