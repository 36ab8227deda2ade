"""Samples that a stage draws, one generator after another."""

import shutil
import weakref

import numpy as np

from hpc_hipgen.pipeline import report_items, sample_shard
from hpc_hipgen.run import Run
from jobs import sample


class Drawer:
    """Stands for a pipeline."""


def test_one_generator_is_held_at_a_time(tiny_run, tmp_path, monkeypatch):
    """Several of Stable Diffusion's size do not fit into a GPU."""
    run = Run(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    made, most = [], []

    def drawer_of(run, model):
        drawer = Drawer()
        made.append((model, weakref.ref(drawer)))
        most.append(sum(there() is not None for _, there in made))
        return drawer

    def drawn(run, drawer, specs):
        return [np.zeros((32, 32), np.uint8) for _ in specs], {"images": len(specs)}

    monkeypatch.setattr(sample, "drawer_of", drawer_of)
    monkeypatch.setattr(sample, "_drawn_at_cost", drawn)
    items = [item for item in report_items(run) if item[0] not in ("ruler", "round_trip")]
    for item in items:
        sample_shard(run, item).unlink()
    assert sample.sample_items(run, items) == len(items) > len(made)
    assert [model for model, _ in made] == ["llcm", "stable_diffusion"]
    assert most == [1, 1]
