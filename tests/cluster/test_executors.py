import os
import subprocess
import sys

import pytest

from hpc_hipgen import ROOT
from hpc_hipgen.cluster.executors import (
    count_gpus,
    job_environment,
    job_variables,
    local_processes,
    local_variables,
    restore_gpus,
    sbatch_script,
    slurm_executor,
    slurm_parameters,
    submission_environment,
    submission_folder,
)
from hpc_hipgen.cluster.site import Resources, Site, load_site
from hpc_hipgen.pipeline import Stage


def test_submission_hides_the_enclosing_job_and_keeps_the_cluster(monkeypatch):
    for name in ("SLURM_NTASKS", "SBATCH_GRES", "SRUN_CPUS_PER_TASK", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_JWT", "token")  # who asks
    with job_environment({}):
        inside = dict(os.environ)
    hidden = [n for n in inside if n.startswith(("SLURM", "SBATCH", "SRUN", "SUBMITIT"))]
    assert sorted(hidden) == ["SLURM_CONF", "SLURM_JWT"]
    assert os.environ["SLURM_NTASKS"] == os.environ["SUBMITIT_EXECUTOR"] == "1"


@pytest.mark.parametrize("visible, gpus, kept", [("", 1, False), ("", 0, True), ("2", 1, True)])
def test_that_the_login_node_hides_its_gpus_is_not_handed_on(monkeypatch, visible, gpus, kept):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with submission_environment(Site(), Resources(gpus=gpus, gres="")):
        assert ("CUDA_VISIBLE_DEVICES" in os.environ) is kept
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_every_submission_has_a_folder_of_its_own(tmp_path):
    (tmp_path / "failed.json").touch()
    assert [submission_folder(tmp_path).name for _ in range(3)] == ["001", "002", "003"]


def test_a_training_job_has_a_process_per_gpu():
    site = load_site("a100")
    need = site.of(Stage("train-llcm", "", "train", model="llcm"))
    script = sbatch_script(slurm_parameters("t", need, site, ["7", "8"]))
    lines = script.splitlines()
    for option in (
        "--ntasks-per-node=8",
        "--gres=gpu:a100:8",
        "--dependency=afterok:7:8",
        "--kill-on-invalid-dep=yes",
        "--requeue",
        "--time=1440",
        "--mem=491520M",
        "--signal=USR2@400",
    ):
        assert f"#SBATCH {option}" in lines
    assert not any("gpus-per-task" in line or "wckey" in line for line in lines)
    assert "--cpus-per-task=8" in lines[-1]  # srun does not inherit it
    assert "--wait=0" in lines[-1]  # rank 0 exports when the others have ended
    assert """bash -c 'trap "" USR2; exec "$0" "$@"' """ + sys.executable in lines[-1]


def test_an_array_is_throttled():
    site = load_site("a100")
    script = sbatch_script(
        slurm_parameters("s", site.of(Stage("sample", "", "gpu")), site), tasks=16
    )
    assert "#SBATCH --array=0-15%8" in script
    assert "--dependency" not in script


def test_a_site_that_names_nothing_asks_for_nothing():
    script = sbatch_script(slurm_parameters("s", Resources(), Site()))
    for option in ("--partition", "--account", "--qos", "--mem", "--gres", "--gpus"):
        assert f"#SBATCH {option}" not in script


def test_other_options_and_quoting_reach_the_script():
    need = Resources(extra={"exclude": "node[1-2]", "exclusive": True}, gpus=2)
    site = Site(env={"NAME": "two words"}, setup=["module load cuda"])
    lines = sbatch_script(slurm_parameters("s", need, site)).splitlines()
    assert "#SBATCH --exclude='node[1-2]'" in lines
    assert "#SBATCH --exclusive" in lines
    assert "#SBATCH --gpus-per-node=2" in lines
    assert lines.index("module load cuda") < lines.index("export NAME='two words'")


def test_what_a_site_does_not_want_is_left_out():
    need = Resources(extra={"requeue": False, "exclusive": False})
    lines = sbatch_script(slurm_parameters("s", need, Site())).splitlines()
    options = [line for line in lines if "requeue" in line or "exclusive" in line]
    assert options == ["#SBATCH --no-requeue"]


def test_jobs_import_this_clone_and_never_ask_the_hub(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.delenv("HIPGEN_PYTHON", raising=False)
    variables = job_variables(Site())
    assert variables["PYTHONPATH"] == str(ROOT)
    monkeypatch.setenv("HIPGEN_PYTHON", "/bin/true")  # a python of the user's, with what it needs
    variables = job_variables(Site())
    assert variables["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
    assert '"$@"\' /bin/true -u -m submitit' in sbatch_script({})
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["PYTHONNOUSERSITE"] == "1", "~/.local comes before conda's packages"
    monkeypatch.setenv("PYTHONNOUSERSITE", "")  # where a user keeps them there
    assert job_variables(Site())["PYTHONNOUSERSITE"] == ""


@pytest.mark.parametrize("visible", [None, "0,2", "GPU-8f", ""])
def test_gpus_pass_submitit(monkeypatch, visible):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with local_variables(Site(), {}):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what submitit's local executor sets
        restore_gpus()
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert seen == visible == os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1,5", 3)])
def test_gpus_are_counted_without_torch(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count
    assert local_processes("train") == max(1, count)
    assert local_processes("gpu") == local_processes("cpu") == 1


def test_a_job_is_warned_by_the_signal_that_it_handles_whatever_the_user_has_set():
    code = (
        "from hpc_hipgen.cluster.executors import sbatch_script, slurm_parameters\n"
        "from hpc_hipgen.cluster.site import Resources, Site\n"
        "print(sbatch_script(slurm_parameters('s', Resources(), Site())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"SUBMITIT_PREEMPT_SIGNAL": "USR1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert "#SBATCH --signal=USR2@120" in lines and "export SUBMITIT_PREEMPT_SIGNAL=USR2" in lines


@pytest.mark.parametrize(
    ("gres", "asked"),
    [(None, ["--gpus-per-node=2"]), ("gpu:{n}", ["--gres=gpu:2"]), ("", [])],
)
def test_gpus_are_asked_for_as_the_site_spells_them(gres, asked):
    site = Site(resources={"train": Resources(gpus=2, gres=gres)}, address="{host}i")
    need = site.of(Stage("train-llcm", "", "train", model="llcm"))
    lines = sbatch_script(slurm_parameters("s", need, site)).splitlines()
    assert [line.split()[1] for line in lines if "--g" in line and "SBATCH" in line] == asked
    assert "#SBATCH --ntasks-per-node=2" in lines
    assert "export HIPGEN_ADDRESS='{host}i'" in lines
    assert "--export=ALL" in lines[-1], "srun hands variables on after sbatch --export=NONE, too"


def test_a_job_has_the_threads_and_the_minutes_that_it_asks_for():
    need = Resources(cpus=6, hours=1.25)
    lines = sbatch_script(slurm_parameters("s", need, Site())).splitlines()
    assert "export OMP_NUM_THREADS=6" in lines and "#SBATCH --time=75" in lines


@pytest.mark.parametrize("number", [0, 20])
def test_a_job_goes_on_after_as_many_time_limits_as_the_site_says(tmp_path, fake_slurm, number):
    assert slurm_executor(tmp_path, Site(requeues=number), {}).max_num_timeout == number


def test_what_a_site_says_of_variables_holds():
    said = {"HF_HUB_OFFLINE": "0", "PYTHONNOUSERSITE": ""}
    assert job_variables(Site(env=said)).items() >= said.items()
