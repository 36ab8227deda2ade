"""Moving averages of weights."""

import numpy as np
import pytest
import torch
from torch import nn

from hpc_hipgen.config import Training
from hpc_hipgen.training.average import WeightAverage


def follow(average, values):
    for value in values:
        with torch.no_grad():
            average.source.weight.fill_(value)
        average.update()
    return float(average.module.weight[0, 0])


def linear(value):
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, value)
    return module


def test_it_is_the_exponential_average():
    average = WeightAverage(linear(8.0), 0.75)
    expected = 8.0
    for value in (4.0, 2.0, 7.0):
        expected += 0.25 * (value - expected)
    assert follow(average, [4.0, 2.0, 7.0]) == pytest.approx(expected, abs=1e-6)


def test_without_decay_it_is_the_weights():
    assert follow(WeightAverage(linear(8.0), 0.0, warmup=True), [3.0, 5.0]) == 5.0


def test_warmup_forgets_the_first_weights():
    slow, warm = WeightAverage(linear(100.0), 0.999), WeightAverage(linear(100.0), 0.999, True)
    assert follow(slow, [1.0] * 50) > 90
    assert follow(warm, [1.0] * 50) == pytest.approx(1, abs=1e-3)
    assert warm.steps == 50


def test_an_average_that_looks_seldom_is_nearly_the_same():
    rng = np.random.default_rng(0)
    weights = np.sin(np.arange(2001) / 300) + 0.1 * rng.standard_normal(2001)
    settings = {"images": 16_008, "batch": 8, "lr": 1e-3, "ema_images": 1600}
    seldom = WeightAverage.for_export(linear(0.0), Training(**settings))
    always = WeightAverage(linear(0.0), seldom.decay, warmup=True)
    assert seldom.every == 8 and seldom.decay == 1 - 8 / 1600
    assert follow(seldom, weights[:5]) == follow(always, weights[:5]), "a young one misses nothing"
    ends = [follow(average, weights[5:]) for average in (seldom, always)]
    assert abs(ends[0] - ends[1]) < 0.02
    short = Training(**settings | {"ema_images": 160})
    assert WeightAverage.for_export(linear(0.0), short).every == 1


def test_it_takes_no_gradients_and_follows_buffers():
    source = nn.BatchNorm1d(2)
    average = WeightAverage(source, 0.5)
    assert not any(p.requires_grad for p in average.module.parameters())
    source(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    average.update()
    assert torch.equal(average.module.running_mean, source.running_mean)
    assert not average.module.training and source.training


def test_its_state_goes_on():
    one, other = WeightAverage(linear(8.0), 0.9, True), WeightAverage(linear(0.0), 0.9, True)
    follow(one, [1.0, 2.0])
    other.load_state_dict(one.state_dict())
    assert follow(one, [5.0, 6.0]) == follow(other, [5.0, 6.0])
    assert one.steps == other.steps == 4


def test_what_is_not_trained_can_be_left_out_of_its_state():
    def network(frozen, trained):
        both = nn.Sequential(linear(frozen), linear(trained))
        both[0].requires_grad_(False)
        return WeightAverage(both, 0.5)

    one, other = network(8.0, 4.0), network(8.0, 0.0)
    with torch.no_grad():
        one.source[1].weight.fill_(2.0)
    one.update()
    state = one.state_dict(frozen=False)
    assert set(state["module"]) == {"1.weight", "1.bias"}
    other.load_state_dict(state)
    assert float(other.module[1].weight) == 3.0 and float(other.module[0].weight) == 8.0
    other.load_state_dict(network(7.0, 1.0).state_dict())
    assert float(other.module[0].weight) == 7.0, "where they are in it, they count"
