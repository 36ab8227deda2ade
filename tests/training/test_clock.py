"""The clock: everything is a pure function of the seed and the images seen."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.training.clock import ImageRandom, data_order


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6), epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation(n, seed, epoch):
    order = data_order(seed, epoch * n, n, n)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = data_order(0, 0, 60, 60), data_order(0, 60, 60, 60)
    assert (first != second).any() and (first != data_order(1, 0, 60, 60)).any()


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 50), count=st.integers(1, 40), cut=st.integers(0, 40))
def test_order_does_not_depend_on_how_it_is_cut(start, count, cut):
    cut = min(cut, count)
    parts = [data_order(3, start, cut, 17), data_order(3, start + cut, count - cut, 17)]
    assert np.concatenate(parts).tolist() == data_order(3, start, count, 17).tolist()


def draws(clock, seed=5):
    random = ImageRandom(seed, np.asarray(clock))
    return {
        "normal": random.normal("noise", 2, 3),
        "uniform": random.uniform("move", 4),
        "scalar": random.uniform("dropout"),
        "integers": random.integers("timestep", 1000),
    }


def test_an_image_has_its_numbers_whatever_the_batch():
    together, alone = draws([4, 900_000_000_000, 6]), draws([6])
    assert together["normal"].shape == (3, 2, 3) and together["scalar"].shape == (3,)
    assert together["integers"].dtype == torch.int64
    for name, values in together.items():
        assert torch.equal(values[2:], alone[name]), name
        assert not torch.equal(values[0], values[1]), name


def test_streams_and_seeds_differ_and_a_stream_repeats():
    random = ImageRandom(5, np.arange(3))
    noise = random.normal("noise", 8)
    assert torch.equal(noise, random.normal("noise", 8))
    for other in (random.normal("nois", 8), random.normal("esion", 8)):
        assert not torch.equal(noise, other)
    assert not torch.equal(noise, ImageRandom(6, np.arange(3)).normal("noise", 8))


def test_numbers_are_distributed_as_they_say():
    random = ImageRandom(0, np.arange(4000))
    normal, uniform = random.normal("a", 4), random.uniform("b")
    timesteps = random.integers("c", 10)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
    assert timesteps.bincount().tolist() == pytest.approx([400] * 10, rel=0.2)


def test_a_fork_has_numbers_of_its_own_for_the_same_images():
    random = ImageRandom(5, np.arange(3))
    forked = random.fork("prior")
    assert not torch.equal(random.normal("noise", 2), forked.normal("noise", 2))
    alone = ImageRandom(5, np.array([1])).fork("prior")
    assert torch.equal(forked.normal("noise", 2)[1:2], alone.normal("noise", 2))
    assert not torch.equal(forked.fork("prior").normal("noise", 2), forked.normal("noise", 2))
