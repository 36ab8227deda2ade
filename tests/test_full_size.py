"""The full-size step against diffusers', here on a network that is none."""

from types import SimpleNamespace

import pytest
from diffusers import UNet2DConditionModel

from hpc_hipgen.performance import full_size


@pytest.fixture
def small(monkeypatch):
    """Everything but the sizes is as on a GPU."""

    def build(student):
        more = {"time_cond_proj_dim": 256} if student else {}
        return UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 32), cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4, **more,
        )  # fmt: skip

    shape = SimpleNamespace(build=build, latent=(4, 8, 8), text=(77, 32))
    monkeypatch.setattr(full_size, "unet_shape", lambda *_: shape)
    monkeypatch.setattr(full_size, "VAE", full_size.VAE | {"block_out_channels": (32,) * 4})
    monkeypatch.setattr(full_size, "TEXT", full_size.Text(hidden_size=32, max_length=77))
    load = full_size.load_experiment
    monkeypatch.setattr(
        full_size,
        "load_experiment",
        lambda path, changed: load(path, [*changed, "data.resolution=64"]),
    )


@pytest.mark.parametrize("checkpointing", [True, False])
def test_both_steps_run_turn_by_turn(small, checkpointing):
    found = full_size.against_diffusers(images=2, steps=2, checkpointing=checkpointing)
    assert found["ratio"] > 0 and len(found) == 3


def test_the_command_prints_the_ratio(small, capsys):
    assert full_size.main(["--images", "2", "--steps", "1", "--against", "diffusers"]) == 0
    assert "ratio" in capsys.readouterr().out
