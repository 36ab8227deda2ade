"""The run folder: markers, settings that stay, whose folder it is."""

import pytest
import yaml

from hpc_hipgen import ROOT
from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.files import DamagedError
from hpc_hipgen.run import HOW, Run


def test_markers(tmp_path, tiny_settings):
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    assert run.done("prepare") is None
    run.mark_done("prepare")
    run.path("stages", "prepare.json").write_text('{"stage": "prep')
    with pytest.raises(DamagedError, match=r"prepare.json: damaged; remove it"):
        run.done("prepare")
    run.unmark("prepare")
    run.mark_done("prepare", films=3)
    assert run.done("prepare")["films"] == 3 and "finished" in run.done("prepare")


def test_a_run_folder_repeats_its_settings(tmp_path, tiny_settings):
    config = parse_experiment(tiny_settings, "x")
    run = Run.create(tmp_path / "run", config)
    assert Run(run.folder).config == Run.create(run.folder, config).config == config
    tiny_settings["llcm"]["skip"] = 10
    tiny_settings["data"]["test"] = 6
    with pytest.raises(
        ConfigError, match=r"data.test: 5 there, 6 now; llcm.skip: 20 there, 10 now"
    ):
        Run.create(run.folder, parse_experiment(tiny_settings, "x"))
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["llcm"]["skip"] == 20


def test_a_run_takes_no_folder_of_somebodys(tmp_path, tiny_settings):
    """It would replace what has the name of an artefact."""
    config = parse_experiment(tiny_settings, "x")
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match=r"is not empty \(data, ...\) and not a run"):
        Run.create(tmp_path, config)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").touch()
    run = Run.create(tmp_path / "new", config)
    (run.folder / "films").mkdir()
    tiny_settings["evaluation"]["films"] = str(run.folder / "films")
    with pytest.raises(ConfigError, match="films: lies in the run folder"):
        Run.create(run.folder, parse_experiment(tiny_settings, "x"))


def test_a_run_is_no_file_and_not_the_record_of_the_program(tmp_path, tiny_settings):
    config = parse_experiment(tiny_settings, "x")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        Run.create(tmp_path / "file", config)
    with pytest.raises(ConfigError, match="Slurm reads % as a pattern"):
        Run.create(tmp_path / "90%" / "run", config)
    with pytest.raises(ConfigError, match="is a record, no run"):
        Run.create(ROOT / "results" / "reference", config)


def test_a_place_by_way_of_a_folder_that_is_not_there_yet_is_looked_at(tmp_path, tiny_settings):
    (tmp_path / "somebody" / "data").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is not empty \(data, ...\) and not a run"):
        Run.create(tmp_path / "new" / ".." / "somebody", parse_experiment(tiny_settings, "x"))
    assert not (tmp_path / "new").exists()


def test_no_run_folder_is_said(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        Run(tmp_path)


def test_how_a_run_is_executed_may_change_and_what_it_makes_may_not():
    how = ("llcm.training.micro_batch", "sampling.batch", "logging.wandb", "ruler.training.workers")
    assert all(HOW.search(key) for key in how)
    what = ("llcm.training.lr", "llcm.training.batch", "llcm.training.images", "seed", "data.views",
            "evaluation.min_confidence", "sampling.guidance", "sampling.precision")  # fmt: skip
    assert not [key for key in what if HOW.search(key)]
