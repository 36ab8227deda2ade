import subprocess
import sys
import time
from pathlib import Path

from hpc_hipgen.cluster import processes


def test_a_job_does_not_outlive_its_launcher(tmp_path):
    """The job's process ends within seconds of its launcher's end, and not before."""
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = f"{launcher.pid} {processes._started(launcher.pid)}"
    code = (
        "import time; from hpc_hipgen.cluster import processes\n"
        "processes.end_with_launcher(0.05); print('up', flush=True); time.sleep(60)"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", processes.LAUNCHER_VARIABLE: identity},
    )
    assert job.stdout.readline() == "up\n"
    time.sleep(0.2)
    assert job.poll() is None
    launcher.communicate(b"\n")
    assert job.wait(20) == 1
