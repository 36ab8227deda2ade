"""A run folder, the fake stages on every path, and a Slurm that only writes down."""

import os
import sys
from pathlib import Path

import pytest

from hpc_hipgen.config import Experiment
from hpc_hipgen.run import Run

HERE = Path(__file__).parent


@pytest.fixture
def run(tmp_path: Path) -> Run:
    training = {"images": 64, "batch": 16, "lr": 1e-3}
    config = Experiment.model_validate({"name": "tiny", "ruler": {"training": training}})
    return Run.create(tmp_path / "results" / "tiny", config)


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch):
    """The module fake_stages, importable here and in the processes of jobs."""
    monkeypatch.syspath_prepend(str(HERE))
    path = os.pathsep.join(p for p in (str(HERE), os.environ.get("PYTHONPATH", "")) if p)
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("HIPGEN_PYTHON", sys.executable)  # jobs have the path only beside it
    import fake_stages

    return fake_stages


SBATCH = """#!/bin/bash
cd "$FAKE_SLURM"
if [[ $1 == --test-only ]]; then
    shift
    grep -h job-name "$1" >> tested
    [[ -f refuse ]] && grep -qf refuse "$1" && { echo "allocation failure: too many" >&2; exit 1; }
    exit 0
fi
env | grep -E '^(SLURM|SBATCH|SRUN|SUBMITIT)_' > environment
[[ -f refuse ]] && grep -qf refuse "$1" && { echo "sbatch: error: invalid partition" >&2; exit 1; }
number=$(( $(cat number 2> /dev/null || echo 100) + 1 ))
echo $number > number
cp "$1" $number.sh
echo "$number PENDING" >> queue
echo "Submitted batch job $number"
"""


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a fake sbatch keeps what is submitted; `queue` is what squeue shows."""
    folder = tmp_path / "slurm"
    commands = {
        "sbatch": SBATCH,
        "squeue": '#!/bin/bash\ncat "$FAKE_SLURM/queue" 2> /dev/null || true\n',
        "scancel": '#!/bin/bash\necho "$@" >> "$FAKE_SLURM/cancelled"\n',
        "sinfo": "#!/bin/bash\necho cpu\n",
        "srun": "#!/bin/bash\nexit 1\n",
    }
    (folder / "bin").mkdir(parents=True)
    for name, text in commands.items():
        path = folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder
