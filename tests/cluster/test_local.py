"""Jobs on this machine: how one that failed is told."""

from types import SimpleNamespace

import pytest
from submitit.core.utils import cloudpickle_dump

from hpc_hipgen.cluster import local
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.config import ConfigError

FAILED = "Traceback (most recent call last):\n  ...\nValueError: rank 2 says why"


def run_in(folder):
    return SimpleNamespace(folder=folder)


class Job:
    """A job of several ranks, as far as its pickles tell; rank 0 was killed, or waits."""

    job_id = "0"

    def __init__(self, folder, outcomes):
        self.num_tasks, self.ended = len(outcomes), False
        self.paths = [SimpleNamespace(result_pickle=folder / f"{k}.pkl") for k in range(3)]
        for paths, outcome in zip(self.paths, outcomes, strict=True):
            if outcome:
                cloudpickle_dump(outcome, paths.result_pickle)

    def task(self, number):
        return SimpleNamespace(paths=self.paths[number])

    def done(self):
        return self.ended


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([None, None, ("error", FAILED)], "ValueError: rank 2 says why"),
        ([("success", None), None, ("success", None)], "it was ended from outside"),
        ([("success", None)] * 3, None),
    ],
)
def test_the_reason_is_that_of_the_rank_which_has_one(tmp_path, outcomes, said):
    found = local._outcome(Job(tmp_path, outcomes), run_in(tmp_path))
    assert found is said or found.startswith(said)


def test_where_a_full_disk_took_no_reason_it_is_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "is_full", lambda folder: folder == tmp_path)
    found = local._outcome(Job(tmp_path, [None] * 3), run_in(tmp_path))
    assert found.startswith(f"{tmp_path}: the disk is full")


def test_another_launch_at_work_is_no_failure_of_the_stage(tmp_path, monkeypatch):
    told = "prepare is at work already (pid 7 on here): wait for it, or stop it first"
    monkeypatch.setattr(
        local, "_outcome", lambda *_: f"hpc_hipgen.cluster.calls.AtWorkError: {told}"
    )
    job = SimpleNamespace(paths=SimpleNamespace(stdout=None))
    executor = SimpleNamespace(submit=lambda call: job)
    monkeypatch.setattr(local, "local_executor", lambda *_: executor)
    monkeypatch.setattr(local, "follow", lambda *_: None)
    stage = SimpleNamespace(name="prepare", items=None, kind="cpu")
    with pytest.raises(ConfigError) as error:
        local._run_stage(run_in(tmp_path), stage, Site(), tmp_path)
    assert str(error.value) == told


def test_ranks_that_wait_for_one_that_failed_are_ended(tmp_path, monkeypatch):
    def stop(job, saves, shell):
        job.ended, asked[:] = True, [saves]

    asked = []
    monkeypatch.setattr(local, "_stop", stop)
    monkeypatch.setattr(local, "_OTHERS_SECONDS", 0.3)
    local.follow(Job(tmp_path, [None, None, ("error", FAILED)]), tmp_path / "log")
    assert asked == [False]
