"""Arrays: many tasks, none lost, none twice; those that failed alone again."""

import os
import time
from dataclasses import replace

import pytest
from slurm_cluster import wait_until
from slurm_runs import site_with
from slurm_stages import ARRAY, ITEMS, first_items, item_file

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.cluster.stage_files import failures

SITE = site_with(array_tasks=len(ITEMS), array_parallel=8, retries=0)
BROKEN = (7, 20)


def started(run):
    """The number of each item that was begun, in the order in which they were."""
    path = run.path("starts.txt")
    text = path.read_text() if path.is_file() else ""
    return [int(line.split()[0]) for line in text.splitlines()]


@pytest.mark.slow
def test_a_task_that_fails_is_tried_again_by_itself(run, slurm):
    for number in (2, 3):
        run.path(f"broken-{number}").touch()
    stage = replace(ARRAY, items=first_items)
    job = submit_stages(run, [stage], site_with(array_tasks=4, retries=1))["array"]
    wait_until(lambda: started(run).count(3) == 1, "the first failure", 60)
    run.path("broken-3").unlink()
    slurm.wait(job)
    assert sorted(started(run)) == [0, 1, 2, 2, 3, 3], "once again, and no more"
    assert stage.missing(run) == [("row", 2)] and len(failures(run, "array")) == 1


@pytest.mark.slow
def test_every_task_of_an_array_runs_once_and_failed_ones_alone_again(
    run, slurm, capsys, record_property
):
    for number in BROKEN:
        run.path(f"broken-{number}").touch()
    began = time.monotonic()
    job = submit_stages(run, [ARRAY], SITE)["array"]
    slurm.wait(job)
    each = (time.monotonic() - began) / len(ITEMS)
    assert sorted(started(run)) == [number for _, number in ITEMS]
    assert ARRAY.missing(run) == [("row", number) for number in BROKEN]
    assert len(failures(run, "array")) == len(BROKEN)
    before = {p: p.stat().st_mtime_ns for p in run.path("items").iterdir()}

    for number in BROKEN:
        run.path(f"broken-{number}").unlink()
    capsys.readouterr()
    again = submit_stages(run, [ARRAY], SITE)["array"]
    assert f"[{len(BROKEN)} tasks]" in capsys.readouterr().out
    assert set(slurm.wait(again)) == {"COMPLETED"}
    assert sorted(started(run)[len(ITEMS) :]) == list(BROKEN)
    assert ARRAY.done(run) and not failures(run, "array")
    assert before.items() <= {p: p.stat().st_mtime_ns for p in run.path("items").iterdir()}.items()
    assert all(item_file(run, item).is_file() for item in ITEMS)
    assert submit_stages(run, [ARRAY], SITE) == {}
    record_property(
        "figure",
        f"{len(ITEMS)} array tasks, {SITE.array_parallel} at once on {os.cpu_count()} cores: "
        f"{each:.2f} s of overhead for each",
    )
