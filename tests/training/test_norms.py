"""Norms that follow autocast."""

import copy

import pytest
import torch
from torch import nn

from hpc_hipgen.generators.frozen import freeze
from hpc_hipgen.training.norms import follow_autocast

NORMS = {
    "group": (lambda: nn.GroupNorm(4, 16), (3, 16, 9, 9)),
    "group without weights": (lambda: nn.GroupNorm(4, 16, affine=False), (3, 16, 9, 9)),
    "layer": (lambda: nn.LayerNorm(16), (3, 50, 16)),
    "layer without bias": (lambda: nn.LayerNorm(16, bias=False), (3, 50, 16)),
}


@pytest.fixture(params=NORMS)
def pair(request):
    """A norm of torch's, the same that follows autocast, and an input."""
    torch.manual_seed(0)
    make, shape = NORMS[request.param]
    theirs = make()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    # in trained networks the means of groups are up to 0.6 deviations from zero
    return theirs, follow_autocast(copy.deepcopy(theirs)), torch.randn(shape) + 0.6


def test_outside_autocast_it_is_torchs_to_the_bit(pair):
    theirs, ours, x = pair
    assert type(theirs) is not type(ours) and isinstance(ours, type(theirs))
    assert torch.equal(theirs(x), ours(x))


def test_under_autocast_it_stays_bf16_and_as_exact(pair):
    theirs, ours, x = pair
    x = x.bfloat16()
    want = theirs(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)
    assert found.dtype == torch.bfloat16
    assert (found - want).norm() / want.norm() < 5e-3  # three roundings to 8 bits


def test_gradients_reach_fp32_weights(pair):
    theirs, ours, x = pair
    x.requires_grad_()
    for norm, cast in ((theirs, False), (ours, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y = norm(x)
        (y.float() * torch.linspace(0, 1, y.numel()).view(y.shape)).sum().backward()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() / a.grad.norm() < 2e-2


def test_subclasses_are_left_alone():
    class Other(nn.LayerNorm):
        pass

    network = follow_autocast(nn.Sequential(Other(4), nn.LayerNorm(4)))
    assert type(network[0]) is Other and type(network[1]) is not nn.LayerNorm
    assert isinstance(copy.deepcopy(network)[1], type(network[1]))


def test_a_frozen_network_gives_the_same_bits_with_its_weights_in_bf16():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 6), nn.LayerNorm(6)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    plain = freeze(copy.deepcopy(network), bf16=False)
    half = freeze(network, bf16=True)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(plain(x), half(x))
