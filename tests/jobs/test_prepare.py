"""The stage prepare: what it writes, that it does so once, and what it refuses."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from hpc_hipgen import ROOT
from hpc_hipgen.config import load_experiment
from hpc_hipgen.files import resumed_folder
from hpc_hipgen.radiograph import dataset
from hpc_hipgen.radiograph.duplicates import fingerprint, learnt_by
from hpc_hipgen.radiograph.film_sources import films_learnt
from hpc_hipgen.radiograph.films import FilmErrors
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.rulers.ruler_training import RulerTask
from hpc_hipgen.run import Run
from jobs.prepare import main
from jobs.train import train

TRAINING = {"images": 4, "batch": 1, "lr": 1e-3}


def run_folder(folder, **data):
    """A run folder with the given section `data`."""
    folder.mkdir()
    tree = {"name": "small", "seed": 5, "data": data, "ruler": {"training": TRAINING}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return folder


def film_folder(folder, angle=""):
    folder.mkdir()
    with (folder / "landmarks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("image side head_x head_y head_radius rim_x rim_y norberg_angle".split())
        for n in range(8):
            noise = np.random.default_rng(n).integers(0, 256, (90, 120), np.uint8)
            Image.fromarray(noise).save(folder / f"{n}.png")
            writer.writerow([f"{n}.png", "image_left", 30, 40, 8, 28, 31, angle])
            writer.writerow([f"{n}.png", "image_right", 90, 41, 8, 92, 32, ""])
    return folder


def test_phantoms_are_prepared_once(tmp_path, capsys):
    run = run_folder(tmp_path / "run", train=2, validation=1, test=1, resolution=32, views=2)
    assert main(["--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "train: 2 films, 4 views" in said and "one pixel is" in said
    assert (run / "stages/prepare.json").exists()
    assert read_manifest(run / "data", "train").images.shape == (4, 32, 32)

    before = (run / "data").stat().st_mtime_ns
    assert main(["--run", str(run)]) == 0
    assert "done already" in capsys.readouterr().out
    assert (run / "data").stat().st_mtime_ns == before


def test_rare_angles_become_more_views(tmp_path, capsys):
    given = {"train": 40, "validation": 1, "test": 1, "resolution": 32, "views": 4}
    run = run_folder(tmp_path / "run", **given, balance=1)
    assert main(["--run", str(run)]) == 0
    films = read_manifest(run / "data", "train").film
    each = sorted(Counter(films).values())
    assert len(films) == 160 and 2 <= each[0] < 4 < each[-1] <= 16
    assert f"{each[0]} to {each[-1]} views a training film" in capsys.readouterr().out


def test_eight_films_are_enough(tmp_path, capsys):
    films = film_folder(tmp_path / "films")
    (films / os.fsdecode(b"extra\xe9.png")).write_bytes(b"")
    for n in range(6):
        (films / f"later-{n}.png").write_bytes(b"")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 2
    Image.open(films / "3.png").save(films / "3.png", exif=exif)
    run = run_folder(tmp_path / "run", source="films", films=str(films), resolution=32, views=2)
    assert main(["--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "picture as it is shown: 3.png\n" in said
    assert "7 films without landmarks are left out: extra\\xe9.png, later-0.png" in said
    assert f"later-3.png, ... (all in {run}/data/left_out.csv)\n" in said
    left_out = (run / "data" / "left_out.csv").read_text().splitlines()
    assert left_out == ["film", "extra\\xe9.png", *(f"later-{n}.png" for n in range(6))]
    counts = [len(read_manifest(run / "data", s, True)) for s in ("train", "validation", "test")]
    assert counts == [5, 1, 2]
    assert "train: 5 films of 5 dogs, 10 views" in said


def with_ruler(folder, films, **ruler):
    """A run that measures `films` with a ruler from elsewhere."""
    export = folder / "ruler"
    export.mkdir()
    (export / "ruler.json").write_text(json.dumps({"source": "films", "resolution": 32, **ruler}))
    run = run_folder(folder / "measures", train=2, validation=1, test=1, resolution=32, views=1)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["ruler"] = {"pretrained": str(export), "training": TRAINING}
    tree["evaluation"] = {"films": str(films)}
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    return run


def test_a_ruler_never_measures_films_that_it_learnt_from(tmp_path, capsys):
    films = film_folder(tmp_path / "films")
    own = run_folder(tmp_path / "own", source="films", films=str(films), resolution=32, views=2)
    assert main(["--run", str(own)]) == 0
    learnt = RulerTask(load_experiment(own / "config.yaml"), own / "data").training_films()
    assert len(learnt) == 10, "two a film, whatever its views"

    # an older export has those of the views alone; another annotator has other views
    views = read_manifest(own / "data", "train", nominal_only=True).images
    table = (films / "landmarks.csv").read_text()
    moved = table.replace(",28,31,", ",29,31,")
    for name, known, text in (
        ("old", [fingerprint(view) for view in views], table),
        ("moved", learnt, moved),
    ):
        (films / "landmarks.csv").write_text(text)
        (tmp_path / name).mkdir()
        run = with_ruler(tmp_path / name, films, training_films=known)
        capsys.readouterr()
        assert main(["--run", str(run)]) == 2
        said = capsys.readouterr().err
        assert said.count("has learnt from this film, which is held out") == 5
        assert sorted(path.name for path in run.iterdir()) == ["config.yaml"]


def test_a_teacher_is_not_tuned_by_a_ruler_that_knows_the_held_out_films(tmp_path, capsys):
    films = film_folder(tmp_path / "films")
    given = {"source": "films", "films": str(films), "resolution": 32, "views": 2}
    own = run_folder(tmp_path / "own", **given)
    assert main(["--run", str(own)]) == 0
    held_out = read_manifest(own / "data", "test", nominal_only=True).images
    (export := tmp_path / "ruler").mkdir()
    learnt = {"training_films": [fingerprint(view) for view in held_out]}
    (export / "ruler.json").write_text(json.dumps({"source": "films", "resolution": 32} | learnt))
    run = run_folder(tmp_path / "tuned", **given)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["reward_model"] = {"pretrained": str(export)}
    tree |= {"stable_diffusion": {"training": TRAINING}, "feedback": {"training": TRAINING}}
    tree |= {"autoencoder": {"training": TRAINING}, "ruler": {"training": TRAINING}}
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["--run", str(run)]) == 2
    assert capsys.readouterr().err.count("(reward_model.pretrained=null)") == len(held_out)


def test_a_ruler_that_does_not_say_from_which_films_it_learnt_is_named(tmp_path, capsys):
    run = with_ruler(tmp_path, film_folder(tmp_path / "films"))
    assert main(["--run", str(run)]) == 0
    assert "has learnt from films and does not say from which" in capsys.readouterr().out


def test_films_that_a_base_has_learnt_from_are_not_held_out(tmp_path, capsys):
    films = film_folder(tmp_path / "films")

    def autoencoder_run(name, seed, **section):
        run = run_folder(tmp_path / name, source="films", films=str(films), resolution=32)
        tree = yaml.safe_load((run / "config.yaml").read_text()) | {"seed": seed}
        tree["autoencoder"] = section
        tree["stable_diffusion"] = {"training": TRAINING} | {
            "text": {"hidden_size": 32, "layers": 1, "heads": 2},
            "unet": {"block_out_channels": [16, 32], "attention": [False, True], "head_dim": 16},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(tree))
        return run

    own = autoencoder_run("own", 5, block_out_channels=[8, 8, 8], training=TRAINING)
    assert main(["--run", str(own)]) == 0
    train(Run(own), "autoencoder")
    export = own / "autoencoder" / "export"
    learnt = set(read_manifest(own / "data", "train").film)
    assert len(json.loads((export / "training_films.json").read_text())) == len(learnt) == 5
    # the same split is fine, and what is trained on top of it knows both
    same = autoencoder_run("same", 5, pretrained=str(export))
    assert main(["--run", str(same)]) == 0
    assert films_learnt(Run(same)) == learnt_by(export)
    capsys.readouterr()
    other = autoencoder_run("other", 6, pretrained=str(export))
    assert main(["--run", str(other)]) == 2
    said = capsys.readouterr().err
    plain = autoencoder_run("plain", 6, block_out_channels=[8, 8, 8], training=TRAINING)
    assert main(["--run", str(plain)]) == 0
    clash = learnt - {*read_manifest(plain / "data", "train").film}
    assert clash and said.count("has learnt from this film") == len(clash)
    assert all(f"{name}: autoencoder.pretrained ({export})" in said for name in clash)
    assert sorted(path.name for path in other.iterdir()) == ["config.yaml"]


def test_films_to_measure_are_none_of_the_data_set(tmp_path, capsys):
    films, other = film_folder(tmp_path / "films"), film_folder(tmp_path / "other")
    Image.fromarray(np.array(Image.open(other / "0.png"))[::-1]).save(other / "0.png")
    run = run_folder(tmp_path / "run", source="films", films=str(films), resolution=32)
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["evaluation"] = {"films": str(other)}
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["--run", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("is the same picture as") == 7 and "0.png" not in said


def test_bad_films_end_in_status_2_and_leave_nothing(tmp_path, capsys):
    films = film_folder(tmp_path / "films", angle="60")
    (films / "3.png").unlink()
    run = run_folder(tmp_path / "run", source="films", films=str(films))
    assert main(["--run", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("the landmarks give") == 8
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize("source", ["phantoms", "films", "films, not masked"])
def test_an_interrupted_stage_goes_on_with_the_next_film(tmp_path, monkeypatch, source):
    given = {"train": 3, "validation": 1, "test": 1, "resolution": 32, "views": 2}
    if source != "phantoms":
        films = film_folder(tmp_path / "films")
        given |= {"source": "films", "films": str(films), "deidentify": source == "films"}
    whole, run = (run_folder(tmp_path / name, **given) for name in ("whole", "run"))
    assert main(["--run", str(whole)]) == 0
    begun, write_views = [], dataset._write_views

    def counted(task, left):
        if len(begun) == left:
            raise KeyboardInterrupt
        begun.append(task[2].name)
        return write_views(task)

    def interrupt(*_):
        raise KeyboardInterrupt

    def attempt(left):
        monkeypatch.setattr(dataset, "_write_views", partial(counted, left=left))
        return main(["--run", str(run)])

    assert attempt(2) == 130
    assert not (run / "data").exists() and len(begun) == 2
    (partial_folder,) = run.glob("data.partial-*")
    first = sorted((partial_folder / "data" / "images").rglob("*.png"))
    lost = first[-1]
    lost.write_bytes(b"")  # a machine that lost its power
    monkeypatch.setattr(dataset, "write_layouts", interrupt)
    assert attempt(99) == 130
    assert len(set(begun)) == len(begun) - 1, "the one that lost a view was made again"
    monkeypatch.undo()
    begun.clear()
    assert attempt(0) == 0 and not begun
    files = {p.relative_to(whole) for p in whole.rglob("*") if p.is_file()}
    assert files == {p.relative_to(run) for p in run.rglob("*") if p.is_file()}
    for file in files - {Path("stages/prepare.json"), Path("config.yaml")}:
        assert (whole / file).read_bytes() == (run / file).read_bytes(), file


def test_after_a_mistake_nothing_is_left_and_after_a_failure_what_was_made(tmp_path, monkeypatch):
    run = run_folder(tmp_path / "run", train=2, validation=1, test=1, resolution=32, views=1)

    def fail(error, *_):
        raise error

    for error, left in ((ValueError("a disk that is away"), 2), (FilmErrors(["a film"]), 1)):
        monkeypatch.setattr(dataset, "write_layouts", partial(fail, error))
        assert main(["--run", str(run)]) == 2
        assert len(list(run.iterdir())) == left
    monkeypatch.undo()
    with resumed_folder(run / "data", "key", OSError) as (content, notes):
        # another process that is at it has folders of its own
        with resumed_folder(run / "data", "key", OSError) as (other, more):
            assert other != content and more != notes
            (other / "file").write_text("the other's")
        assert (run / "data" / "file").read_text() == "the other's"
        (content / "file").write_text("this one's")
    assert (run / "data" / "file").read_text() == "this one's"
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "data"]


def test_what_was_begun_for_other_settings_is_not_gone_on_with(tmp_path):
    run = run_folder(tmp_path / "run", train=2, validation=1, test=1, resolution=32, views=1)
    other = run / "data.partial-0123456789ab"
    (other / "images").mkdir(parents=True)
    assert main(["--run", str(run)]) == 0
    assert not other.exists() and (run / "data" / "manifest.csv").is_file()


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["--run", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_the_record_of_the_program_is_no_run(capsys):
    assert main(["--run", str(ROOT / "results" / "reference")]) == 2
    assert "is a record, no run" in capsys.readouterr().err


def test_help_teaches_without_heavy_imports():
    code = (
        "import sys, jobs.prepare\n"
        "try: jobs.prepare.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'pydicom'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "norberg_angle" in done.stdout and done.stdout.strip().endswith("[]")
