import sys
from pathlib import Path

import pytest
import torch

from hpc_hipgen.training import engine

# pytest's importlib mode puts no test folder on the path; `toy_task` is shared.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _linear_of_torch(monkeypatch):
    """Takes back the linear layer, of other last bits, that ZeRO stage 3 puts in torch's place."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)


@pytest.fixture(scope="module", autouse=True)
def every_stage():
    """Has one rank use the ZeRO stage it is given, as several do; returns what it replaces."""
    with pytest.MonkeyPatch.context() as patch:
        original = engine.zero_stage
        patch.setattr(engine, "zero_stage", lambda training: training.zero_stage)
        yield original
