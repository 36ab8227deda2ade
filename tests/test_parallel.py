"""Work in several processes, and what becomes of them when it is cut short."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from hpc_hipgen.parallel import LEAST, run_parallel, usable_cpus

ROOT = Path(__file__).parents[1]


@pytest.fixture
def linger(monkeypatch, tmp_path):
    """Work that takes a minute, or fails; tmp_path then has a file for each process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import lingering

    return partial(lingering.linger, tmp_path)


def workers(folder):
    return [int(path.name) for path in folder.iterdir()]


def gone(pids, seconds=15):
    """True when none of the processes is left within the time."""
    for _ in range(seconds * 10):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_results_come_in_the_order_of_the_items():
    assert list(run_parallel(abs, range(-LEAST, 0), processes=2)) == list(range(LEAST, 0, -1))


def test_a_failure_ends_what_the_other_processes_have_begun(tmp_path, linger):
    begin = time.monotonic()
    with pytest.raises(ValueError, match="not this one"):
        list(run_parallel(linger, [True] * 4 + [False] * LEAST, processes=2))
    assert time.monotonic() - begin < 40 and gone(workers(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_a_parent_that_is_stopped(tmp_path, number):
    code = (
        "import signal; from functools import partial; from pathlib import Path\n"
        "from hpc_hipgen.parallel import run_parallel; from lingering import linger\n"
        # a shell that runs the tests in the background has it ignored, which is inherited
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"work = partial(linger, Path({str(tmp_path)!r}))\n"
        "list(run_parallel(work, [False] * 20, processes=2))\n"
    )
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(workers(tmp_path)) < 2:
        time.sleep(0.1)
        assert parent.poll() is None
    parent.send_signal(number)
    _, said = parent.communicate(timeout=30)  # which ends with the last process that has its pipe
    assert parent.returncode != 0 and gone(workers(tmp_path))
    assert said.count("Traceback") == (number == signal.SIGINT)


def test_a_job_uses_no_more_cpus_than_it_asked_for(monkeypatch):
    """Where Slurm binds no cores, all of the node may be used."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setenv("HIPGEN_CPUS", "2")
    assert usable_cpus() == 2
    monkeypatch.delenv("HIPGEN_CPUS")
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert usable_cpus() == 64
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert usable_cpus() == 4
