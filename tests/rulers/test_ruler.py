"""The ruler: geometry of its training, reading of heat maps, verdicts, symmetry."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.files import save_network
from hpc_hipgen.radiograph import geometry
from hpc_hipgen.rulers import ruler_training
from hpc_hipgen.rulers.ruler import (
    POINTS,
    SETTINGS,
    WINDOW,
    Measurement,
    Ruler,
    RulerNetwork,
    load_ruler,
    mass_near,
    norberg_angles,
    points_of,
    read_points,
    ruler_of,
    standardise,
)
from hpc_hipgen.rulers.ruler_training import (
    RulerLoss,
    RulerTask,
    expose,
    heat_loss,
    move,
)
from hpc_hipgen.training.clock import ImageRandom

SIZE = 64
# head x, y, radius, rim x, y of the image's left and right hip
LANDMARKS = torch.tensor([[18.0, 34.0, 5.0, 15.0, 26.0], [46.0, 31.0, 6.0, 50.0, 24.0]])


coordinate = st.floats(0, 63)


def test_points_of_landmarks_are_heads_and_rims_from_the_left():
    points = [[18.0, 34.0], [15.0, 26.0], [46.0, 31.0], [50.0, 24.0]]
    assert points_of(LANDMARKS[None]).tolist() == [points]


@settings(max_examples=50, deadline=None)
@given(values=st.lists(coordinate, min_size=8, max_size=8))
def test_angles_are_those_of_the_geometry(values):
    points = torch.tensor(values, dtype=torch.float64).view(1, 4, 2)
    left, left_rim, right, right_rim = points[0].numpy()
    if (
        min(np.abs(a - b).max() for a, b in ((left, right), (left, left_rim), (right, right_rim)))
        < 1
    ):
        return
    found = norberg_angles(points)[0].numpy()
    expected = [
        float(geometry.norberg_angle(left, right, left_rim)),
        float(geometry.norberg_angle(right, left, right_rim)),
    ]
    assert found == pytest.approx(expected, abs=1e-6)


def test_angles_have_finite_gradients():
    points = points_of(LANDMARKS[None]).clone().requires_grad_()
    norberg_angles(points).sum().backward()
    assert torch.isfinite(points.grad).all() and points.grad.abs().max() > 0


def dots(points):
    """Views (b, 1, n, n) of Gaussian dots at points (b, k, 2)."""
    grid = torch.arange(SIZE, dtype=torch.float32)
    dx, dy = grid - points[..., :1], grid - points[..., 1:]
    bumps = torch.exp(-(dy[..., :, None] ** 2 + dx[..., None, :] ** 2) / (2 * 1.5**2))
    return bumps.amax(1, keepdim=True)


def centre_of_mass(view, near):
    ys, xs = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    mass = view * ((xs - near[0]).abs() + (ys - near[1]).abs() < 7)
    return torch.stack([(mass * xs).sum(), (mass * ys).sum()]) / mass.sum()


def test_moving_keeps_angles_and_takes_the_pixels_along():
    count = 24
    landmarks = LANDMARKS.repeat(count, 1, 1)
    views = dots(points_of(landmarks)[:, [0, 2]])  # one dot a head
    moved, points, radii = move(views, landmarks, ImageRandom(1, np.arange(count)))
    before = norberg_angles(points_of(landmarks))
    mirrored = (radii[:, 0] / radii[:, 1]) > 1  # the left head is the smaller one
    assert 0 < mirrored.sum() < count
    expected = torch.where(mirrored[:, None], before.flip(1), before)
    assert torch.allclose(norberg_angles(points), expected, atol=1e-2)
    assert (points[:, 0, 0] < points[:, 2, 0]).all(), "left stays left of right"
    for view, own in zip(moved, points, strict=True):
        for head in (own[0], own[2]):
            assert torch.allclose(centre_of_mass(view[0], head), head, atol=0.15)
    # radii are scaled as distances are
    zoom = (points[:, 0] - points[:, 2]).norm(dim=1) / (LANDMARKS[0, :2] - LANDMARKS[1, :2]).norm()
    own = torch.where(mirrored[:, None], landmarks[..., 2].flip(1), landmarks[..., 2])
    assert torch.allclose(radii / own, zoom[:, None].expand(-1, 2), atol=1e-4)
    assert zoom.min() >= 0.84 and zoom.max() <= 1.19


def test_exposure_stays_in_range_and_is_an_images_own():
    views = torch.rand(6, 1, SIZE, SIZE)
    seen = expose(views, ImageRandom(2, np.arange(6)))
    assert seen.shape == views.shape and torch.isfinite(seen).all()
    assert torch.equal(expose(views[3:4], ImageRandom(2, np.array([3]))), seen[3:4])


def planted(points, radius=5.0, sharpness=2.0):
    """Maps that say that the points (4, 2) of a view are where they are."""
    half = SIZE // 2
    grid = torch.arange(half, dtype=torch.float32)
    centres = (points - 0.5) / 2
    dx, dy = grid - centres[:, :1], grid - centres[:, 1:]
    logits = -(dy[:, :, None] ** 2 + dx[:, None, :] ** 2) / sharpness
    log_radii = torch.full((1, 2, half, half), radius / (0.1 * SIZE)).log()
    return logits[None], log_radii


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.floats(10, 53), min_size=8, max_size=8), radius=st.floats(2, 12))
def test_planted_maps_are_read_to_a_fraction_of_a_pixel(values, radius):
    points = torch.tensor(values).view(4, 2)
    found, radii, confidence = read_points(*planted(points, radius))
    assert torch.allclose(found[0], points, atol=0.02)
    assert radii[0].tolist() == pytest.approx([radius] * 2, rel=1e-4)
    assert confidence.min() > 0.9 and confidence.max() <= 1 + 1e-5


def test_flat_maps_have_no_confidence():
    logits, radii = torch.zeros(1, 4, 32, 32), torch.zeros(1, 2, 32, 32)
    found, _, confidence = read_points(logits, radii)
    assert torch.allclose(found, torch.full((1, 4, 2), (SIZE - 1) / 2))
    # the window around the middle of 32 pixels, 15.5, holds 2 * WINDOW of them a side
    assert torch.allclose(confidence, torch.tensor((2.0 * WINDOW / 32) ** 2))


class Planted(torch.nn.Module):
    """A network that finds the same points in every view, and their mirror image in a mirror's."""

    def __init__(self, points, sharpness=2.0):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        mirrored = points.clone()[[2, 3, 0, 1]]
        mirrored[:, 0] = SIZE - 1 - mirrored[:, 0]
        self.maps = [planted(points, sharpness=sharpness), planted(mirrored, sharpness=sharpness)]
        self.calls = 0

    def forward(self, images):
        logits, radii = self.maps[self.calls % 2]
        self.calls += 1
        return logits.repeat(len(images), 1, 1, 1), radii.repeat(len(images), 1, 1, 1)


def measure_planted(points, min_confidence=0.05, **more):
    ruler = Ruler(Planted(points, **more), SIZE, min_confidence)
    (measurement,) = ruler.measure(np.zeros((1, SIZE, SIZE), np.uint8))
    return measurement


def test_clear_landmarks_are_measured():
    points = points_of(LANDMARKS[None])[0]
    found = measure_planted(points)
    expected = norberg_angles(points[None])[0].tolist()
    assert [found.image_left, found.image_right] == pytest.approx(expected, abs=0.2)
    assert found.reason == "" and found.confidence > 0.9
    assert found.landmarks[:, [0, 1, 3, 4]] == pytest.approx(
        LANDMARKS[:, [0, 1, 3, 4]].numpy(), abs=0.02
    )
    assert POINTS[2] == "right head"


def test_unclear_landmarks_are_refused():
    points = points_of(LANDMARKS[None])[0]
    found = measure_planted(points, sharpness=500.0, min_confidence=0.5)
    assert np.isnan(found.image_left) and np.isnan(found.image_right)
    assert found.reason.startswith("no clear landmarks (confidence 0.")
    assert found.landmarks.shape == (2, 5)


@pytest.mark.parametrize("unclear", range(4))
def test_one_unclear_landmark_is_enough_to_refuse(unclear):
    network = Planted(points_of(LANDMARKS[None])[0])
    network.maps[0][0][:, unclear] /= 500.0
    (found,) = Ruler(network, SIZE, 0.5).measure(np.zeros((1, SIZE, SIZE), np.uint8))
    assert found.reason.startswith("no clear landmarks") and np.isnan(found.image_right)


def test_heads_in_one_place_or_the_wrong_way_round_are_refused():
    points = points_of(LANDMARKS[None])[0]
    together = points.clone()
    together[[0, 1], 0] += 20
    for bad in (together, points[[2, 3, 0, 1]]):
        found = measure_planted(bad)
        assert found.reason == "the two femoral heads are not apart"
        assert np.isnan(found.image_left)


@pytest.mark.parametrize("rim", [1, 3])
def test_a_rim_below_the_heads_is_refused_though_the_angle_is_a_hips(rim):
    points = points_of(LANDMARKS[None])[0]
    points[rim, 1] = 2 * points[rim - 1, 1] - points[rim, 1]
    angles = norberg_angles(points[None])[0].tolist()
    assert all(55 < angle < 130 for angle in angles)
    assert measure_planted(points).reason == "a rim lies below the heads"


@pytest.fixture(scope="module")
def ruler():
    torch.manual_seed(0)
    return Ruler(RulerNetwork((8, 16, 16)), SIZE)


def test_black_views_are_refused_by_a_network_that_knows_nothing(ruler):
    found = ruler.measure(np.zeros((2, SIZE, SIZE), np.uint8))
    assert all(m.reason and np.isnan(m.image_left) for m in found)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, SIZE, 32)])
def test_another_size_is_refused(ruler, shape):
    with pytest.raises(ValueError, match=f"measures 64 x 64 views, not {shape[1]} x {shape[2]}"):
        ruler.measure(np.zeros(shape, np.uint8))


def test_a_mirrored_view_has_mirrored_landmarks(ruler):
    views = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
    straight, mirrored = ruler.measure(views), ruler.measure(views[:, :, ::-1].copy())
    for one, other in zip(straight, mirrored, strict=True):
        flipped = other.landmarks[::-1].copy()
        flipped[:, [0, 3]] = SIZE - 1 - flipped[:, [0, 3]]
        assert one.landmarks == pytest.approx(flipped, abs=1e-3)
        assert one.confidence == pytest.approx(other.confidence, rel=1e-4)


def test_exposure_and_batches_do_not_count(ruler):
    views = np.random.default_rng(1).integers(60, 120, (5, SIZE, SIZE), dtype=np.uint8)
    found = np.stack([m.landmarks for m in ruler.measure(views)])
    brighter = np.stack([m.landmarks for m in ruler.measure(views * 2 + 10)])
    split = np.stack([m.landmarks for m in ruler.measure(views, batch=2)])
    assert found == pytest.approx(brighter, abs=0.02)
    assert found == pytest.approx(split, abs=1e-3)
    assert torch.isfinite(standardise(torch.zeros(1, 1, 8, 8))).all()


def test_a_stored_ruler_measures_the_same(ruler, tmp_path):
    form = {"channels": [8, 16, 16], "resolution": SIZE}
    save_network(ruler.network, tmp_path / "r", SETTINGS, form)
    views = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE), dtype=np.uint8)
    again = load_ruler(tmp_path / "r", 0.3)
    assert again.min_confidence == 0.3
    for one, other in zip(ruler.measure(views), again.measure(views), strict=True):
        assert np.array_equal(one.landmarks, other.landmarks)
    with pytest.raises(ValueError, match="holds no ruler"):
        load_ruler(tmp_path)


def test_the_loss_is_least_at_the_truth():
    torch.manual_seed(0)
    loss = RulerLoss((8, 16))
    truth, radii = points_of(LANDMARKS[None]), torch.tensor([[5.0, 5.0]])
    loss.network.forward = lambda images: planted(truth[0], sharpness=2 * 1.5**2)
    views = torch.zeros(1, 1, SIZE, SIZE)
    right, scalars = loss(views, truth, radii)
    assert right.shape == (1,)
    assert scalars["pixels"] < 0.05 and scalars["degrees"] < 0.5
    for wrong in (
        loss(views, truth + 1.0, radii),
        loss(views, truth, radii * 1.3),
        loss(views, truth[:, [2, 3, 0, 1]], radii),
    ):
        assert wrong[0] > right + 0.1


def test_only_a_map_that_marks_its_point_is_drawn_to_it():
    """Else the expectations of flat maps draw a hip's head and rim to one blob, for good."""
    loss = RulerLoss((8, 16))
    truth, radii = points_of(LANDMARKS[None]), torch.tensor([[5.0, 6.0]])

    def pull(marked, excess):
        """Gradient of maps around `marked`, without that of the heat maps' own loss."""
        logits, log_radii = planted(marked)
        logits.requires_grad_()
        loss.network.forward = lambda images: (logits, log_radii)
        losses, _ = loss(torch.zeros(1, 1, SIZE, SIZE), truth + excess, radii)
        heat = ruler_training.HEAT_WEIGHT * heat_loss(logits, truth + excess).mean(1)
        return torch.autograd.grad((losses - heat).sum(), logits)[0].flatten(2).norm(dim=-1)[0]

    assert pull(truth[0], 1.0).min() > 1e-3
    astray = truth[0] + torch.tensor([[0.0, 0.0], [30, 20], [0, 0], [0, 0]])
    assert pull(astray, 1.0)[1] < 1e-6 < pull(astray, 1.0)[0]
    # mass that is split between two points counts by its parts
    both = torch.stack([planted(truth[0])[0], planted(astray)[0]]).exp().mean(0).log()
    assert torch.allclose(mass_near(both, truth), torch.tensor([[1.0, 0.5, 1.0, 1.0]]), atol=0.02)


def test_the_task_reads_the_training_split_only(tiny_run):
    task = RulerTask(tiny_run.config, tiny_run.path("data"))
    assert all(name.startswith("train") or "train" in name for name in task.films.ids)
    batch = task.batch(np.array([0, 3]), ImageRandom(0, np.arange(2)))
    assert batch["images"].shape == (2, 1, 32, 32)
    alone = task.batch(np.array([3]), ImageRandom(0, np.array([1])))
    assert all(torch.equal(batch[name][1:], alone[name]) for name in batch)
    again = RulerTask(tiny_run.config, tiny_run.path("data"))
    pairs = zip(task.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    ruler = load_ruler(tiny_run.path("ruler", "export"))
    assert ruler.resolution == 32 and len(ruler.measure(task.films.images)) == len(task.films)


@pytest.mark.parametrize("confidence, warned", [(0.55, True), (0.9, False)])
def test_maps_that_are_alike_are_named(tiny_run, tmp_path, monkeypatch, capsys, confidence, warned):
    monkeypatch.setattr(
        ruler_training, "ruler_error", lambda *_: {"mae_left": 1.0, "confidence": confidence}
    )
    ruler_training.RulerTask(tiny_run.config, tiny_run.path("data")).export(tmp_path / "export")
    assert ("warning: ruler: the maps of a hip" in capsys.readouterr().err) == warned


def test_the_ruler_that_feedback_asks_learns_otherwise_than_the_one_that_measures(
    tiny_run, tiny_settings
):
    training = tiny_settings["ruler"]["training"]
    tiny_settings["reward_model"] = tiny_settings["ruler"]
    tiny_settings["feedback"] = {"steps": 5, "stops": 2, "below": 700, "training": training}
    config, random = parse_experiment(tiny_settings, "x"), ImageRandom(0, np.arange(2))
    one, other = (
        RulerTask(config, tiny_run.path("data"), name) for name in ("ruler", "reward_model")
    )
    first, second = (task.module.network.stem[0].weight for task in (one, other))
    assert not torch.equal(first, second), "its first weights"
    first, second = (task.batch(np.arange(2), random)["points"] for task in (one, other))
    assert not torch.equal(first, second), "how its views are moved"


def test_the_error_of_a_ruler_is_that_of_each_side():
    left, right = np.linspace(90, 110, 6), np.linspace(104, 80, 6)
    films = SimpleNamespace(images=None, patient_left=left, patient_right=right)
    measured = [
        Measurement(image_left=b - 3.0, image_right=a + 1.0, confidence=0.9, landmarks=np.zeros(0))
        for a, b in zip(left, right, strict=True)
    ]
    found = ruler_training.ruler_error(SimpleNamespace(measure=lambda images: measured), films)
    assert (found["mae_left"], found["mae_right"]) == pytest.approx((1, 3))


def test_a_run_measures_with_its_own_threshold(tiny_run):
    evaluation = tiny_run.config.evaluation.model_copy(update={"min_confidence": 0.4})
    config = tiny_run.config.model_copy(update={"evaluation": evaluation})
    run = SimpleNamespace(config=config, first_stage=tiny_run.first_stage)
    assert ruler_of(run, "cpu").min_confidence == 0.4
