"""A film ruler on a lab's own films: its stages, its folds, and the ruler that comes of it."""

import copy
import csv
import json
import shutil

import numpy as np
import pytest
from lab_folder import write_lab
from PIL import Image, ImageDraw, ImageFont

from hpc_hipgen.config import ConfigError, check_inputs, load_experiment, parse_experiment
from hpc_hipgen.pipeline import stages
from hpc_hipgen.radiograph.film_sources import lab_films
from hpc_hipgen.radiograph.lab_films import VIEWS, prepared_films
from hpc_hipgen.rulers import cross_validation
from hpc_hipgen.rulers.film_ruler import Calibration, load_film_ruler
from hpc_hipgen.rulers.lab_ruler import fold_task
from hpc_hipgen.run import Run
from jobs import cross_validate, launch, measure, prepare, train

STEPS = {"images": 8, "batch": 4, "lr": 1e-3}
TINY = {
    "name": "tiny",
    "film_ruler": {
        "dogs": 6,
        "held_out": 10,
        "finder": [8, 8],
        "hip": [8, 8],
        "training": STEPS,
    },
    "lab_ruler": {"folds": 2, "film_share": 0.25, "training": STEPS},
}


def settings(films, **lab):
    tree = copy.deepcopy(TINY)
    tree["lab_ruler"] |= {"films": str(films), **lab}
    return parse_experiment(tree, "tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run up to the ruler that its folds start from; not to be changed."""
    folder = tmp_path_factory.mktemp("lab")
    run = Run.create(folder / "run", settings(write_lab(folder / "films")))
    prepare.prepare(run)
    train.train(run, "film_ruler")
    return run


def test_hips_that_no_caption_can_name_are_learnt_from(tmp_path):
    films = write_lab(tmp_path / "films", dogs=2, films=1)
    table = films / "landmarks.csv"
    head, _, *others = table.read_text().splitlines()
    table.write_text("\n".join([head, "film-0.png,image_left,40,80,12,50,71,dog-0", *others]))
    config = settings(films)
    (film, _), _ = lab_films(config, config.lab_ruler)
    assert film.landmarks.norberg_angles().image_left < 50


@pytest.mark.slow
def test_all_stages(run, tmp_path, capsys):
    run = Run(shutil.copytree(run.folder, tmp_path / "run"))
    graph = stages(run.config)
    names = ["prepare", "train-film_ruler", "cross_validate", "train-lab_ruler", "report"]
    assert [stage.name for stage in graph] == names
    cross_validate.measure_folds(run, graph[2].items(run))
    assert graph[2].done(run)
    figures = train.train(run, "lab_ruler")
    assert figures["images"] == 8 and figures["held_out_films"] == 5
    run.mark_done("report", **cross_validate.report(run))
    assert "8 films of 4 dogs" in capsys.readouterr().out and graph[4].done(run)
    with run.path("report", "hips.csv").open(newline="") as file:
        hips = list(csv.DictReader(file))
    assert len(hips) == 16 and len({(hip["film"], hip["side"]) for hip in hips}) == 16
    folder = run.path("lab_ruler", "export")
    stored = (folder / "film_ruler.json").read_text()
    assert "film-" not in stored and "dog-" not in stored and "film-" not in card(folder)
    assert json.loads(stored)["cross_validation"]["after"]["films"] == 8
    assert "8 radiographs of 4 dogs" in card(folder)
    base = load_film_ruler(run.first_stage("film_ruler"))
    assert load_film_ruler(folder).lab_films == 8 and base.lab_films == 0
    factor = json.loads(stored)["cross_validation"]["stretch"]
    expected = Calibration(*(factor * value for value in vars(base.calibration).values()))
    assert load_film_ruler(folder).calibration == expected
    films = str(run.config.lab_ruler.films)
    out = ["--out", str(tmp_path / "out"), "--no-overlays"]
    assert measure.main([films, "--ruler", str(folder), *out]) == 0
    assert "8 films of one lab" in (tmp_path / "out" / "measurements.json").read_text()


def card(folder):
    return (folder / "README.md").read_text()


def test_no_dog_is_on_both_sides_of_a_fold(run):
    films = prepared_films(run.path("lab_films"))
    measured = []
    for fold in range(2):
        task, held_out = fold_task(run, fold)
        learnt = {films[number // VIEWS].name: films[number // VIEWS] for number in task.numbers}
        assert set(learnt) == {film.name for film in task.chosen} and learnt and held_out
        assert not {film.dog for film in learnt.values()} & {film.dog for film in held_out}
        places = [task._place(index) for index in range(task.size)]
        of_films = {number for is_film, number in places if is_film}
        assert of_films == set(task.numbers.tolist()), "nothing else is learnt from"
        measured += [film.name for film in held_out]
    assert sorted(measured) == sorted(film.name for film in films), "each film once"
    everything, nothing = fold_task(run, None)
    assert len(everything.numbers) == VIEWS * len(films) and not nothing


def test_films_are_mixed_with_drawings_by_their_share(run):
    task, _ = fold_task(run, 0)
    films = [task._place(index)[0] for index in range(task.size)]
    assert np.mean(films) == pytest.approx(0.25, abs=0.02)
    assert {task._place(index)[1] for index in range(task.drawn)} == set(range(6))
    part = task.drawings(np.array([0, task.size - 1]))
    assert (part["films"][1] == task.films.films[task.numbers[(task.size - 1 - task.drawn) % 16]]
            ).all() and (part["films"][0] == task.scenes.films[0]).all()  # fmt: skip


def test_a_fold_that_was_interrupted_goes_on_from_its_checkpoint(run, tmp_path):
    from hpc_hipgen.training import loop

    whole = Run(shutil.copytree(run.folder, tmp_path / "whole"))
    halved = Run(shutil.copytree(run.folder, tmp_path / "halved"))
    cross_validate.measure_folds(whole, [("fold", 1)])
    half = halved.config.lab_ruler.training.model_copy(update={"images": 4})
    task, _ = fold_task(halved, 1)
    # the rate of the first half is that of the whole: constant, without warm-up
    folder = halved.path("cross_validation", "fold-1")
    loop.train(task, half.model_copy(update={"schedule": "constant"}), folder, seed=0, title="x")
    cross_validate.measure_folds(halved, [("fold", 1)])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [4, 8]
    assert len(json.loads((folder / "measurements.json").read_text())) == 8


def test_nothing_is_written_for_too_few_dogs(run, tmp_path, capsys):
    path = tmp_path / "lab.yaml"
    path.write_text(json.dumps({**TINY, "name": "lab"}))  # JSON is YAML
    given = [f"lab_ruler.films={run.config.lab_ruler.films}", "--run", str(tmp_path / "run")]
    given = [str(path), *given, "--site", "local"]
    assert launch.main([*given, "lab_ruler.folds=5"]) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if not line.startswith("checking films")]
    assert line.startswith("error: lab_ruler.folds: 5 folds need at least 5 dogs")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="5 folds"):
        other = Run.create(tmp_path / "other", settings(run.config.lab_ruler.films, folds=5))
        prepare.prepare(other)
    assert not other.path("scenes").exists()


def test_errors_of_the_landmark_table_are_listed(tmp_path, capsys):
    films = write_lab(tmp_path / "films", dogs=2)
    table = films / "landmarks.csv"
    table.write_text(table.read_text().replace("film-1.png", "film-9.png"))
    (films / "film-3.png").write_bytes(b"no image")
    path = tmp_path / "lab.yaml"
    path.write_text(json.dumps({**TINY, "name": "lab"}))
    given = [str(path), f"lab_ruler.films={films}", "--run", str(tmp_path / "run")]
    assert launch.main([*given, "--site", "local"]) == 2
    error = capsys.readouterr().err
    assert "2 problems" in error and "film-9.png" in error and "film-3.png" in error
    assert not (tmp_path / "run").exists()


def test_the_report_waits_for_all_folds(run):
    with pytest.raises(ValueError, match="fold 1 is not measured yet"):
        cross_validation.measured_hips(run)


def test_the_shipped_experiment_starts_from_a_ruler_that_is_there(tmp_path):
    config = load_experiment("configs/lab_ruler.yaml")
    assert config.trained() == ["lab_ruler"]
    assert [stage.name for stage in stages(config)] == [
        "prepare", "cross_validate", "train-lab_ruler", "report"
    ]  # fmt: skip
    nowhere = load_experiment(
        "configs/lab_ruler.yaml", [f"film_ruler.pretrained={tmp_path}/nowhere"]
    )
    with pytest.raises(ConfigError) as error:
        check_inputs(nowhere, "x")
    assert "sbatch/film_ruler.sh" in str(error.value) and "lab_ruler.films" in str(error.value)


def test_no_fold_goes_on_from_a_ruler_that_may_know_its_films(tmp_path):
    (tmp_path / "film_ruler.json").write_text('{"lab_films": 8}')
    given = [f"film_ruler.pretrained={tmp_path}", f"lab_ruler.films={tmp_path}"]
    config = load_experiment("configs/lab_ruler.yaml", given)
    with pytest.raises(ConfigError, match="has learnt from films of a lab"):
        check_inputs(config, "x")
    (tmp_path / "film_ruler.json").write_text('{"lab_films": 0}')
    check_inputs(config, "x")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"film_ruler": None}, "film_ruler: needed by lab_ruler"),
        ({"film_ruler": {"dogs": 3}}, "give either pretrained"),
        ({"film_ruler": {"pretrained": "x", "hip": [8, 8]}}, "hip: given, but the pretrained"),
        ({"film_ruler": {"pretrained": "x", "dogs": 3}}, "lab_ruler.training.batch: 4 is above"),
        ({"lab_ruler": {**TINY["lab_ruler"], "film_share": 1}}, "film_share"),
        ({"lab_ruler": {**TINY["lab_ruler"], "folds": 1}}, "folds"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_experiment({**TINY, **change}, "tiny")


@pytest.mark.parametrize("masked", [True, False])
def test_what_was_masked_in_a_labs_films_is_reported(tmp_path, capsys, masked):
    folder = write_lab(tmp_path / "films", dogs=2, size=320)
    with Image.open(folder / "film-0.png") as film:
        dated = film.copy()
    ImageDraw.Draw(dated).text((6, 6), "2019-04-17", 255, ImageFont.load_default(22))
    dated.save(folder / "film-0.png")
    tree = settings(folder).model_dump(mode="json")
    tree["data"] |= {"deidentify": masked}
    run = Run.create(tmp_path / "run", parse_experiment(tree, "tiny"))
    prepare.prepare(run)
    said, report = capsys.readouterr().out, run.path("lab_films", "deidentified.csv")
    assert report.is_file() == run.path("lab_films", "deidentified.png").is_file() == masked
    assert ("is NOT masked" in said) != masked and ("4 films searched" in said) == masked
    if masked:
        with report.open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["action"] == "masked"]
        assert {line["film"] for line in lines} >= {"film-0.png"}


def test_of_the_data_section_a_lab_ruler_takes_masking_alone(tmp_path):
    tree = settings(tmp_path).model_dump(mode="json")
    tree["data"] |= {"keep_markers": False}
    assert not parse_experiment(tree, "x").data.keep_markers
    tree["data"] |= {"train": 9}
    with pytest.raises(ConfigError, match="data: a film ruler is an experiment of its own"):
        parse_experiment(tree, "x")
