"""Rulers of few films: what they are shown, and their learning curves."""

import numpy as np
import pytest
import torch

from hpc_hipgen.config import Training, parse_experiment
from hpc_hipgen.evaluation import utility as u
from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rulers.ruler import Measurement
from hpc_hipgen.training.clock import ImageRandom

TRAINING = {"images": 16, "batch": 4, "lr": 1e-3}


def films(n, views=2, size=32):
    """Bright dots at the landmarks of hips with different angles."""
    rng = np.random.default_rng(n)
    marks = np.tile(np.array([[8, 16, 3, 5, 11], [24, 16, 3, 27, 11]], float), (n * views, 1, 1))
    marks[..., 3] += rng.uniform(-2, 2, marks.shape[:2])
    images = np.zeros((n * views, size, size), np.uint8)
    for image, hips in zip(images, marks, strict=True):
        for x, y in (*hips[:, :2], *hips[:, 3:]):
            image[round(y), round(x)] = 255
    angles = [Landmarks.from_array(hips).norberg_angles() for hips in marks]
    names = [f"film-{i // views:02d}" for i in range(n * views)]
    return Films(
        [f"{name}-{i}" for i, name in enumerate(names)], images, marks, ["a film"] * len(images),
        np.array([a.patient_left for a in angles]), np.array([a.patient_right for a in angles]),
        np.ones(len(images), int), names,
    )  # fmt: skip


def task(more, seed=3):
    tree = {
        "name": "x", "data": {"train": 6, "resolution": 32, "views": 2},
        "ruler": {"channels": [8, 16], "training": TRAINING},
    }  # fmt: skip
    config = parse_experiment(tree, "x")
    return u.UtilityTask(config, Training(**TRAINING), films(4), more, 0.1, seed)


def test_more_films_are_more_and_angles_are_the_images_sides():
    few, others = u.chosen_films(films(6), 2, seed=1)
    more, _ = u.chosen_films(films(6), 4, seed=1)
    assert set(few.film) < set(more.film) and len(few) == 4 and len(others) == 8
    assert not set(few.film) & set(others.film)
    assert set(u.chosen_films(films(6), 2, seed=2)[0].film) != set(few.film)
    plain = u.angles_alone(others, 5)
    assert len(plain.images) == 5 and plain.angles.shape == (5, 2)
    first = Landmarks.from_array(others.landmarks[0]).norberg_angles()
    assert plain.angles[0] == pytest.approx([first.image_left, first.image_right])
    assert u.angles_alone(u.chosen_films(films(6), 6, seed=1)[1], 5) is None


def test_what_is_learnt_from_films_with_landmarks_is_the_same_in_every_arm():
    alone, both = task(None), task(u.angles_alone(films(5), 10))
    for key, value in alone.module.state_dict().items():
        assert torch.equal(value, both.module.state_dict()[key]), "the same first weights"
    random = ImageRandom(0, np.arange(4))
    one, two = (t.batch(np.arange(4), random) for t in (alone, both))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert set(two) - set(one) == {"more", "angles"} and two["more"].shape == (4, 1, 32, 32)


def test_angles_follow_a_film_that_is_mirrored():
    """Asked 80 degrees at the image's left; after `move`, the bright side has the 80."""
    images = np.zeros((1, 32, 32), np.uint8)
    images[:, :, :16] = 200
    batch = task(u.AngleFilms(images, np.array([[80.0, 100.0]]))).batch(
        np.arange(8) % 4, ImageRandom(5, np.arange(8))
    )
    bright_left = batch["more"][..., :16].mean((1, 2, 3)) > batch["more"][..., 16:].mean((1, 2, 3))
    assert 0 < bright_left.sum() < 8
    assert torch.equal(batch["angles"][:, 0] == 80, bright_left)


def test_the_loss_of_a_film_without_landmarks_is_in_degrees_alone():
    module = task(u.angles_alone(films(5), 10)).module
    points = torch.tensor([[[8.0, 16], [5, 11], [24, 16], [27, 11]]])
    images, radii = torch.randn(1, 1, 32, 32), torch.full((1, 2), 3.0)
    with torch.no_grad():
        plain, _ = module(images, points, radii)
        found = u.norberg_angles(module.found_points(images))
        same, scalars = module(images, points, radii, images, found)
        off, _ = module(images, points, radii, images, found + torch.tensor([[4.0, -2.0]]))
    assert torch.equal(plain, same) and scalars["degrees_without"] == 0
    assert float(off - plain) == pytest.approx(0.1 * 3.0, rel=1e-4)


def test_every_hip_is_counted_refused_or_not():
    test = films(3, views=1)

    class Refusing:
        def measure(self, images):
            return [Measurement(np.nan, np.nan, 0.0, m, "unclear") for m in test.landmarks]

    found = u.held_out_errors(Refusing(), test)
    assert np.abs(found["errors"]).max() < 1e-3 and found["refused"] == 3


def results(errors):
    """Cells of two seeds, two films and the numbers 5 and 9."""
    return [
        {"arm": arm, "number": n, "seed": s, "refused": 1, "errors": (np.array(e) + s).tolist()}
        for (arm, n), e in errors.items()
        for s in (0, 1)
    ]


def test_the_learning_curve_is_paired_and_resamples_dogs():
    base = np.array([[1.0, 3.0], [4.0, 2.0], [0.0, 6.0]])
    given = {
        (arm, n): base + gain for n in (9, 5) for arm, gain in (("generated", 2), ("alone", 0))
    }
    lines = u.learning_curve(results(given), ["a", "b", "c"])
    assert [(x["films"], x["arm"]) for x in lines] == [
        (5, "alone"), (5, "generated"), (9, "alone"), (9, "generated"),
    ]  # fmt: skip
    alone, generated = lines[:2]
    assert alone["mae"] == pytest.approx(8 / 3 + 0.5) and alone["difference"] is None
    assert alone["low"] < alone["mae"] < alone["high"] and alone["refused"] == 2
    # all errors grow by two: so does every resample, and the difference has no width
    for key in ("difference", "difference_low", "difference_high"):
        assert generated[key] == pytest.approx(2)


def test_the_bootstrap_is_the_brute_force_one():
    rng = np.random.default_rng(0)
    dogs = ["a", "a", "b", "c", "d"]
    seeds, weights = u._resampled(3, dogs, 1)
    assert seeds.sum(1) == pytest.approx(1) and weights.sum(1) == pytest.approx(1)
    assert np.array_equal(weights[:, 0], weights[:, 1]), "films of one dog go together"
    off = rng.random((3, 5))
    means = np.einsum("bs,sf,bf->b", seeds, off, weights)
    brute = []
    for _ in range(4000):
        picked = rng.choice(["a", "b", "c", "d"], 4)
        chosen = [i for dog in picked for i, whose in enumerate(dogs) if whose == dog]
        brute.append(off[rng.integers(0, 3, 3)][:, chosen].mean())
    assert np.quantile(means, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(brute, [0.1, 0.5, 0.9]), abs=0.02
    )
