"""The experiment of the film ruler: its stages, its settings, and what it leaves behind."""

import json

import pytest

from hpc_hipgen.config import ConfigError, load_experiment, parse_experiment
from hpc_hipgen.pipeline import stages
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.rulers.film_ruler import load_film_ruler
from hpc_hipgen.run import Run
from jobs import prepare, train

TINY = {
    "name": "tiny",
    "film_ruler": {
        "dogs": 8,
        "held_out": 10,
        "finder": [8, 8],
        "hip": [8, 8],
        "training": {"images": 8, "batch": 4, "lr": 1e-3},
    },
}


def test_scenes_training_and_a_ruler_that_measures(tmp_path):
    run = Run.create(tmp_path / "run", parse_experiment(TINY, "tiny"))
    assert [stage.name for stage in stages(run.config)] == ["prepare", "train-film_ruler"]
    prepare.prepare(run)
    figures = train.train(run, "film_ruler")
    assert figures["held_out_films"] == 5 and figures["images"] == 8
    folder = run.path("film_ruler", "export")
    assert json.loads((folder / "film_ruler.json").read_text())["held_out_phantoms"]
    (found,) = load_film_ruler(folder).measure([draw_phantom(1, 1, 200).image])
    assert found.reason  # eight images teach nothing
    assert stages(run.config)[-1].done(run)


def test_the_shipped_experiment_is_valid():
    config = load_experiment("configs/film_ruler.yaml")
    assert config.trained() == ["film_ruler"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": {"train": 3}}, "data: a film ruler is an experiment of its own"),
        ({"ruler": {"training": TINY["film_ruler"]["training"]}}, "ruler: a film ruler"),
        ({"film_ruler": {**TINY["film_ruler"], "hip": [8]}}, "film_ruler.hip: 2 to 6 levels"),
        ({"film_ruler": {**TINY["film_ruler"], "dogs": 3}}, "above film_ruler.dogs, 3"),
        ({"film_ruler": {"pretrained": "x"}}, "film_ruler.pretrained: given, but there is no lab"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_experiment({**TINY, **change}, "tiny")


def test_an_experiment_needs_a_ruler():
    with pytest.raises(ConfigError, match="'ruler' is missing"):
        parse_experiment({"name": "tiny"}, "tiny")
