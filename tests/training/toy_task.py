"""A task of the training loop that takes no time: regression with a small network.

python tests/training/toy_task.py '[["FOLDER", {"zero_stage": 2, ...}], ...]' trains it in each
of the folders, for tests of several ranks; the setting "stop" is a clock time at which SIGTERM
comes, "bucket" what ranks add up at once.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpc_hipgen.config import Training
from hpc_hipgen.training import engine
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.interruption import Interrupted
from hpc_hipgen.training.loop import train
from hpc_hipgen.training.outcome import NonFiniteLossError
from hpc_hipgen.training.task import Task

SETTINGS = {
    "images": 96,
    "batch": 8,
    "lr": 2e-2,
    "warmup_images": 16,
    "precision": "fp32",
    "zero_stage": 1,
    "checkpoint_images": 32,
    "log_images": 8,
}


class ToyLoss(nn.Module):
    def __init__(self):
        super().__init__()
        # filters in the middle, which Muon takes
        filters = nn.Unflatten(1, (16, 1, 1)), nn.Conv2d(16, 16, 1), nn.Flatten()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.SiLU(), *filters, nn.SiLU(), nn.Linear(16, 1)
        )

    def forward(self, x, y):
        error = (self.layers(x)[:, 0] - y).abs()
        return error.float() ** 2, {"error": error.mean()}


class ToyTask(Task):
    """20 data items: the last batch of an epoch runs over into the next one.

    `at` maps a clock time to "stop" (SIGTERM), "crash", or is empty.
    """

    def __init__(self, first_weights=0, at=None, bad=()):
        torch.manual_seed(first_weights)
        self.module = ToyLoss()
        self.averages = {
            "export": WeightAverage(self.module, 0.9, warmup=True),
            "target": WeightAverage(self.module.layers, 0.5),
        }
        rng = np.random.default_rng(1)
        self.x = torch.from_numpy(rng.standard_normal((20, 6))).float()
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])
        self.x[list(bad)] = torch.nan
        self.size = len(self.x)
        self.at = at or {}
        self.seen = []

    def batch(self, indices, random):
        self.seen += random.clock
        what = self.at.get(random.clock[0])
        if what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "crash":
            raise OSError("the disk is gone")
        if what == "damaged":
            raise ValueError("item-3: unreadable")
        return {"x": self.x[indices] + 0.1 * random.normal("blur", 6), "y": self.y[indices]}

    def describe(self, indices):
        return [f"item-{i}" for i in indices]

    def state(self):
        """All weights and averages in one flat list."""
        modules = [self.module, *(a.module for a in self.averages.values())]
        return [p.detach().cpu().clone() for m in modules for p in m.parameters()]


def toy_train(folder, task=None, **settings):
    """Trains the toy; returns the task."""
    task = task or ToyTask()
    train(task, Training(**SETTINGS | settings), Path(folder), seed=7, title="toy")
    return task


def lines(folder):
    text = (Path(folder) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(folder):
    return [line["loss"] for line in lines(folder)]


if __name__ == "__main__":
    BUCKET = engine.BUCKET
    for folder, settings in json.loads(sys.argv[1]):
        stop = settings.pop("stop", None)
        engine.BUCKET = settings.pop("bucket", BUCKET)
        try:
            # other first weights than a test's own process has: they must not matter on a resume
            task = ToyTask(
                settings.pop("first_weights", 0), {stop: "stop"}, settings.pop("bad", ())
            )
            toy_train(folder, task, **settings)
        except Interrupted:
            assert stop is not None
        except NonFiniteLossError as error:
            (Path(folder) / "error.txt").write_text(str(error))
