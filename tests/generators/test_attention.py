"""Which attention a GPU is given."""

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    XFormersAttnProcessor,
)
from torch import nn

from hpc_hipgen.generators import attention


@pytest.fixture(autouse=True)
def asked_anew():
    attention.uses_xformers.cache_clear()
    yield
    attention.uses_xformers.cache_clear()


def test_hopper_takes_torchs_and_tries_nothing(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert not attention.uses_xformers() and not caplog.records
    assert isinstance(attention.best_attention(), AttnProcessor2_0)


@pytest.mark.parametrize("width, processor", [(8, XFormersAttnProcessor), (12, AttnProcessor2_0)])
def test_heads_that_xformers_has_no_kernel_for_take_torchs(monkeypatch, width, processor):
    """Of 2 bytes a number, rows begin at multiples of 16 bytes."""
    monkeypatch.setattr(attention, "uses_xformers", lambda: True)
    unet = nn.ModuleList(
        [Attention(16, heads=2, dim_head=8), Attention(24, heads=2, dim_head=width)]
    )
    chosen = []
    unet.set_attn_processor = chosen.append
    attention.use_best_attention(unet)
    assert isinstance(chosen[0], processor)


def test_an_a100_tries_xformers_and_says_when_it_fails(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))

    def broken(*_, **__):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(torch, "randn", broken)
    assert not attention.uses_xformers()
    assert "no kernel" in caplog.text
