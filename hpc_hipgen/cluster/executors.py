"""submitit executors from a site: Slurm's and this machine's, with log folders of our own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import submitit

from hpc_hipgen import ROOT
from hpc_hipgen.cluster.rendezvous import ADDRESS_VARIABLE
from hpc_hipgen.cluster.site import Resources, Site
from hpc_hipgen.parallel import NO_GPU
from hpc_hipgen.pipeline import Kind
from hpc_hipgen.provenance import is_secret

# jobs handle this one; submitit would take another from the user's SUBMITIT_PREEMPT_SIGNAL
_WARNING = "USR2"
submitit.JobEnvironment.USR_SIG = _WARNING

GPUS_VARIABLE = "HIPGEN_GPUS"
"""Carries CUDA_VISIBLE_DEVICES past submitit, which overwrites it for jobs of this machine."""

# it ends a process that has no handler for it, and with it the job: until python has one, a
# preemption or the time limit must not be more than overheard
_UNHEARD = f'bash -c \'trap "" {_WARNING}; exec "$0" "$@"\' '

# rank 0 exports when the others have ended, for which some sites would have srun end it; after
# sbatch's --export=NONE it would hand on none of the variables
_SRUN = ("--kill-on-bad-exit=1", "--wait=0", "--export=ALL")

_INHERITED = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")


def _python() -> str:
    """The command of a job's python: what HIPGEN_PYTHON names, else the one that runs here.

    The first may start a container, in which the second is no file of the node's.
    """
    given = shutil.which(os.environ.get("HIPGEN_PYTHON") or sys.executable)
    return _UNHEARD + shlex.quote(os.path.abspath(given or sys.executable))


def users_own(need: Resources) -> list[str]:
    """Variables by which a user tells sbatch what the site does not: SBATCH_ACCOUNT and the like.

    What the site says holds; sbatch would prefer the variable.
    """
    keys = ("partition", "account", "qos", "constraint")
    left_open = [key for key in keys if not getattr(need, key)]
    return [f"SBATCH_{key.upper()}" for key in (*left_open, "reservation")]


@contextmanager
def job_environment(
    variables: Mapping[str, str], kept: Sequence[str] = (), dropped: Sequence[str] = ()
) -> Iterator[None]:
    """What a new job inherits: `variables`, and nothing of an enclosing job, but for `kept`.

    Nor does it inherit `dropped`.

    Each of SLURM_MEM_PER_*, SLURM_NTASKS, SLURM_ARRAY_*, SLURM_CPU_BIND ... would change or break
    the new job. Those that say which cluster this is, and who asks, stay.
    """
    stay = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SBATCH_CLUSTERS", *kept)
    before = dict(os.environ)
    os.environ.update(variables)
    theirs = [n for n in os.environ if n.startswith(_INHERITED) and n not in stay]
    for name in (*theirs, *dropped):
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def submission_environment(site: Site, need: Resources) -> AbstractContextManager[None]:
    """The environment of sbatch, which hands it on to the job.

    It has the secret variables of the site: those must not stand in the script, which stays in the
    run folder. That this machine has no GPU, or hides them, is not handed on to jobs that ask for
    some: where Slurm does not count GPUs (`gres: ""`) they would work without.
    """
    secrets = {key: value for key, value in site.env.items() if is_secret(key)}
    hides = os.environ.get("CUDA_VISIBLE_DEVICES") in NO_GPU
    dropped = ("CUDA_VISIBLE_DEVICES",) if need.gpus and hides else ()
    return job_environment(secrets, users_own(need), dropped)


def job_variables(site: Site) -> dict[str, str]:
    """Variables of every job: this clone first, no hub on compute nodes and no bars of others in
    logs, then the site's own."""
    # modules that are loaded put packages there, which would hide those of the locked environment
    theirs = os.environ.get("PYTHONPATH", "") if os.environ.get("HIPGEN_PYTHON") else ""
    path = os.pathsep.join(p for p in (str(ROOT), theirs) if p)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    # ~/.local would come before the packages of conda or of a container
    alone = {"PYTHONNOUSERSITE": os.environ.get("PYTHONNOUSERSITE", "1")}
    plain = {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {"PYTHONPATH": path} | plain | alone | offline | site.env


def submission_folder(logs: Path) -> Path:
    """A fresh numbered folder in `logs` for the files of one submission.

    submitit names its files by job id, and ids come again (a rebuilt cluster, a process number):
    in a folder of its own no submission can find another's result.
    """
    number = 1 + max((int(p.name) for p in logs.glob("[0-9]*") if p.name.isdigit()), default=0)
    while True:
        folder = logs / f"{number:03d}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another launcher took the number between look and leap
            number += 1


def slurm_parameters(
    name: str, need: Resources, site: Site, after: Sequence[str] = (), follows: str | None = None
) -> dict[str, Any]:
    """submitit's parameters of one Slurm job.

    It waits for the jobs `after` to end well, and each of its array tasks for the task of the same
    number of the array job `follows`.
    """
    extra: dict[str, Any] = {"requeue": True} | dict(need.extra)
    if extra["requeue"] is False:
        extra["no-requeue"] = True
    extra = {key: value for key, value in extra.items() if value is not False}
    waits = [f"afterok:{':'.join(after)}"] if after else []
    waits += [f"aftercorr:{follows}"] if follows else []
    if waits:
        extra["kill-on-invalid-dep"] = "yes"  # else a failed dependency pends for ever
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": need.nodes,
        "ntasks_per_node": need.processes,
        "cpus_per_task": need.cpus,
        "time": ceil(need.hours * 60),
        "signal_delay_s": site.signal_seconds,
        "array_parallelism": site.array_parallel,
        "stderr_to_stdout": True,
        "setup": [*site.setup, *_exports(need, site)],
        # srun does not inherit --cpus-per-task since 22.05
        "srun_args": [f"--cpus-per-task={need.cpus}", *_SRUN],
        "additional_parameters": extra,
        "wckey": None,
    }
    if need.gpus and need.gres is None:
        parameters["gpus_per_node"] = need.gpus
    elif need.gpus and need.gres:
        parameters["gres"] = need.gres.format(n=need.gpus)
    if need.mem_gb:
        parameters["mem"] = f"{ceil(need.mem_gb * 1024)}M"
    if waits:
        parameters["dependency"] = ",".join(waits)
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(need, key):
            parameters[key] = getattr(need, key)
    return parameters


def _exports(need: Resources, site: Site) -> list[str]:
    """Lines of a job's script: its variables, but for secrets."""
    variables = {"OMP_NUM_THREADS": str(need.cpus)} | job_variables(site)
    # last, whatever `setup` or a start-up file of the shell has set
    variables |= {ADDRESS_VARIABLE: site.address, "SUBMITIT_PREEMPT_SIGNAL": _WARNING}
    public = {key: value for key, value in variables.items() if not is_secret(key)}
    return [f"export {key}={shlex.quote(value)}" for key, value in public.items()]


def slurm_executor(folder: Path, site: Site, parameters: dict[str, Any]) -> submitit.SlurmExecutor:
    """An executor whose files lie in `folder`."""
    executor = submitit.SlurmExecutor(
        folder=folder, max_num_timeout=site.requeues, python=_python()
    )
    executor.update_parameters(**parameters)
    return executor


class _Described(submitit.SlurmExecutor):
    """A Slurm executor that can be asked for its script where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def sbatch_script(parameters: dict[str, Any], tasks: int = 1, folder: Path = Path("logs")) -> str:
    """The script that would be submitted; `tasks` > 1 makes it an array."""
    executor = _Described(folder=folder, python=_python())
    executor.update_parameters(**parameters)
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def refusal(script: str, kept: Sequence[str] = ()) -> str | None:
    """Why Slurm would not take this script, or None: `sbatch --test-only`, nothing is submitted.

    `kept`: see `job_environment`.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file, job_environment({}, kept):
        file.write(script)
        file.flush()
        try:
            done = subprocess.run(
                ["sbatch", "--test-only", file.name], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"sbatch does not answer: {error}"
    if done.returncode == 0:
        return None
    return " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"


def local_executor(folder: Path, site: Site, processes: int) -> submitit.LocalExecutor:
    """An executor of this machine: `processes` ranks of one job, both streams in one log."""
    executor = submitit.LocalExecutor(folder=folder, max_num_timeout=0)
    executor.update_parameters(
        tasks_per_node=processes,
        timeout_min=60 * 24 * 365,  # nobody shares this machine's hours; the default is 2 minutes
        stderr_to_stdout=True,
        setup=list(site.setup),
    )
    return executor


def local_variables(site: Site, more: dict[str, str]) -> AbstractContextManager[None]:
    """The environment in which local jobs are started; `more` adds to it."""
    variables = job_variables(site) | more
    gpus = (os.environ | variables).get("CUDA_VISIBLE_DEVICES", "all")
    return job_environment(variables | {GPUS_VARIABLE: gpus})


def restore_gpus() -> None:
    """Undoes, inside a local job and before torch is imported, that submitit hides all GPUs."""
    visible = os.environ.pop(GPUS_VARIABLE, None)
    if visible == "all":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    elif visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use, found without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def local_processes(kind: Kind) -> int:
    """Ranks of a stage on this machine: training takes every GPU, all else is one process."""
    return max(1, count_gpus()) if kind == "train" else 1
