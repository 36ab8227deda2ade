"""The probe's loss on predicted latents, and the settings that ask for it."""

import pytest
import torch
from torch import nn

from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.generators.probe import MeasurementLoss, ProbeNetwork
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
