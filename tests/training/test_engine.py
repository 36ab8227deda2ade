"""DeepSpeed's settings, and what each rank holds."""

import pytest
from pydantic import ValidationError

from hpc_hipgen.config import Training
from hpc_hipgen.training import engine


def training(**more):
    return Training(**{"images": 64, "batch": 16, "lr": 1e-3} | more)


def test_the_batch_is_shared_out(monkeypatch):
    assert engine.micro_batch(training()) == 16
    assert engine.micro_batch(training(micro_batch=4)) == 4
    monkeypatch.setattr(engine, "world_size", lambda: 8)
    assert engine.micro_batch(training()) == 2
    assert engine.micro_batch(training(micro_batch=4)) == 2, "a rank has no more than its share"
    settings = engine.deepspeed_settings(training(micro_batch=1))
    assert settings["train_batch_size"] == 16
    assert settings["train_micro_batch_size_per_gpu"] == 1


@pytest.mark.parametrize(
    "ranks, more, words",
    [(3, {}, "16 does not divide among 3"), (2, {"batch": 24, "micro_batch": 8}, "multiple")],
)
def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, ranks, more, words):
    monkeypatch.setattr(engine, "world_size", lambda: ranks)
    with pytest.raises(ValueError, match=words):
        engine.micro_batch(training(**more))


def test_bf16_is_autocast_over_fp32_weights():
    settings = engine.deepspeed_settings(training(precision="bf16", zero_stage=2, clip=0.5))
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in settings and settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage"] == 2
    assert not engine.deepspeed_settings(training(precision="fp32"))["torch_autocast"]["enabled"]


def test_bf16_at_stage_0_is_refused():
    with pytest.raises(ValidationError, match="zero_stage: 0 with bf16"):
        training(precision="bf16", zero_stage=0)


def test_joining_twice_is_joining_once():
    engine.init_distributed()
    engine.init_distributed()
    assert (engine.rank(), engine.world_size()) == (0, 1)
