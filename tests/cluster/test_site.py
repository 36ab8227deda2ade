import shutil
from pathlib import Path

import pytest

from hpc_hipgen import ROOT
from hpc_hipgen.cluster import site
from hpc_hipgen.cluster.executors import slurm_parameters
from hpc_hipgen.cluster.site import SITES, STAGES, Resources, Site, load_site
from hpc_hipgen.config import ConfigError, load_experiment
from hpc_hipgen.pipeline import Stage, stages


def training(model, kind="train"):
    """The stage that trains a model."""
    return Stage(f"train-{model}", "", kind, model=model)


@pytest.mark.parametrize("name", sorted(p.stem for p in SITES.glob("*.yaml")))
def test_every_site_of_the_project_is_valid(name):
    assert isinstance(load_site(name), Site)


def test_a_stage_changes_only_what_it_names():
    site = load_site("a100")
    longer, usual = site.of(training("stable_diffusion")), site.of(training("llcm"))
    assert longer.hours > usual.hours
    assert longer.model_copy(update={"hours": usual.hours}) == usual
    assert usual.processes == usual.gpus == 8


def test_only_training_starts_several_processes():
    """All others would do all of their work in each."""
    site = Site(resources={"gpu": Resources(gpus=4), "cpu": Resources(nodes=2)})
    for stage in ("sample", "evaluate", "sweep-x"):
        need = site.of(Stage(stage, "", "gpu"))
        assert (need.processes, need.gpus) == (1, 4)
        assert slurm_parameters(stage, need, site)["ntasks_per_node"] == 1
    for stage in (training("ruler", "gpu"), Stage("cross_validate", "", "gpu", model="lab_ruler")):
        assert site.of(stage).processes == 4
    with pytest.raises(ConfigError, match=r"prepare .*cannot use 2 nodes; write stages: \{prepare"):
        site.of(Stage("prepare", "", "cpu"))


def test_a_kind_that_is_not_named_asks_for_defaults():
    assert Site().of(Stage("report", "", "cpu")) == Resources()
    assert Resources().processes == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("executer: slurm", "unknown key 'executer'"),
        ("resources: {gpu: {gpus: -1}}", "resources.gpu.gpus"),
        ("resources: {fpga: {gpus: 1}}", "resources.fpga"),
        ("stages: {report: {hour: 3}}", "stages.report: unknown key 'hour'"),
        ("stages: {train-stable_difusion: {hours: 3}}", "did you mean train-stable_diffusion"),
        ("stages: {everything: {hours: 3}}", "no experiment has a stage 'everything'; there are"),
        ("setup: ['export HF_TOKEN=abc']", "HF_TOKEN would stand in the scripts.*under env"),
        ("resources: {cpu: {extra: {export: 'ALL,HF_TOKEN=abc'}}}", "HF_TOKEN would stand in"),
        ("resources: {cpu: {extra: {time: 60}}}", "time: is set from the other keys of a site"),
        ("resources: {cpu: {extra: {ntasks_per_node: 2}}}", "ntasks_per_node: is set from"),
        ("resources: {cpu: {extra: {no-requeue: true}}}", "no-requeue: write requeue: false"),
        ("address: node7", "node7: write {host} where the name of the node belongs"),
        ("resources: {cpu: {extra: {clusters: gpu}}}", "clusters: export SLURM_CLUSTERS"),
        ("resources: {gpu: {gres: 'gpu:{count}'}}", "write {n} where the number of GPUs belongs"),
        ("env: {NCCL-DEBUG: INFO}", "'NCCL-DEBUG' is no name of a variable"),
        ("resources: [", "not valid YAML"),
    ],
)
def test_a_bad_site_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_site(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_stages_of_every_experiment_may_stand_in_a_site(path):
    assert {stage.name for stage in stages(load_experiment(path))} <= set(STAGES)


def test_runs_may_lie_on_a_scratch_disk(tmp_path, monkeypatch):
    path = tmp_path / "site.yaml"
    path.write_text("results: $HIPGEN_SCRATCH/runs")
    monkeypatch.setenv("HIPGEN_SCRATCH", str(tmp_path))
    assert load_site(str(path)).runs() == tmp_path / "runs"
    path.write_text("results: ~/runs")
    assert load_site(str(path)).runs() == Path.home() / "runs"
    monkeypatch.delenv("HIPGEN_SCRATCH")
    path.write_text("results: $HIPGEN_SCRATCH/runs")
    with pytest.raises(ConfigError, match="HIPGEN_SCRATCH/runs: this variable is not set here"):
        load_site(str(path))


def test_a_warning_that_leaves_no_time_is_said():
    """A job would be put back as often as it may be, and do nothing."""
    site = Site(resources={"train": {"hours": 0.1}}, signal_seconds=400)
    with pytest.raises(ConfigError, match=r"train-llcm has 0.1 hours, of which the warning"):
        site.of(training("llcm"))
    site = site.model_copy(update={"signal_seconds": 300})
    assert site.of(training("llcm")).hours == 0.1, "a minute is left"


def test_an_unknown_site_names_those_there_are():
    with pytest.raises(ConfigError, match="a100, auto, local"):
        load_site("nowhere")


def test_the_environment_names_the_site(monkeypatch):
    monkeypatch.setenv("HIPGEN_SITE", "a100")
    assert load_site().executor == "slurm"
    assert load_site("local").executor == "local"
    assert [load_site().name, load_site("local").name] == ["a100", "local"]


def test_a_slurm_that_is_busy_is_not_none(fake_slurm, monkeypatch):
    (fake_slurm / "bin" / "sinfo").write_text("#!/bin/bash\nsleep 5\n")
    monkeypatch.setattr(site, "_ANSWER_SECONDS", 0.1)
    with pytest.raises(ConfigError, match="HIPGEN_SITE=local"):
        Site().uses_slurm()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert Site().uses_slurm(), "in one of its jobs it need not be asked"


@pytest.mark.parametrize(
    ("said", "down"),
    [
        ("slurm_load_partitions: Unable to contact slurm controller (connect failure)", True),
        ("slurm_load_partitions: Zero Bytes were transmitted or received", True),
        ("slurm_load_partitions: Protocol authentication error", True),
        ("sinfo: fatal: Could not establish a configuration source", False),
    ],
)
def test_a_slurm_that_is_down_for_a_moment_is_not_none(fake_slurm, said, down):
    (fake_slurm / "bin" / "sinfo").write_text(f"#!/bin/bash\necho '{said}' >&2\nexit 1\n")
    if not down:
        assert not Site().uses_slurm(), "it was installed and never set up"
        return
    with pytest.raises(ConfigError, match=r"Slurm does not answer .*HIPGEN_SITE=local"):
        Site().uses_slurm()


def test_a_job_that_cannot_submit_does_not_do_the_work_of_all(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not Site().uses_slurm(), "the user's own job"
    monkeypatch.setenv(site.SUBMITS_VARIABLE, "1")
    with pytest.raises(ConfigError, match=r"no sbatch .* with bash on the login node"):
        Site().uses_slurm()


def test_auto_is_slurm_only_where_one_answers(fake_slurm, monkeypatch):
    assert Site().uses_slurm()
    (fake_slurm / "bin" / "sinfo").write_text("#!/bin/bash\nexit 1\n")
    assert not Site().uses_slurm()  # tools without a controller behind them
    assert Site(executor="slurm").uses_slurm()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not Site().uses_slurm()
