"""The cluster of the tests itself, and who notices it."""

import os

import pytest
from slurm_cluster import GPUS, HOSTS

from hpc_hipgen.cluster.accounting import queued_jobs
from hpc_hipgen.cluster.site import load_site, slurm_answers
from hpc_hipgen.config import ConfigError


def test_only_those_who_name_the_cluster_get_it(cluster):
    """Slurm's commands are installed now; a launch elsewhere still runs on its own machine."""
    assert "SLURM_CONF" not in os.environ
    assert not slurm_answers() and not load_site("auto").uses_slurm()
    with pytest.raises(ConfigError, match="squeue does not answer"):
        queued_jobs(["1"])


def test_in_a_test_it_answers(slurm):
    assert slurm_answers() and load_site("auto").uses_slurm() and load_site("test").uses_slurm()
    assert set(slurm.call("sinfo", "-h", "-N", "-o", "%N").split()) == set(GPUS)


def test_node_names_stand_in_one_line_that_will_go(cluster):
    (line,) = [line for line in HOSTS.read_text().splitlines() if str(cluster.folder) in line]
    assert line.startswith("127.0.0.1 ") and set(GPUS) <= set(line.split())
