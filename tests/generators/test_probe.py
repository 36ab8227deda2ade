"""The probe's loss on predicted latents, and the settings that ask for it."""

import numpy as np
import pytest
import torch
from torch import nn

from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.files import DamagedError, save_network
from hpc_hipgen.generators.probe import (
    MeasurementLoss,
    ProbeLoss,
    ProbeNetwork,
    ProbeTask,
    load_probe,
)
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.tasks import load_autoencoder
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import device


class Stub(nn.Module):
    """Reads the angles that its latents say."""

    def angles(self, latents):
        return latents[:, :2, 0, 0]


def test_the_loss_is_huber_of_the_error_weighted_by_the_noise_level():
    said = torch.zeros(3, 2, 2, 2)
    said[:, :, 0, 0] = torch.tensor([[101.0, 100.0], [110.0, 100.0], [50.0, 50.0]])
    asked = torch.tensor([[100.0, 100.0], [100.0, 100.0], [torch.nan, torch.nan]])
    losses, degrees = MeasurementLoss(Stub(), 0.5)(said, asked, torch.tensor([1.0, 0.5, 1.0]))
    # below 2 degrees e^2 / 4, above e - 1; the mean of both sides; nothing asked, nothing lost
    assert losses.tolist() == pytest.approx([0.5 * 0.25 / 2, 0.5 * 0.5 * 9 / 2, 0.0])
    assert degrees.item() == pytest.approx((0.5 * 1 + 5.0 * 0.5) / 1.5)


def test_autocast_makes_it_read_no_less_exactly():
    torch.manual_seed(0)
    probe = ProbeNetwork(channels=4, size=8, width=8)
    probe.usual.copy_(torch.tensor([[20.0, 30.0], [18.0, 20.0], [44.0, 30.0], [46.0, 20.0]]))
    given = torch.randn(2, 4, 8, 8), torch.full((2, 2), 100.0), torch.ones(2)
    given = [tensor.to(device()) for tensor in given]
    loss = MeasurementLoss(probe, 1.0)
    expected, _ = loss(*given)
    with torch.autocast(device().type, torch.bfloat16):
        assert torch.equal(loss(*given)[0], expected)


def test_only_the_latents_learn_from_it():
    torch.manual_seed(0)
    probe = ProbeNetwork(channels=4, size=8, width=8)
    probe.usual.copy_(torch.tensor([[20.0, 30.0], [18.0, 20.0], [44.0, 30.0], [46.0, 20.0]]))
    latents = torch.randn(2, 4, 8, 8, device=device(), requires_grad=True)
    loss = MeasurementLoss(probe, 1.0)
    losses, _ = loss(latents, torch.full((2, 2), 100.0).to(latents), torch.ones(2).to(latents))
    losses.sum().backward()
    assert latents.grad.abs().sum() > 0
    assert all(p.grad is None for p in probe.parameters())


@pytest.mark.parametrize("size", [5, 8])
def test_latents_may_have_an_odd_size(size):
    probe = ProbeNetwork(channels=4, size=size, width=8)
    assert probe(torch.zeros(2, 4, size, size)).shape == (2, 4, 2)


def test_the_sides_are_the_patients():
    probe = ProbeNetwork(channels=4, size=8, width=8)
    nn.init.zeros_(probe.points[2].weight)
    nn.init.zeros_(probe.points[2].bias)
    # image left: rim straight above its head, 90 degrees; image right: 45 degrees outwards, 135
    probe.usual.copy_(torch.tensor([[20.0, 30.0], [20.0, 20.0], [44.0, 30.0], [54.0, 20.0]]))
    left, right = probe.angles(torch.zeros(1, 4, 8, 8))[0].tolist()
    assert (left, right) == pytest.approx((135.0, 90.0), abs=1e-4)


TRAINING = {"images": 8, "batch": 4, "lr": 1e-3}
BASE = {
    "name": "x",
    "ruler": {"training": TRAINING},
    "autoencoder": {"training": TRAINING},
    "stable_diffusion": {"training": TRAINING},
}


def test_asking_needs_a_probe_and_a_probe_somebody_who_asks():
    asking = BASE | {"stable_diffusion": {"training": TRAINING, "measurement_weight": 0.1}}
    with pytest.raises(ConfigError, match=r"measurement_weight: needs a probe"):
        parse_experiment(asking, "x.yaml")
    with pytest.raises(ConfigError, match="nobody would ask it"):
        parse_experiment(BASE | {"probe": {"training": TRAINING}}, "x.yaml")
    config = parse_experiment(asking | {"probe": {"training": TRAINING}}, "x.yaml")
    assert config.trained() == ["ruler", "autoencoder", "probe", "stable_diffusion"]


def make_task(run, settings, **section):
    settings["probe"] = {"width": 8, "training": TRAINING} | section
    settings["stable_diffusion"]["measurement_weight"] = 0.1
    films, held_out = (read_manifest(run.path("data"), split) for split in ("train", "validation"))
    config = parse_experiment(settings, "x.yaml")
    return ProbeTask(config, films, held_out, load_autoencoder(run), run.path("latents"))


def test_it_learns_from_noisy_latents_where_the_landmarks_of_their_views_are(
    tiny_run, tiny_settings
):
    task = make_task(tiny_run, tiny_settings, noise=0.5)
    batch = task.batch(np.arange(8), ImageRandom(0, np.arange(8)))
    marks = torch.from_numpy(task.films.landmarks).float()
    points = torch.stack([marks[:, 0, :2], marks[:, 0, 3:], marks[:, 1, :2], marks[:, 1, 3:]], 1)
    assert torch.equal(batch["points"], points[:8])
    noise = (batch["latents"] - task.latents[:8]).flatten(1).std(1)
    assert noise.max() < 0.55 and noise.max() - noise.min() > 0.1, "of a random strength"
    torch.testing.assert_close(task.module.network.usual, points.mean(0))


def test_its_loss_counts_pixels_and_degrees():
    points = torch.tensor([[[20.0, 30.0], [20.0, 20.0], [44.0, 30.0], [54.0, 20.0]]])
    found = points.clone()
    found[0, 3, 0] = 44.0  # 10 pixels beside, and 90 degrees instead of 135
    losses, said = ProbeLoss(lambda latents: found)(torch.zeros(1), points)
    assert losses.tolist() == pytest.approx([10 / 4 + 0.1 * 45 / 2], abs=1e-4)
    assert (said["pixels"], said["degrees"]) == pytest.approx((2.5, 22.5), abs=1e-4)


def test_a_probe_of_another_shape_than_its_settings_say_is_damaged(tmp_path):
    network = ProbeNetwork(4, 16, 8)
    save_network(network, tmp_path, "probe.json", {**network.shape, "width": 16})
    with pytest.raises(DamagedError, match="damaged or incomplete"):
        load_probe(tmp_path)


def test_the_export_is_the_average_and_states_its_error_on_held_out_films(
    tiny_run, tiny_settings, tmp_path
):
    task = make_task(tiny_run, tiny_settings)
    average = task.averages["export"].module
    nn.init.zeros_(average.points[2].weight)
    nn.init.zeros_(average.points[2].bias)
    # the patient's left, at the image's right, has 135 degrees, the right 90
    average.usual.copy_(torch.tensor([[20.0, 30.0], [20.0, 20.0], [44.0, 30.0], [54.0, 20.0]]))
    said = task.export(tmp_path)
    expected = [abs(angle - side).mean() for angle, side in
                ((135, task.held_out.patient_left), (90, task.held_out.patient_right))]  # fmt: skip
    assert list(said.values()) == pytest.approx(expected, abs=1e-3)
    stored = load_probe(tmp_path).state_dict()
    assert all(torch.equal(v, stored[k]) for k, v in average.state_dict().items())
