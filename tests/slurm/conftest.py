"""A real Slurm for the session, installed and started here; without one the folder is skipped."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_hipgen.run import Run

HERE = Path(__file__).parent
# pytest's importlib mode puts no test folder on the path
sys.path[:0] = [str(HERE), str(HERE.parent / "training")]

from debian import Unavailable  # noqa: E402
from slurm_cluster import Cluster, running_cluster  # noqa: E402
from slurm_runs import new_run, on  # noqa: E402


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster; skips all that asks for it where there can be none."""
    try:
        with running_cluster() as found:
            yield found
    except Unavailable as error:
        pytest.skip(f"no Slurm here: {error}")


@pytest.fixture
def slurm(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with this process as its client."""
    with on(cluster):
        yield cluster


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "results" / "tiny")
