"""The site file: everything about a cluster that the code must not know.

A site is one YAML file of configs/site/. It says which executor runs the stages and what each kind
of stage asks the scheduler for; unknown keys and values out of range are refused.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from hpc_hipgen import ROOT
from hpc_hipgen.config import TRAINED, ConfigError, Section
from hpc_hipgen.config.reading import parse_settings, read_yaml
from hpc_hipgen.pipeline import CROSS_VALIDATION, Kind, Stage
from hpc_hipgen.provenance import is_secret

STAGES = (
    *("prepare", CROSS_VALIDATION, "sample", "evaluate", "report"),
    *(f"train-{model}" for model in TRAINED),
)
"""Names of the stages of all experiments; those of sweeps and of `jobs.utility` have their own."""
SITES = ROOT / "configs" / "site"
_ANSWER_SECONDS = 30
_DOWN = re.compile("unable to contact|zero bytes|timed out|authenticat", re.IGNORECASE)
"""In what sinfo says where there is a Slurm that cannot answer; not where none was set up."""
_LEAST_SECONDS = 60  # Slurm may warn that much too early


_MANAGED = (
    "array", "cpus-per-task", "dependency", "error", "job-name", "nodes", "ntasks-per-node",
    "open-mode", "output", "signal", "time", "wckey",
)  # fmt: skip
"""Options of sbatch on which submitit, or what waits for a job, relies."""

SUBMITS_VARIABLE = "HIPGEN_SUBMITS"
"""Set by sbatch/common.sh in a job that is Slurm's copy of a script of sbatch/."""

_CLUSTERS = ("clusters", "cluster", "M")
"""How sbatch is told the cluster; squeue would not know."""


def _check_no_secrets(text: str, instead: str) -> None:
    """Raises ValueError where a text of scripts gives a value to what is named like a secret."""
    for name in re.findall(r"(\w+)=", text):
        if is_secret(name):
            raise ValueError(
                f"{name} would stand in the scripts of the run folder; {instead}, which reaches "
                "the jobs and no file"
            )


class Resources(Section):
    """What one job asks for. None: not asked for, the scheduler's default holds."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)  # per node; training starts one process for each
    # how this site spells them, {n} for the number: "gpu:a100:{n}"; "": they are not asked for
    gres: str | None = None
    cpus: int = Field(4, ge=1)  # per process
    mem_gb: float | None = Field(None, gt=0)  # per node; None: the partition's default
    hours: float = Field(4.0, gt=0)
    extra: dict[str, str | int | bool] = Field({})  # any other sbatch option: {"exclude": "node7"}

    @field_validator("extra")
    @classmethod
    def _others(cls, options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for key, value in options.items():
            if key in _CLUSTERS:
                raise ValueError(f"{key}: export SLURM_CLUSTERS, which squeue reads too")
            if key.replace("_", "-") == "no-requeue":
                raise ValueError(f"{key}: write requeue: false instead")
            if key.replace("_", "-") in _MANAGED:
                raise ValueError(f"{key}: is set from the other keys of a site; leave it out here")
            _check_no_secrets(str(value), "leave it out here and write it under env")
        return options

    @field_validator("gres")
    @classmethod
    def _spelled(cls, text: str | None) -> str | None:
        try:
            (text or "").format(n=1)
        except (LookupError, ValueError):
            raise ValueError(f"{text}: write {{n}} where the number of GPUs belongs") from None
        return text

    _shared: bool = PrivateAttr(False)  # among processes; see `Stage.shared`

    @property
    def processes(self) -> int:
        """Processes per node: in training one for each GPU, else one, whatever it asks for."""
        return max(1, self.gpus) if self._shared else 1


class Site(Section):
    """One machine or cluster."""

    executor: Literal["auto", "slurm", "local"] = "auto"
    resources: dict[Kind, Resources] = Field({})
    stages: dict[str, dict[str, Any]] = Field({})  # of single stages, over those of their kind
    setup: list[str] = Field([])  # shell lines before every job: module load ..., ulimit ...
    # Variables of every job: NCCL_SOCKET_IFNAME ... Those named like secrets (..._KEY, ..._TOKEN)
    # reach the jobs through the environment of sbatch and are written nowhere.
    env: dict[str, str] = Field({})
    array_tasks: int = Field(1, ge=1)  # jobs that an array is divided into
    array_parallel: int = Field(1, ge=1)  # of these, at once
    # without Slurm: jobs side by side, each with its part of the cores; default: 2, with a GPU 1
    local_parallel: int | None = Field(None, ge=1)
    # warning before the time limit; one that comes ten minutes early is none to submitit
    signal_seconds: int = Field(120, ge=10, le=500)
    requeues: int = Field(20, ge=0)  # times that a job cut off by its time limit may go on
    retries: int = Field(1, ge=0)  # times that a task of an array is started again after a failure
    # of a node for the others of a job, where not its name; "{host}i" for the network of node7i
    address: str = "{host}"
    # parent of the run folders, ~ and $VARIABLES in it understood; default: results/ of the clone
    results: Path | None = None

    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """By which it was read: that of a file of configs/site/, or a path."""
        return self._name

    @field_validator("address")
    @classmethod
    def _of_a_node(cls, text: str) -> str:
        if "{host}" not in text:
            raise ValueError(f"{text}: write {{host}} where the name of the node belongs")
        return text

    @field_validator("setup")
    @classmethod
    def _no_secrets(cls, lines: list[str]) -> list[str]:
        for line in lines:
            _check_no_secrets(line, "write it under env")
        return lines

    @field_validator("env")
    @classmethod
    def _names(cls, variables: dict[str, str]) -> dict[str, str]:
        for name in variables:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"'{name}' is no name of a variable")
        return variables

    @field_validator("results")
    @classmethod
    def _expanded(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        path = os.path.expanduser(os.path.expandvars(value))
        if "$" in path:
            raise ValueError(f"{path}: this variable is not set here")
        return Path(path)

    def of(self, stage: Stage) -> Resources:
        """The resources of a stage: those of its kind, changed by its own entry.

        Raises:
            ConfigError: for several nodes where one process does the work, or for a time limit
                of which its warning leaves nothing.
        """
        base = self.resources.get(stage.kind, Resources()).model_dump(exclude_unset=True)
        found = Resources.model_validate(base | self.stages.get(stage.name, {}))
        found._shared = stage.shared
        if found.nodes > 1 and not found._shared:
            raise ConfigError(
                f"site: {stage.name} is the work of one process, and cannot use {found.nodes} "
                f"nodes; write stages: {{{stage.name}: {{nodes: 1}}}}"
            )
        if found.hours * 3600 < self.signal_seconds + _LEAST_SECONDS:
            raise ConfigError(
                f"site: {stage.name} has {found.hours:g} hours, of which the warning before the "
                f"time limit (signal_seconds: {self.signal_seconds}) leaves nothing to work in"
            )
        return found

    def run_folder(self, name: str) -> Path:
        """The run that a person means: a path, or a name in this site's parent of runs."""
        path = Path(name)
        if "/" in name or (path / "config.yaml").is_file():
            return path
        return self.runs() / name

    def runs(self) -> Path:
        """The parent of the run folders."""
        return self.results or ROOT / "results"

    def uses_slurm(self) -> bool:
        """True when jobs go to Slurm; `auto` asks whether a Slurm answers here."""
        return self.executor == "slurm" or (self.executor == "auto" and slurm_answers())


def slurm_answers() -> bool:
    """True when there is an sbatch and its controller answers: installed tools say little.

    In a job of Slurm there is one, however busy it is.

    Raises:
        ConfigError: when there is no answer within a while, neither yes nor no. In a job that was
            to submit others, on a node that cannot: it would do all of their work itself.
    """
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        if os.environ.get(SUBMITS_VARIABLE):
            raise ConfigError(
                "this job was to submit others, and there is no sbatch or no sinfo on its node: "
                "run the script with bash on the login node (HIPGEN_SITE=local: in this job)"
            )
        return False
    if "SLURM_JOB_ID" in os.environ:
        return True
    ask = ["sinfo", "-h", "-o", "%P"]
    instead = "start again, or work on this machine: HIPGEN_SITE=local"
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except OSError:
        return False
    except subprocess.TimeoutExpired:
        raise ConfigError(f"Slurm has not answered within {_ANSWER_SECONDS} s; {instead}") from None
    if done.returncode and _DOWN.search(done.stderr):
        raise ConfigError(f"Slurm does not answer ({' '.join(done.stderr.split())}); {instead}")
    return done.returncode == 0


def load_site(name: str | None = None) -> Site:
    """Reads a site by name (a file of configs/site/) or path; HIPGEN_SITE, then auto, by default.

    Raises:
        ConfigError: no such site, an unknown key, a value out of range; one problem a line.
    """
    name = name or os.environ.get("HIPGEN_SITE") or "auto"
    path = Path(name) if name.endswith((".yaml", ".yml")) else SITES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in SITES.glob("*.yaml")))
        raise ConfigError(f"site '{name}': no file {path}; the sites here are {known}")
    site = parse_settings(Site, read_yaml(path) or {}, str(path))
    for stage in site.stages:
        _check_stage(site, stage, path)
    site._name = name
    return site


def _check_stage(site: Site, stage: str, path: Path) -> None:
    """Raises ConfigError when a stage has another name than any experiment's, or a wrong entry."""
    if stage not in STAGES and not stage.startswith(("sweep-", "utility-")):
        near = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(STAGES)}"
        raise ConfigError(f"{path}: stages: no experiment has a stage '{stage}'{hint}")
    parse_settings(Resources, site.stages[stage], f"{path}: stages.{stage}")
