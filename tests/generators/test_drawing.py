"""Of a run's generators, one is in memory at a time."""

import weakref

import torch
from torch import nn

from hpc_hipgen.generators.drawing import OneDrawer
from hpc_hipgen.generators.sampling import _autocast


class Stub:
    """A drawer whose network computes in bf16, as that of a pipeline on a GPU."""

    def __init__(self):
        self.network = nn.Linear(2, 2)
        _autocast(self.network, "forward")


def test_the_one_before_is_gone_when_the_next_is_loaded():
    alive = []

    def load(name):
        assert all(network() is None for network in alive)
        drawer = Stub()
        alive.append(weakref.ref(drawer.network))
        return drawer

    drawers = OneDrawer(load)
    for name in ("teacher", "teacher", "student", "teacher"):
        assert drawers.of(name).network(torch.zeros(1, 2)).dtype == torch.float32
    assert len(alive) == 3, "that of the same name is kept"
