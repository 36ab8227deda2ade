"""The memorisation audit: finds every planted copy, and hardly a held-out phantom."""

import numpy as np
import pytest
from scipy.stats import binomtest

from hpc_hipgen.evaluation.audit import Auditor
from hpc_hipgen.evaluation.film_pixels import FilmPixels, Nearest
from hpc_hipgen.evaluation.memorisation import (
    ALARM,
    FilmFeatures,
    Tail,
    Verdict,
    planted_copies,
    rates,
)
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.radiograph.views import make_view

TRAINING, HELD_OUT, OTHERS, COPIED = 30, 16, 54, 10
SIZE, D = 128, 0.6


def features(images):
    """Thumbnails in place of a network's features."""
    return images.reshape(len(images), 8, SIZE // 8, 8, SIZE // 8).mean((2, 4)).reshape(-1, 64)


@pytest.fixture(scope="module")
def films():
    return [draw_phantom(5, index, 160) for index in range(TRAINING + HELD_OUT + OTHERS)]


@pytest.fixture(scope="module")
def phantoms(films):
    """Views of training, validation and test phantoms."""
    views = np.stack([make_view(film.image, film.landmarks, SIZE, D)[0] for film in films])
    return np.split(views, [TRAINING, TRAINING + HELD_OUT])


@pytest.fixture(scope="module")
def auditor(phantoms):
    training, held_out, _ = phantoms
    both = FilmFeatures(features(training)), FilmPixels(training, D)
    return Auditor.of(*both, (features(held_out), held_out))


def test_every_planted_copy_is_found_with_its_film(phantoms, auditor):
    source = np.arange(0, TRAINING, TRAINING // COPIED)[:COPIED]
    planted = planted_copies(phantoms[0][source])
    assert (planted["shifted"][0, 4:] == phantoms[0][source[0], :-4]).all()
    brighter = planted["brightened"].astype(int) - phantoms[0][source]
    assert brighter.min() >= 0 and np.median(brighter) >= 20
    for kind, copies in planted.items():
        verdict = auditor.judge(features(copies), copies)
        found = verdict.flagged(source)
        assert found["either"].all(), kind
        assert found["pixels"].all(), f"{kind}: whatever the features are"
        for line in verdict.closest(len(copies)):
            assert line["distance"] < auditor.tails[line["embedding"]].threshold, kind
    mirrored = auditor.judge(features(planted["mirrored"]), planted["mirrored"])
    assert mirrored.nearest["pixels"].mirrored.all()


def test_another_crop_of_a_film_is_found_too(films, auditor):
    rng = np.random.default_rng(0)
    crops = [make_view(f.image, f.landmarks, SIZE, D, rng, jitter=0.5) for f in films[:COPIED]]
    views = np.stack([view for view, _ in crops])
    verdict = auditor.judge(features(views), views)
    assert verdict.flagged(np.arange(COPIED))["either"].mean() >= 0.9


def test_held_out_phantoms_are_not_called_copies(phantoms, auditor):
    others = phantoms[2]
    score = rates(auditor.judge(features(others), others).flagged())
    assert score["n"] == OTHERS and score["rate"] < 0.02
    assert score["low"] <= score["rate"] < score["high"], "so few films prove little more"


def test_the_interval_of_a_share_is_wilsons_and_counts_dogs():
    flags = {"either": np.arange(40) % 10 == 0}
    found = rates(flags)
    peer = binomtest(4, 40).proportion_ci(method="wilson")
    assert (found["rate"], found["n"], found["found"]) == (0.1, 40, 4)
    assert (found["low"], found["high"]) == pytest.approx((peer.low, peer.high), abs=1e-9)
    dogs = rates(flags, [f"dog {i % 10}" for i in range(40)])  # four drawings of one film each
    peer = binomtest(1, 10).proportion_ci(method="wilson")
    assert (dogs["low"], dogs["high"]) == pytest.approx((peer.low, peer.high), abs=1e-9)
    assert (dogs["rate"], dogs["n"]) == (0.1, 40)
    for edge in (0, 1):
        flags = {"either": np.full(8, bool(edge))}
        peer = binomtest(8 * edge, 8).proportion_ci(method="wilson")
        found = rates(flags)
        assert (found["low"], found["high"]) == pytest.approx((peer.low, peer.high), abs=1e-9)


def test_text_in_a_corner_makes_no_pair(phantoms, auditor):
    """Half of all views have a date or a marker; it must neither join nor part films."""
    written = phantoms[2][:8].copy()
    written[:, 2:12, 70:126] = 255 - written[:, 2:12, 70:126]
    before, after = (auditor.pixels.nearest(x) for x in (phantoms[2][:8], written))
    assert after.distance == pytest.approx(before.distance, abs=0.02)


def test_the_tail_is_that_of_a_weibull_distribution():
    rng = np.random.default_rng(0)
    distances = 0.4 * rng.weibull(8, 20_000)
    tail = Tail.of(distances)
    assert (tail.location, tail.scale) == pytest.approx((np.log(0.4), 1 / 8), rel=0.03)
    assert tail.chance(np.array([tail.threshold])) == pytest.approx([ALARM])
    assert tail.threshold == pytest.approx(0.4 * ALARM ** (1 / 8), rel=0.03)
    some = distances[:30].copy()
    clean = Tail.of(some).threshold
    some[some.argmin()] = 0  # a held-out film that is a training film
    assert Tail.of(some).threshold == pytest.approx(clean)


def test_features_are_compared_on_the_scale_of_the_films():
    rng = np.random.default_rng(0)
    films = rng.normal(size=(40, 8)) * [1, 1, 1, 1, 1, 1, 1, 1000] + 5
    near = films[[7, 3]] + 0.01
    assert list(FilmFeatures(films).nearest(near).film) == [7, 3]
    moved = films.copy()
    moved[:, 7] += 100  # little of this feature's spread
    assert (FilmFeatures(films).nearest(moved).film == np.arange(40)).all()


def test_a_copy_is_what_hardly_any_held_out_film_comes_as_near_as_and_of_that_film():
    nearest = Nearest(np.full(3, 0.1), np.array([4, 5, 6]), np.zeros(3, bool))
    verdict = Verdict({"pixels": nearest}, {"pixels": np.array([0.0009, 0.0009, 0.0011])})
    assert verdict.flagged()["either"].tolist() == [True, True, False]
    assert verdict.flagged(np.array([4, 9, 6]))["either"].tolist() == [True, False, False]


def test_features_that_hardly_ever_differ_do_not_drown_the_others():
    rng = np.random.default_rng(0)
    films = np.concatenate([rng.normal(size=(20, 8)), np.ones((20, 8))], 1)
    films[:, 8:] += 1e-6 * rng.normal(size=(20, 8))
    moved = films[:5].copy()
    moved[:, 8:] += 1e-5 * rng.normal(size=(5, 8))  # ten times their spread, and nothing
    assert FilmFeatures(films).nearest(moved).film.tolist() == [0, 1, 2, 3, 4]
    assert FilmFeatures(films).nearest(moved).distance.max() < 0.01
