"""What stops jobs on a cluster: the time limit, preemption, a signal, a lost node.

Toy trainings that would save at their end only are started once, side by side; each test disturbs
one of them. Their second starts must give the weights of a run that nothing disturbed.
"""

from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from slurm_cluster import wait_until
from slurm_runs import new_run, on, site_with
from slurm_stages import LONG, starts, steps, toy
from toy_task import toy_train
from warm_python import warm_ranks

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.training.checkpoint import complete_checkpoints

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

SPOT = {"partition": "spot", "hours": 1}
STAGES = {
    "limited": {"gpus": 1, "hours": 0.15},
    "preempted": SPOT | {"extra": {"nodelist": "spot-1"}},
    "stopped": {"gpus": 1},
    "lost": SPOT | {"gpus": 1, "extra": {"nodelist": "spot-2"}},
}
SITE = site_with(stages=STAGES)
UNDISTURBED = """
import sys
from hpc_hipgen.run import Run
from slurm_stages import train_toy

folder, *given = sys.argv[1:]
train_toy(Run(folder), *given)
"""


@pytest.fixture(scope="module")
def toys(cluster, tmp_path_factory):
    """The run and the ids of its jobs."""
    run = new_run(tmp_path_factory.mktemp("disturbed") / "tiny")
    graph = [toy("limited"), toy("preempted"), toy("stopped"), toy("lost", checkpoint_images=32)]
    with on(cluster):
        ids = submit_stages(run, graph, SITE)
    return SimpleNamespace(run=run, ids=ids)


@pytest.fixture(scope="module")
def disturbed(toys, cluster):
    """The toys, each disturbed in its way while it trained.

    All before the first test looks: on a busy machine a test may wait longer than a toy trains.
    """
    for name in STAGES:
        wait_until(lambda name=name: steps(toys.run, name) >= 8, f"steps of {name}", 400)
    with on(cluster):
        cut_short(cluster, toys.ids["limited"])
        toys.urgent = preempt(cluster)
        cluster.call("scancel", "--signal=TERM", toys.ids["stopped"])
        toys.seen_by_lost = steps(toys.run, "lost") * 8
        cluster.call("scontrol", "update", "nodename=spot-2", "state=down", "reason=test")
    yield toys
    with on(cluster):
        cluster.call("scontrol", "update", "nodename=spot-2", "state=resume", check=False)


def cut_short(cluster, number):
    """Sets the time limit of a job to one or two minutes from now."""
    minutes = int(cluster.call("squeue", "-h", "-o", "%M", "-j", number).split(":")[-2]) + 2
    cluster.call("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")


def preempt(cluster):
    """Submits a short job that takes spot-1 from whoever has it; returns its id."""
    urgent = ("--partition=urgent", "--nodelist=spot-1", "--exclusive", "--wrap=sleep 1")
    return cluster.call("sbatch", "--parsable", "--output=/dev/null", *urgent).strip()


def weights(run, name):
    return torch.load(run.path(f"{name}.pt"), weights_only=True)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def of_two_ranks(disturbed, tmp_path_factory):
    """The weights of two ranks that nothing disturbed, outside Slurm."""
    run, folder = disturbed.run, tmp_path_factory.mktemp("said")
    given = toy("whole", slow=False).arguments
    path = [TESTS.parent, TESTS / "slurm", TESTS / "training"]
    warm_ranks(UNDISTURBED, run.folder, *given, folder=folder, path=path)
    assert starts(run, "whole") == [(0, LONG["images"])]
    return weights(run, "whole")


@pytest.fixture(scope="module")
def of_one_rank(tmp_path_factory):
    return toy_train(tmp_path_factory.mktemp("whole") / "toy", **LONG).state()


def went_on_exactly(run, name):
    """True when a toy was cut, and its later starts repeated and left out nothing."""
    first, counts = zip(*starts(run, name), strict=True)
    ends = list(accumulate(counts))
    return (
        len(counts) > 1
        and min(counts) > 0
        and list(first) == [0, *ends[:-1]]
        and ends[-1] == LONG["images"] == 8 * steps(run, name)
    )


def test_preemption_saves_and_the_job_goes_on_when_the_node_is_free(disturbed, slurm, of_two_ranks):
    number = disturbed.ids["preempted"]
    assert slurm.wait(disturbed.urgent, number) == ["COMPLETED", "COMPLETED"]
    assert slurm.job(number)["Restarts"] == "1"
    assert went_on_exactly(disturbed.run, "preempted")
    assert same(weights(disturbed.run, "preempted"), of_two_ranks)


def test_a_terminated_job_saves_and_stays_away_until_it_is_submitted(disturbed, slurm, of_one_rank):
    run, number = disturbed.run, disturbed.ids["stopped"]
    assert slurm.wait(number) == ["FAILED"]
    assert slurm.job(number)["Restarts"] == "0" and run.done("stopped") is None
    ((_, before),) = starts(run, "stopped")
    (saved,) = complete_checkpoints(run.path("stopped", "checkpoints"))
    assert 0 < before == int(saved.name) < LONG["images"]
    quick = toy("stopped", slow=False)
    again = submit_stages(run, [quick], SITE)["stopped"]
    assert again != number and slurm.wait(again) == ["COMPLETED"]
    assert went_on_exactly(run, "stopped")
    assert same(weights(run, "stopped"), of_one_rank)


def test_a_lost_node_costs_the_work_since_the_last_checkpoint(disturbed, slurm, of_one_rank):
    run, number = disturbed.run, disturbed.ids["lost"]
    wait_until(lambda: slurm.job(number)["Restarts"] == "1", "the requeue", 180)
    slurm.call("scontrol", "update", "nodename=spot-2", "state=resume")
    assert slurm.wait(number) == ["COMPLETED"]
    # the first start wrote what it did only if the node let it save before it was killed
    resumed, rest = starts(run, "lost")[-1]
    least = disturbed.seen_by_lost - 32 - 8
    assert least <= resumed and resumed + rest == LONG["images"] and rest > 0
    assert same(weights(run, "lost"), of_one_rank)


def test_at_its_time_limit_a_job_saves_and_puts_itself_back(disturbed, slurm, of_one_rank):
    number = disturbed.ids["limited"]
    wait_until(lambda: int(slurm.job(number)["Restarts"]) > 0, "the requeue", 150)
    # time for the rest of it, unless it has ended already; its second start has the short limit
    # too, and may have been put back by it while other tests ran
    slurm.call("scontrol", "update", f"JobId={number}", "TimeLimit=9", check=False)
    assert slurm.wait(number) == ["COMPLETED"]
    assert went_on_exactly(disturbed.run, "limited")
    assert same(weights(disturbed.run, "limited"), of_one_rank)
