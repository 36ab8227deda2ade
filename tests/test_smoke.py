"""Every experiment of configs/ trains: all its models, two optimizer steps each, by `--smoke`."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from lab_folder import write_lab

from hpc_hipgen import parallel
from hpc_hipgen.config import TRAINED, ConfigError, load_experiment
from hpc_hipgen.config.reading import SMOKE, merged
from hpc_hipgen.pipeline import folds, trained_before
from hpc_hipgen.rulers import film_check
from hpc_hipgen.run import Run
from jobs import launch
from jobs.cross_validate import measure_folds
from jobs.prepare import prepare
from jobs.train import train

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def prepared():
    """Prepares a run, or takes the data of an earlier one that has the same."""
    made = {}

    def ready(run):
        if run.config.film_ruler:  # has scenes in place of data
            prepare(run)
            return
        settings = run.config.data.model_dump_json()
        if settings in made:
            shutil.copytree(made[settings].path("data"), run.path("data"))
            run.path("stages").mkdir()
            shutil.copy(made[settings].path("stages", "prepare.json"), run.path("stages"))
        else:
            prepare(run)
            made[settings] = run

    return ready


@pytest.fixture(scope="module")
def trained():
    """Folders of models by what made them: see `making`."""
    return {}


def making(config, model):
    """All that makes a model: data, its own settings, and those of the models that it needs."""
    sections = {m: getattr(config, m) for m in [*trained_before(config, model), model]}
    # how long an average looks back makes no difference to whether two steps can be made
    left_out = {"training": {"ema_images"}}
    dumped = {m: s.model_dump(mode="json", exclude=left_out) for m, s in sections.items()}
    return json.dumps([config.seed, config.data.model_dump(mode="json"), dumped])


def films_for(path, folder):
    """The setting that names films, for an experiment that has none without."""
    if path.stem != "lab_ruler":
        return []
    return [f"lab_ruler.films={write_lab(folder / 'films', dogs=2, films=1)}"]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_trains(path, tmp_path, prepared, trained, monkeypatch):
    monkeypatch.setattr(parallel, "LEAST", 1000)  # processes take longer than so few films
    # forty pictures, which test_film_ruler_stage.py shows to a ruler
    monkeypatch.setattr(film_check, "refused_non_films", lambda ruler: {"moon": True})
    whole, config = load_experiment(path), load_experiment(path, films_for(path, tmp_path), True)
    assert config.name == f"{path.stem}-smoke"
    assert set(whole.trained()) <= set(config.trained()), "what was pretrained is built"
    run = Run.create(tmp_path / "run", config)
    prepared(run)
    for model in config.trained():
        if model == "lab_ruler":
            measure_folds(run, folds(run))
        training = getattr(config, model).training
        assert training.images == 2 * training.batch
        made = making(config, model)
        if made in trained:
            shutil.copytree(trained[made], run.path(model))
            continue
        figures = train(run, model)
        assert figures["images"] == training.images, model
        lines = run.path(model, "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["images"] for line in lines] == [2, 4], model
        assert any(run.path(model, "export").iterdir())
        trained[made] = run.path(model)


def test_models_that_an_experiment_has_not_are_left_out():
    config = load_experiment(ROOT / "configs" / "ruler.yaml", smoke=True)
    assert config.trained() == ["ruler"] and config.data.head_distance == 0.76
    less = load_experiment(ROOT / "configs" / "lora.yaml", ["lcm_lora=null"], smoke=True)
    assert less.lcm_lora is None and less.lora.rank == 2
    assert less.lora.hip_weight == 12, "what does not cost time stays"


def test_every_model_is_shrunk():
    assert set(TRAINED) <= set(yaml.safe_load(SMOKE.read_text()))


def test_mappings_are_merged_and_the_rest_replaced():
    tree = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(tree, {"a": {"c": [3], "e": None}}) == {
        "a": {"b": 1, "c": [3], "e": None},
        "d": 3,
    }
    assert tree == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_the_command_shrinks_experiments_and_no_runs(tmp_path, capsys):
    experiment = str(ROOT / "configs" / "llcm_a100.yaml")
    site = tmp_path / "here.yaml"
    site.write_text(f"executor: local\nresults: {tmp_path / 'results'}\n")
    assert launch.main([experiment, "--smoke", "--dry-run", "--site", str(site)]) == 0
    said = capsys.readouterr().out
    assert "llcm_a100-smoke" in said and "train-autoencoder" in said
    Run.create(tmp_path / "run", load_experiment(experiment))
    assert launch.main([str(tmp_path / "run"), "--smoke", "--site", "local"]) == 2
    assert "a run keeps its settings" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="unknown key"):
        load_experiment(experiment, ["llcm.depth=3"], smoke=True)
