"""The main job end to end: one tiny experiment through the launcher, in processes of its own."""

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from PIL import Image

from hpc_hipgen.pipeline import report_items
from hpc_hipgen.run import Run
from jobs import sample

ROOT = Path(__file__).parents[2]
ROWS = ["ruler", "round_trip", "stable_diffusion", "llcm_1", "llcm_2"]
HEAVY = ("torch", "diffusers", "deepspeed", "transformers", "matplotlib", "pandas")


def python(*arguments, **more):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"HIPGEN_SITE": "local", "CUDA_VISIBLE_DEVICES": ""},
        **more,
    )


@pytest.fixture(scope="module")
def job(shorter_settings, tmp_path_factory):
    """The finished run, its experiment file, and what the launcher said.

    Ruler and autoencoder are those of `tiny_run`, given as pretrained; all else is made here.
    """
    folder = tmp_path_factory.mktemp("job")
    experiment = folder / "tiny.yaml"
    experiment.write_text(yaml.safe_dump(shorter_settings))
    done = python("-m", "jobs.launch", experiment, "--run", folder / "results" / "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(folder / "results" / "tiny")
    return SimpleNamespace(run=run, experiment=experiment, said=done.stdout)


@pytest.mark.slow
def test_every_artefact_is_there(job):
    run = job.run
    assert job.said.splitlines()[-1].startswith("Everything is done. Report: ")
    assert run.rows() == ROWS and run.config.trained() == ["stable_diffusion", "llcm"]
    for stage in ("prepare", *(f"train-{m}" for m in run.config.trained()), "report"):
        assert run.done(stage), stage
        assert f"{stage}: done in" in job.said
    for model in run.config.trained():
        assert any(run.path(model, "export").iterdir())
        assert run.path(model, "metrics.jsonl").is_file()
        assert list(run.path("tensorboard", model).glob("events*")), model
    for row, shard in report_items(run):
        assert run.path("samples", row, f"shard-{shard:05d}.tar").is_file()
        assert run.path("evaluation", row, f"shard-{shard:05d}.parquet").is_file()
    assert run.path("report", "report.html").stat().st_size > 10_000
    assert run.path("provenance", "packages.txt").is_file()
    for hidden in run.folder.rglob(".*"):
        raise AssertionError(f"left behind: {hidden}")


@pytest.mark.slow
def test_the_numbers_are_complete(job):
    metrics = json.loads(job.run.path("report", "metrics.json").read_text())
    assert list(metrics["faithfulness"]) == ROWS
    keys = {"r", "r_low", "r_high", "r2_identity", "mae", "bias", "slope", "n", "failed"}
    for row in ROWS:
        for side in ("left", "right"):
            found = metrics["faithfulness"][row][side]
            assert keys <= set(found), row
            assert found["n"] + found["failed"] == job.run.config.data.test
    assert metrics["frechet"]["floor"] is not None
    tables = [
        pd.read_parquet(path) for path in sorted(job.run.path("evaluation").rglob("*.parquet"))
    ]
    table = pd.concat(tables)
    assert (table["measured_left"].isna() == (table["reason"] != "")).all()
    assert table.groupby("row").size().to_dict() == dict.fromkeys(ROWS, 5)


def members(path):
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}


@pytest.mark.slow
def test_samples_say_what_was_asked_for_and_that_they_are_synthetic(job):
    for row in ROWS:
        found = members(job.run.path("samples", row, "shard-00001.tar"))
        assert sorted(found) == ["000004.json", "000004.png", "000004.txt"]
        info = json.loads(found["000004.json"])
        assert info["row"] == row and info["index"] == 4
        assert info["seed"] == 3 * 1_000_003 + 4
        with Image.open(io.BytesIO(found["000004.png"])) as image:
            assert image.size == (32, 32) and image.mode == "L"
            assert image.text.get("synthetic") == (None if row == "ruler" else "hpc_hipgen")
        prompt = found["000004.txt"].decode()
        if row not in ("ruler", "round_trip"):
            assert f"left {info['asked_left']:.1f} degrees" in prompt
            assert f"right {info['asked_right']:.1f} degrees" in prompt
            assert info["steps"] == {"llcm_1": 1}.get(row, 2)


@pytest.mark.slow
def test_processes_of_their_own_make_the_same_bytes_as_one(job, tiny_run):
    """The launcher's run and the one made in the tests' process differ in nothing but the place."""
    same = ["data/manifest.csv", "llcm/export/unet/diffusion_pytorch_model.safetensors"]
    same += [f"samples/{row}/shard-00000.tar" for row in ROWS]
    for name in same:
        assert job.run.path(name).read_bytes() == tiny_run.path(name).read_bytes(), name


@pytest.mark.slow
def test_a_second_launch_does_nothing_and_stays_light(job):
    before = {p: p.stat().st_mtime_ns for p in job.run.folder.rglob("*") if p.is_file()}
    code = (
        "import sys; from jobs import launch; status = launch.main(sys.argv[1:])\n"
        f"print([m for m in {HEAVY} if m in sys.modules]); sys.exit(status)"
    )
    done = python("-c", code, job.experiment, "--run", job.run.folder)
    assert done.returncode == 0, done.stderr
    assert "everything is done" in done.stdout and done.stdout.splitlines()[-1] == "[]"
    assert before == {p: p.stat().st_mtime_ns for p in job.run.folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_lost_shard_is_drawn_again_and_no_other(job, capsys):
    shard = job.run.path("samples", "llcm_1", "shard-00000.tar")
    other = job.run.path("samples", "llcm_1", "shard-00001.tar")
    content, untouched = shard.read_bytes(), other.stat().st_mtime_ns
    shard.unlink()
    assert sample.main(["--run", str(job.run.folder), "--row", "llcm_1"]) == 0
    assert "1 drawn now, 1 were there already" in capsys.readouterr().out
    assert shard.read_bytes() == content and other.stat().st_mtime_ns == untouched
    assert sample.main(["--run", str(job.run.folder), "--row", "llcm_3"]) == 2
    assert sample.main(["--run", str(job.run.folder), "--row", "llcm_1", "--shard", "9"]) == 2


def test_mistakes_end_with_status_2_and_nothing_written(tmp_path, tiny_settings):
    experiment = tmp_path / "tiny.yaml"
    experiment.write_text(yaml.safe_dump(tiny_settings))
    for setting, words in (
        ("data.trian=3", "unknown key 'data.trian'"),
        ("llcm.training.batch=500 llcm.training.images=500", "500 is more than the data set has"),
    ):
        run = tmp_path / "results" / "x"
        done = python("-m", "jobs.launch", experiment, "--run", run, *setting.split())
        assert done.returncode == 2 and words in done.stderr and done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert not run.parent.exists()


def test_the_login_node_loads_nothing_heavy(tmp_path, tiny_settings):
    experiment = tmp_path / "tiny.yaml"
    experiment.write_text(yaml.safe_dump(tiny_settings))
    modules = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))
    assert {"launch", "prepare", "train", "sample", "evaluate", "report", "status"} <= set(modules)
    code = f"""
import importlib, sys
from pathlib import Path

from hpc_hipgen.config import load_experiment
from hpc_hipgen.run import Run

def loaded(what):
    found = [m for m in {HEAVY} if m in sys.modules]
    assert not found, (what, found)

for name in {modules}:
    module = importlib.import_module("jobs." + name)
    try:
        module.main(["--help"])
    except SystemExit as end:
        assert not end.code, name
    loaded(name + " --help")
from jobs import launch, status
experiment, folder = sys.argv[1:]
assert launch.main([experiment, "--run", folder, "--dry-run"]) == 0
assert launch.main(["configs/llcm.yaml", "--run", folder, "--dry-run", "--site", "a100"]) == 0
loaded("dry run")
Run.create(Path(folder), load_experiment(experiment))
assert status.main([folder]) == 0
loaded("status")
"""
    done = python("-c", code, experiment, tmp_path / "results" / "x")
    assert done.returncode == 0, done.stderr
    for name in modules:
        assert f"python -m jobs.{name}" in done.stdout
        _, _, more = importlib.import_module(f"jobs.{name}").__doc__.partition("\n\n")
        assert more.rstrip() in done.stdout, f"{name} --help: not its docstring"
