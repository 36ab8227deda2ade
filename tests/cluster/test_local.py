"""Jobs on this machine: how one that failed is told."""

from types import SimpleNamespace

import pytest
from submitit.core.utils import cloudpickle_dump

from hpc_hipgen.cluster import local

FAILED = "Traceback (most recent call last):\n  ...\nValueError: rank 2 says why"


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
    found = local._outcome(Job(tmp_path, outcomes))
    assert found is said or found.startswith(said)


def test_ranks_that_wait_for_one_that_failed_are_ended(tmp_path, monkeypatch):
    def stop(job, saves, shell):
        job.ended, asked[:] = True, [saves]

    asked = []
    monkeypatch.setattr(local, "_stop", stop)
    monkeypatch.setattr(local, "_OTHERS_SECONDS", 0.3)
    local.follow(Job(tmp_path, [None, None, ("error", FAILED)]), tmp_path / "log")
    assert asked == [False]
