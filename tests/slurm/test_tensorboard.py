"""`sbatch sbatch/tensorboard.sh`: the page is there, and ends with the job."""

import re
import sys
import urllib.request
from pathlib import Path

import pytest
from slurm_cluster import wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_job_serves_and_says_how_to_see_it(run, slurm, tmp_path):
    out = tmp_path / "out"
    number = slurm.call(
        "sbatch", "--parsable", f"--output={out}", "sbatch/tensorboard.sh", str(run.folder),
        cwd=ROOT, HIPGEN_PYTHON=sys.executable, HIPGEN_SITE="test", HIPGEN_LOGIN="login",
    ).strip()  # fmt: skip
    pattern = re.compile(r"ssh -N -L (\d+):(\S+):\1 \S+@login")
    wait_until(lambda: out.is_file() and pattern.search(out.read_text()), "the line to paste", 90)
    port, host = pattern.search(out.read_text()).groups()
    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=30) as page:
        assert page.status == 200
    slurm.call("scancel", number)
    slurm.wait(number)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{host}:{port}/", timeout=5)
