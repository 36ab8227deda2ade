"""Rulers of few films: what they are shown, and what they learn from it."""

import numpy as np
import pytest
import torch

from hpc_hipgen.config import Training, parse_experiment
from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rulers import few_films as f
from hpc_hipgen.rulers.ruler import Measurement, norberg_angles, read_points
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
    return f.FewFilmsTask(config, Training(**TRAINING), films(4), more, 0.1, seed)


def test_more_films_are_more_and_angles_are_the_images_sides():
    few, others = f.chosen_films(films(6), 2, seed=1)
    more, _ = f.chosen_films(films(6), 4, seed=1)
    assert set(few.film) < set(more.film) and len(few) == 4 and len(others) == 8
    assert not set(few.film) & set(others.film)
    assert set(f.chosen_films(films(6), 2, seed=2)[0].film) != set(few.film)
    plain = f.angles_alone(others, 5)
    assert len(plain.images) == 5 and plain.angles.shape == (5, 2)
    first = Landmarks.from_array(others.landmarks[0]).norberg_angles()
    assert plain.angles[0] == pytest.approx([first.image_left, first.image_right])
    assert f.angles_alone(f.chosen_films(films(6), 6, seed=1)[1], 5) is None


def test_what_is_learnt_from_films_with_landmarks_is_the_same_in_every_arm():
    alone, both = task(None), task(f.angles_alone(films(5), 10))
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
    batch = task(f.AngleFilms(images, np.array([[80.0, 100.0]]))).batch(
        np.arange(8) % 4, ImageRandom(5, np.arange(8))
    )
    bright_left = batch["more"][..., :16].mean((1, 2, 3)) > batch["more"][..., 16:].mean((1, 2, 3))
    assert 0 < bright_left.sum() < 8
    assert torch.equal(batch["angles"][:, 0] == 80, bright_left)


def test_the_loss_of_a_film_without_landmarks_is_in_degrees_alone():
    module = task(f.angles_alone(films(5), 10)).module
    points = torch.tensor([[[8.0, 16], [5, 11], [24, 16], [27, 11]]])
    images, radii = torch.randn(1, 1, 32, 32), torch.full((1, 2), 3.0)
    with torch.no_grad():
        plain, _ = module(images, points, radii)
        found, _, confidence = read_points(*module.network(images))
        found = norberg_angles(found)
        same, scalars = module(images, points, radii, images, found)
        off, _ = module(images, points, radii, images, found + torch.tensor([[4.0, -2.0]]))
    assert torch.equal(plain, same) and scalars["degrees_without"] == 0
    # by as much as the map of its least certain point is to be trusted
    assert float(off - plain) == pytest.approx(0.1 * 3.0 * float(confidence.min()), rel=1e-3)


def test_a_film_without_landmarks_does_not_drown_those_that_have_them():
    """With flat maps its angle's slope is a hundred times that of a film with landmarks."""
    module = task(f.angles_alone(films(5), 10)).module
    points = 4 * torch.tensor([[[8.0, 16], [5, 11], [24, 16], [27, 11]]])
    images, radii = torch.randn(1, 1, 128, 128), torch.full((1, 2), 12.0)

    def slope(*more):
        losses, _ = module(images, points, radii, *more)
        gradients = torch.autograd.grad(losses.sum(), module.network.parameters())
        return torch.cat([g.flatten() for g in gradients])

    alone, both = slope(), slope(images, torch.tensor([[60.0, 60.0]]))
    assert (both - alone).norm() < alone.norm()


def test_every_hip_is_counted_refused_or_not():
    test = films(3, views=1)

    class Refusing:
        def measure(self, images):
            return [Measurement(np.nan, np.nan, 0.0, m, "unclear") for m in test.landmarks]

    found = f.held_out_errors(Refusing(), test)
    assert np.abs(found["errors"]).max() < 1e-3 and found["refused"] == 3
