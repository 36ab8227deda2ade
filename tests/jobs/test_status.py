import json

import pytest

from hpc_hipgen.cluster.calls import stage_logs
from hpc_hipgen.config import Experiment
from hpc_hipgen.pipeline import stages
from hpc_hipgen.run import Run
from jobs import status


@pytest.fixture
def run(tmp_path):
    training = {"images": 6000, "batch": 16, "lr": 1e-3}
    config = Experiment.model_validate({"name": "tiny", "ruler": {"training": training}})
    return Run.create(tmp_path / "tiny", config)


def state(run, name, queue=None):
    stage = next(s for s in stages(run.config) if s.name == name)
    return status.state_of(run, stage, queue or {})


def test_a_new_run_is_missing_everything(run, capsys, monkeypatch):
    monkeypatch.setattr(status, "_queue", dict)
    assert status.main([str(run.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(stages(run.config))
    assert all("missing" in line for line in lines[1:])


def test_training_shows_its_last_complete_line(run):
    path = run.path("ruler", "metrics.jsonl")
    path.parent.mkdir()
    whole = {"images": 1200, "loss": 0.25, "images_per_second": 40.0}
    path.write_text(json.dumps({"images": 600}) + "\n" + json.dumps(whole) + '\n{"images": 18')
    _, note = state(run, "train-ruler")
    assert note == "1,200 of 6,000 images, 40.0 images/s, 2 min left, loss 0.25"


def test_arrays_count_their_shards(run):
    path = run.path("samples", "ruler")
    path.mkdir(parents=True)
    (path / "shard-00000.tar").touch()
    assert state(run, "sample") == ("done", "1 of 1 shards")
    assert state(run, "evaluate") == ("missing", "0 of 2 shards")


def test_queued_failed_and_done(run):
    logs = stage_logs(run, "prepare")
    (logs / "submitted.json").write_text('{"job": "17"}')
    assert state(run, "prepare", {"17": "PENDING"}) == ("pending", "job 17  ")
    failure = {"error": "disk full\nmore", "kinds": ["OSError"], "time": 1.0}
    (logs / "failed.json").write_text(json.dumps(failure))
    assert state(run, "prepare") == ("failed", "OSError: disk full")
    run.mark_done("prepare")
    assert state(run, "prepare")[0] == "done"


def test_runs_are_found_where_the_site_keeps_them(run, tmp_path, capsys, monkeypatch):
    site = tmp_path / "site.yaml"
    site.write_text(f"results: {run.folder.parent}")
    for arguments in ([], ["tiny"]):
        assert status.main([*arguments, "--site", str(site)]) == 0
        assert capsys.readouterr().out.startswith(f"{run.folder}  (experiment tiny)")
    monkeypatch.setenv("HIPGEN_SITE", str(site))
    assert status.main([]) == 0


def test_no_run_is_one_clear_line(tmp_path, capsys):
    site = tmp_path / "site.yaml"
    site.write_text(f"results: {tmp_path}")
    assert status.main(["--site", str(site)]) == 2
    assert "make demo" in capsys.readouterr().err
    assert status.main(["nothing", "--site", str(site)]) == 2
