"""The rate of the clock, and that which follows the loss: the same after a stop."""

import math

import pytest
from toy_task import ToyTask, lines, losses, toy_train

from hpc_hipgen.config import Training
from hpc_hipgen.training.interruption import Interrupted
from hpc_hipgen.training.learning_rate import LearningRate


def rate(**plateau):
    settings = {"images": 1000, "batch": 2, "lr": 1.0, "schedule": "plateau", "warmup_images": 4}
    return LearningRate(Training(**settings, plateau=plateau))


def test_the_rate_rises_then_falls_to_a_hundredth():
    def lr(images, schedule="cosine"):
        settings = {"images": 1100, "batch": 2, "lr": 1.0, "warmup_images": 100}
        return LearningRate(Training(**settings, schedule=schedule)).at(images)

    warm = [lr(i) for i in range(0, 100, 10)]
    assert warm == sorted(warm) and 0 < warm[0] < 0.015 and warm[-1] < 1.0
    assert lr(100) == 1.0
    assert lr(600) == pytest.approx(0.01 + 0.99 / 2)
    assert lr(350) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)
    assert lr(1100) == lr(5000) == pytest.approx(0.01)
    for steady in ("constant", "plateau"):
        assert lr(5000, steady) == 1.0 and lr(49, steady) == lr(49)


def test_the_rate_falls_when_the_mean_loss_does_not():
    found = rate(images=4, patience=1, factor=0.5)
    assert found.at(0) == pytest.approx(0.2), "warm-up is the clock's"
    seen = []
    for step, loss in enumerate([4, 2, 3, 3, 9, 0, 5, 5, 4, 4, 3, 1]):  # means 3 3 4.5 5 4 2
        found.observe(loss, 2)
        seen.append(found.at(10 + 2 * step))
    # 3, then 3 and 4.5 are no better: halved; so are 5 and 4; then 2 is the best
    assert seen == [1] * 5 + [0.5] * 4 + [0.25] * 3


def test_other_schedules_know_no_loss():
    found = LearningRate(Training(images=100, batch=2, lr=1.0, schedule="constant"))
    for _ in range(50):
        found.observe(1.0, 2)
    assert found.at(99) == 1.0 and found.state_dict() == {}


def test_a_stopped_run_lowers_its_rate_at_the_same_image(tmp_path):
    settings = {
        "schedule": "plateau",
        "plateau": {"images": 16, "patience": 0, "factor": 0.5},
        "lr": 0.3,  # too high: the loss of some window is above the one before
    }
    whole, cut = tmp_path / "whole" / "toy", tmp_path / "cut" / "toy"
    toy_train(whole, **settings)
    rates = [line["lr"] for line in lines(whole)]
    assert len(set(rates[2:])) > 1, "the rate was lowered after the warm-up"
    for time in (32, 64):  # both in the middle of a window
        with pytest.raises(Interrupted):
            toy_train(cut, ToyTask(at={time: "stop"}), **settings)
    toy_train(cut, **settings)
    assert [line["lr"] for line in lines(cut)] == rates and losses(cut) == losses(whole)


def test_after_a_stop_the_means_without_a_better_one_still_count():
    before, after = (rate(images=4, patience=2, factor=0.5) for _ in range(2))
    for _ in range(7):  # the best, two that are no better, and half of the next
        before.observe(1.0, 2)
    after.load_state_dict(before.state_dict())
    assert after.at(500) == 1.0
    after.observe(1.0, 2)
    assert after.at(500) == 0.5
