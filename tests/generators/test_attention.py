"""Which attention a GPU is given."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

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


def test_an_a100_tries_xformers_and_says_when_it_fails(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))

    def broken(*_, **__):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(torch, "randn", broken)
    assert not attention.uses_xformers()
    assert "no kernel" in caplog.text
