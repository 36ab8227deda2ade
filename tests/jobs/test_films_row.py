"""The row `films`: real films (here saved phantoms) that are measured and never trained on."""

import csv
import io
import json
import math
import shutil
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image

from hpc_hipgen.config import ConfigError, check_inputs, parse_experiment
from hpc_hipgen.evaluation import distances, real_films
from hpc_hipgen.evaluation.samples import read_samples
from hpc_hipgen.files import write_atomic
from hpc_hipgen.pipeline import real_films as count_real_films
from hpc_hipgen.pipeline import report_items, sample_shard, stages
from hpc_hipgen.radiograph.film_sources import check_prepared, read_films
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.rulers.ruler import Measurement
from hpc_hipgen.run import Run
from jobs import evaluate, launch, prepare, report, sample

TRAINING = {"images": 4, "batch": 1, "lr": 1e-3}
ROWS = ("ruler", "films", "round_trip", "round_trip_discrete", "llcm_4")
DATA = {"train": 3, "validation": 1, "test": 3, "resolution": 32, "views": 1}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of two films with a table that would train on one of them."""
    folder = tmp_path_factory.mktemp("clinic")
    with (folder / "landmarks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("image side head_x head_y head_radius rim_x rim_y split".split())
        for n, split in enumerate(("train", "test")):
            phantom = draw_phantom(3, n, 160)
            Image.fromarray(phantom.image).save(folder / f"{n}.png")
            for side, hip in zip(
                ("image_left", "image_right"), phantom.landmarks.to_array(), strict=True
            ):
                writer.writerow([f"{n}.png", side, *hip, split])
    return folder


def experiment(films, **more):
    tree = {
        "name": "row",
        "data": DATA,
        "ruler": {"training": TRAINING},
        "sampling": {"per_caption": 2, "shard_size": 4},
        "evaluation": {"films": str(films), "permutations": 20},
    }
    return parse_experiment({**tree, **more}, "test")


@pytest.fixture
def run(films, tmp_path):
    return Run.create(tmp_path / "run", experiment(films))


def angles(films):
    """Angles (left, right of the patient) of each film, from the phantoms themselves."""
    drawn = {f"{n}.png": draw_phantom(3, n, 160).landmarks.norberg_angles() for n in range(2)}
    return {film: (a.patient_left, a.patient_right) for film, a in drawn.items()}


def test_films_become_views_beside_the_data_and_all_of_them_are_measured(run, films, capsys):
    assert run.rows() == ["ruler", "films"]
    assert count_real_films(run) is None and report_items(run) is None
    assert prepare.main(["--run", str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert "real films to measure, none of them trained on: 2" in said
    assert "real films, resolution, views: 19 px between the heads" in said

    views = read_manifest(run.path("films"), "test")
    assert sorted(views.film) == ["0.png", "1.png"] and views.images.shape == (2, 32, 32)
    with pytest.raises(ValueError, match="no view in split train"):
        read_manifest(run.path("films"), "train")
    assert not any(name.endswith(".png") for name in read_manifest(run.path("data"), "train").film)
    for film, left, right in zip(views.film, views.patient_left, views.patient_right, strict=True):
        assert (left, right) == pytest.approx(angles(films)[film], abs=0.02)
    # one image a film, whatever is drawn of a caption
    assert report_items(run) == [("ruler", 0), ("films", 0)]


def test_samples_are_the_views_with_what_their_landmarks_say(run, films):
    prepare.prepare(run)
    assert sample.sample_items(run, report_items(run)) == 2
    found = read_samples(sample_shard(run, ("films", 0)))
    views = read_manifest(run.path("films"), "test")
    assert [s.info["film"] for s in found] == views.film
    for s, image in zip(found, views.images, strict=True):
        assert np.array_equal(s.image, image)
        assert (s.info["asked_left"], s.info["asked_right"]) == pytest.approx(
            angles(films)[s.info["film"]], abs=0.02
        )
    with tarfile.open(sample_shard(run, ("films", 0))) as tar:
        pngs = [tar.extractfile(m).read() for m in tar if m.name.endswith(".png")]
    assert all("synthetic" not in Image.open(io.BytesIO(png)).info for png in pngs)
    assert len(read_samples(sample_shard(run, ("ruler", 0)))) == DATA["test"]


def test_films_that_went_through_an_autoencoder_are_still_those_of_patients(films):
    phantoms = experiment(films)
    real = experiment(films, data={"source": "films", "films": "x", "resolution": 32})
    of = {row: [sample.is_synthetic(c, row) for c in (phantoms, real)] for row in ROWS}
    assert of == {
        "ruler": [False, False],
        "films": [False, False],
        "round_trip": [True, False],
        "round_trip_discrete": [True, False],
        "llcm_4": [True, True],
    }


class StubRuler:
    """Says 100 degrees of every hip; refuses the first view of every call."""

    def measure(self, images, batch=64):
        marks = np.array([[8, 16, 3, 7, 12], [24, 16, 3, 25, 12]], dtype=float)
        seen = Measurement(100.0, 100.0, 0.9, marks)
        return [Measurement(math.nan, math.nan, 0.01, marks, "blank"), *[seen] * (len(images) - 1)]


class StubBackbone:
    name = "stub"

    def to(self, device):
        return self

    def extract(self, images, batch, label=None):
        return np.asarray(images).reshape(len(images), -1)[:, :4].astype(np.float32)


@pytest.mark.slow
def test_the_report_shows_every_hip_with_the_caveat(run, films, monkeypatch, capsys):
    monkeypatch.setattr("hpc_hipgen.rulers.ruler.ruler_of", lambda run, device: StubRuler())
    monkeypatch.setattr(distances, "load_backbone", lambda inception: StubBackbone())
    prepare.prepare(run)
    sample.sample_items(run, report_items(run))
    evaluate.evaluate_items(run, evaluate.items(run))
    capsys.readouterr()
    assert report.main(["--run", str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert said.count(real_films.CAVEAT) == 1 and "2 hips measured, 2 refused" in said

    metrics = json.loads(run.path("report", "metrics.json").read_text())
    assert metrics["faithfulness"]["films"]["left"]["failed"] == 1
    known = [hip for hip in metrics["films"]["hips"] if hip["error"] is not None]
    truth = angles(films)["1.png"]
    assert [hip["error"] for hip in known] == pytest.approx([100 - a for a in truth], abs=0.03)
    assert metrics["films"]["mae"] == pytest.approx(
        np.mean([abs(100 - a) for a in truth]), abs=0.02
    )
    with run.path("report", "films.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == real_films.COLUMNS and len(lines) == 4
    assert (lines[0]["measured"], lines[0]["reason"]) == ("", "blank")

    page = run.path("report", "report.html").read_text()
    assert page.count("landmarks that a person placed") >= 2
    assert 'class="annotated"' in page and "but those of the row “Real films (ruler)”" in page
    # made again from what is there: the table is printed all the same
    assert report.main(["--run", str(run.folder)]) == 0
    assert capsys.readouterr().out.count(real_films.CAVEAT) == 1


def test_a_finished_launch_prints_the_table(run, films, tmp_path, capsys):
    for stage in stages(run.config):
        if stage.items is None:
            run.mark_done(stage.name)
    run.path("films").mkdir()
    run.path("films", "manifest.csv").write_text("split,view\ntest,0\n")
    for item in [("ruler", 0), ("films", 0), ("reference", 0)]:
        for stage in stages(run.config):
            if stage.items:
                path = stage.artefact(run, item)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    hip = {"film": "a.png", "side": "left", "annotated": 90.0, "measured": 93.5, "error": 3.5}
    section = {"hips": [{**hip, "confidence": 0.5, "reason": ""}], "caveat": "estimates!"}
    section |= {"measured": 1, "failed": 0, "mae": 3.5, "bias": 3.5}
    section |= {"constant_mae": None, "ruler_mae": 0.75}
    run.path("report").mkdir()
    run.path("report", "metrics.json").write_text(json.dumps({"films": section}))
    assert launch.main([str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert "everything is done" in said and "estimates!" in said
    assert "a.png  left        90.0      93.5    +3.5        0.50\n" in said
    assert "held-out films of its data set: 0.75 degrees" in said and "always answering" not in said
    run.path("report", "metrics.json").write_text("{")
    assert launch.main([str(run.folder)]) == 2
    assert f"make it again: python -m jobs.report --run {run.folder}" in capsys.readouterr().err


def test_bad_films_end_with_all_problems_before_anything_is_written(films, tmp_path, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    text = (films / "landmarks.csv").read_text().replace("image_left", "left", 1)
    (bad / "landmarks.csv").write_text(text)
    (bad / "1.png").write_bytes((films / "1.png").read_bytes()[:500])
    path = tmp_path / "row.yaml"
    path.write_text(yaml.safe_dump(experiment(bad).model_dump(mode="json")))
    folder = tmp_path / "runs" / "x"
    assert launch.main([str(path), "--run", str(folder)]) == 2
    said = capsys.readouterr()
    for words in ("row 2: side 'left'", "0.png: cannot be opened", "1.png: damaged or truncated"):
        assert words in said.err
    assert said.out == "" and not folder.parent.exists()

    run = Run.create(folder, experiment(bad))
    assert prepare.main(["--run", str(folder)]) == 2
    assert [p.name for p in run.folder.iterdir()] == ["config.yaml"]


def test_films_that_change_once_they_are_prepared_are_not_ignored(
    films, tmp_path, capsys, monkeypatch
):
    own = shutil.copytree(films, tmp_path / "own")
    run = Run.create(tmp_path / "run", experiment(own))
    prepare.prepare(run)
    prepare.prepare(run)  # nothing has
    table = own / "landmarks.csv"
    given = [str(run.folder), "--site", "local", "--dry-run"]
    for path, content in ((own / "1.png", b"longer"), (table, b"\n")):
        before = path.read_bytes()
        path.write_bytes(before + content)
        capsys.readouterr()
        for status in (launch.main(given), prepare.main(["--run", str(run.folder)])):
            assert status == 2
        said = capsys.readouterr().err.splitlines()
        line = f"error: evaluation.films: {path} has changed since this run was prepared: put"
        assert len(said) == 2 and all(text.startswith(line) for text in said)
        path.write_bytes(before)
    assert launch.main(given) == 0
    with monkeypatch.context() as theirs:  # of a user who may not read it any more
        theirs.setattr("os.access", lambda path, _: path != table)
        table.write_text("")
        assert launch.main(given) == 0
    table.write_bytes(before)
    (own / "1.png").unlink()  # as after they were put away
    assert launch.main(given) == 0
    table.write_text("")
    marker = run.done("prepare")
    marker.pop("sources")  # a run of before
    write_atomic(run.path("stages", "prepare.json"), json.dumps(marker))
    assert launch.main(given) == 0


def test_films_that_have_changed_are_not_prepared_anew_for_models_that_are_there(films, tmp_path):
    """A purged scratch may take the marker: dogs would be dealt anew."""
    own = shutil.copytree(films, tmp_path / "own")
    run = Run.create(tmp_path / "run", experiment(own))
    prepare.prepare(run)
    table = own / "landmarks.csv"
    table.write_text(table.read_text() + "\n")
    run.unmark("prepare")
    check_prepared(run)  # nothing is trained yet: made again
    run.mark_done("train-ruler")
    with pytest.raises(ConfigError, match="has changed since this run was prepared"):
        check_prepared(run)
    with pytest.raises(ConfigError, match="has changed since this run was prepared"):
        prepare.prepare(run)


def test_both_sets_of_films_are_checked_at_once(films, tmp_path):
    for name in ("trained", "measured"):
        (tmp_path / name).mkdir()
    data = {**DATA, "source": "films", "films": str(tmp_path / "trained")}
    with pytest.raises(ValueError) as error:
        read_films(experiment(tmp_path / "measured", data=data))
    assert "2 problems" in str(error.value)
    assert all(f"{name}/landmarks.csv" in str(error.value) for name in ("trained", "measured"))


def test_films_that_are_only_measured_need_no_splits(films, tmp_path):
    """A table that deals some of its films, or one dog twice, says nothing of measuring them."""
    own = shutil.copytree(films, tmp_path / "own")
    table = own / "landmarks.csv"
    table.write_text(table.read_text().replace("test", ""))
    _, measured = read_films(experiment(own))
    assert [film.split for film in measured] == ["test", "test"]


def test_films_are_not_trained_on_and_measured(films):
    data = {**DATA, "source": "films", "films": str(films.parent)}
    with pytest.raises(ConfigError, match=r"evaluation.films: .* shares films with data.films"):
        experiment(films, data=data)
    with pytest.raises(ConfigError, match=r"x: evaluation.films: .*nowhere is not a folder"):
        check_inputs(experiment(films / "nowhere"), "x")
    check_inputs(experiment(films / "nowhere"), "x", done=["prepare"])
    with pytest.raises(ConfigError, match=r"evaluation.landmarks: given without"):
        experiment(films, evaluation={"landmarks": "table.csv"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no ruler.json"),
        ("{", "is damaged"),
        ('{"resolution": 64}', "resolution 64, but data.resolution is 32; set data.resolution=64"),
        ('{"resolution": 32, "head_distance": 0.66}', "head_distance 0.66, but"),
    ],
)
def test_a_ruler_of_other_views_is_refused(films, tmp_path, content, words):
    if content:
        (tmp_path / "ruler.json").write_text(content)
    ruler = {"training": TRAINING, "pretrained": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"ruler\.pretrained") as error:
        check_inputs(experiment(films, ruler=ruler), "x")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_ruler_of_the_same_views_is_not_trained_again(films, tmp_path):
    (tmp_path / "ruler.json").write_text('{"resolution": 32, "head_distance": 0.6}')
    ruler = {"training": TRAINING, "pretrained": str(tmp_path)}
    config = experiment(films, ruler=ruler)
    check_inputs(config, "x")
    assert config.trained() == []
