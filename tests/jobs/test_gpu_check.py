"""The check of a GPU, where there is none or it is of no use."""

import torch

from hpc_hipgen.training import engine
from jobs import gpu_check


def test_no_gpu_is_fine_and_one_that_torch_cannot_use_is_not(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engine, "device", lambda: torch.device("cpu"))
    assert gpu_check.main([]) == 0
    assert "no GPU here" in capsys.readouterr().out

    def too_old():
        raise RuntimeError("node7 has GPUs for this process, and torch cannot use them")

    monkeypatch.setattr(engine, "device", too_old)
    assert gpu_check.main([]) == 1
    said = capsys.readouterr()
    assert "torch cannot use them" in said.err and "no GPU" not in said.out
