import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from stock_pipelines import STOCK, asked_of_stock


@pytest.fixture(scope="session")
def stock_process(tmp_path_factory):
    """Runs a script in a process that has no code of this project.

    `stock_process(script, asked)` hands it what is asked for, as JSON, and the path of an npz, and
    returns the arrays that it stored there and what it said.
    """

    def run(script, asked):
        path = tmp_path_factory.mktemp("stock") / "images.npz"
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(asked), str(path)],
            cwd="/",
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with np.load(path) as stored:
            return dict(stored), done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def draws_what_was_stored(stock_process):
    """Whether a stock Stable Diffusion draws a row of a run anew, to the bit."""
    from hpc_hipgen.evaluation.samples import read_samples

    def check(run, row, model):
        samples = read_samples(run.path("samples", row, "shard-00000.tar"))[:3]
        asked = {row: (str(run.path(model, "export")), *asked_of_stock(samples))}
        drawn, _ = stock_process(STOCK, asked)
        return all(np.array_equal(a, b.image) for a, b in zip(drawn[row], samples, strict=True))

    return check


@pytest.fixture(scope="session")
def stock(tiny_run, stock_process):
    """What a process that has no code of this project draws for the first prompts of each row."""
    from hpc_hipgen.evaluation.samples import read_samples

    asked, stored = {}, {}
    for row, model in (("stable_diffusion", "stable_diffusion"), ("llcm_2", "llcm")):
        samples = read_samples(tiny_run.path("samples", row, "shard-00000.tar"))[:3]
        stored[row] = samples
        asked[row] = (str(tiny_run.path(model, "export")), *asked_of_stock(samples))
    drawn, said = stock_process(STOCK, asked)
    return SimpleNamespace(drawn=drawn, stored=stored, said=said)
