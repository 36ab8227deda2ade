"""A training that is asked to stop while it makes its first batch."""

import os
import signal

import pytest

from hpc_hipgen.training.interruption import Interrupted
from hpc_hipgen.training.loop import train


def train_interrupted(task, training, folder, title):
    """Trains until SIGTERM, which comes with the first batch, has saved the state in `folder`."""
    inner = task.batch

    def stop(indices, random):
        os.kill(os.getpid(), signal.SIGTERM)
        return inner(indices, random)

    task.batch = stop
    with pytest.raises(Interrupted):
        train(task, training, folder, seed=3, title=title)
