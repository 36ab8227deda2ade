"""Muon against singular vectors, torch's own Muon and torch's AdamW."""

import copy

import pytest
import torch
from torch import nn

from hpc_hipgen.training import muon
from hpc_hipgen.training.muon import RMS, Muon, orthogonal

ADAMW = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


def with_gradients(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return module


def matrices(rows, columns, smallest=0.05):
    """Two matrices with singular values from 1 down to `smallest`, and their singular vectors."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(2, rows, columns), full_matrices=False)
    values = torch.linspace(1, smallest, min(rows, columns))
    return (u * values) @ v, u, v


@pytest.mark.parametrize("shape", [(32, 32), (24, 90), (90, 24)])
def test_a_matrix_keeps_its_singular_vectors_and_loses_its_singular_values(shape):
    x, u, v = matrices(*shape)
    values = u.mT @ orthogonal(x * 1e-6) @ v.mT  # of any size
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.65 and diagonal.max() < 1.25
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_bf16_as_on_a_gpu_is_near_enough():
    x, u, v = matrices(24, 90)
    x = x / x.norm(dim=(1, 2), keepdim=True)
    values = u.mT @ muon._by_steps(x.bfloat16()).float() @ v.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (values - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_no_gradient_is_no_direction():
    assert torch.equal(orthogonal(torch.zeros(1, 20, 30)), torch.zeros(1, 20, 30))


def test_the_short_cut_by_the_small_matrix_is_the_iteration_itself():
    x, *_ = matrices(20, 70, smallest=1e-4)
    x = x.double() / x.double().norm(dim=(1, 2), keepdim=True)
    assert torch.allclose(muon._by_gram(x), muon._by_steps(x), atol=1e-9)
    assert torch.allclose(muon._by_gram(x.float()).double(), muon._by_steps(x), atol=1e-4)


def test_filters_move_as_a_matrix_does_in_torch():
    torch.manual_seed(0)
    filters, matrix = nn.Conv2d(20, 16, 3, bias=False), nn.Linear(180, 16, bias=False)
    matrix.weight.data = filters.weight.data.reshape(16, 180).clone()
    before = matrix.weight.detach().clone()
    ours = Muon(filters.parameters(), **ADAMW)
    theirs = torch.optim.Muon(
        matrix.parameters(),
        lr=ADAMW["lr"],
        weight_decay=ADAMW["weight_decay"],
        momentum=muon.MOMENTUM,
        adjust_lr_fn="match_rms_adamw",
    )
    for seed in range(4):
        with_gradients(filters, seed)
        matrix.weight.grad = filters.weight.grad.reshape(16, 180)
        ours.step(), theirs.step()
    off = (filters.weight.reshape(16, 180) - matrix.weight).norm()
    assert off < 0.02 * (matrix.weight - before).norm(), "torch's computes in bf16"


def test_an_update_has_the_size_of_those_of_adamw():
    layer = with_gradients(nn.Conv2d(32, 32, 3))
    before = layer.weight.detach().clone()
    Muon(layer.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0).step()
    size = float((layer.weight.detach() - before).square().mean().sqrt())
    assert size == pytest.approx(1e-2 * RMS, rel=0.2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 24, 3), nn.GroupNorm(4, 24), nn.Conv2d(24, 3, 3), nn.Linear(16, 32)
    )


def test_all_else_moves_as_with_adamw():
    ours, theirs = with_gradients(network()), with_gradients(network())
    Muon(ours.parameters(), **ADAMW).step()
    torch.optim.AdamW(theirs.parameters(), **ADAMW).step()
    same = {
        name: torch.allclose(value, theirs.get_parameter(name), atol=1e-7)
        for name, value in ours.named_parameters()
    }
    # neither the filters of three colours, at a network's end, nor a linear layer
    assert [name for name, alike in same.items() if not alike] == ["0.weight"]


def test_gradients_are_divided_as_they_are_read():
    ours, scaled = network(), network()
    first, second = Muon(ours.parameters(), **ADAMW), Muon(scaled.parameters(), **ADAMW)
    # another divisor every step: an update does not see one that stays, its momentum sees these
    for seed, scale in enumerate([8.0, 1.0, 32.0]):
        with_gradients(ours, seed), with_gradients(scaled, seed)
        for parameter in scaled.parameters():
            parameter.grad *= scale
        second.grad_scale = torch.tensor(scale)
        first.step(), second.step()
    for a, b in zip(ours.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_frozen_and_unused_parameters_stay():
    net = network()
    net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    Muon(net.parameters(), **ADAMW).step()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
