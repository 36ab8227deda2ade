"""Runs and sites for tests on the cluster, and this process as its client."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from slurm_cluster import Cluster

from hpc_hipgen.cluster.site import Site, load_site
from hpc_hipgen.config import Experiment
from hpc_hipgen.run import Run

HERE = Path(__file__).parent


@contextmanager
def on(cluster: Cluster) -> Iterator[None]:
    """In the block, and in jobs submitted from it, Slurm is this cluster's."""
    folders = [str(HERE), str(HERE.parent / "training"), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
        patch.setenv("HIPGEN_PYTHON", sys.executable)  # jobs have the path only beside it
        yield


def site_with(**changes) -> Site:
    """The site of the test cluster, changed."""
    return Site.model_validate(load_site("test").model_dump(exclude_unset=True) | changes)


def new_run(folder: Path) -> Run:
    """A run folder for stages that are not those of its experiment."""
    training = {"images": 64, "batch": 16, "lr": 1e-3}
    config = Experiment.model_validate({"name": "tiny", "ruler": {"training": training}})
    return Run.create(folder, config)
