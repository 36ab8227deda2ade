"""python -m jobs.measure: files, folders and globs in; tables, pictures and an exit status out."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom
from films_with_markers import dot_ruler, marked_film
from PIL import Image

from hpc_hipgen.evaluation.samples import png
from hpc_hipgen.radiograph import films as films_module
from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.rulers import film_check, film_measuring
from hpc_hipgen.rulers.film_ruler import load_film_ruler
from jobs import measure


@pytest.fixture
def films(tmp_path, monkeypatch):
    """Two films, a picture without hips and a damaged file, measured by a ruler that sees dots."""
    monkeypatch.setattr(measure, "_ruler", lambda folder: dot_ruler())
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "films"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(marked_film()[0]).save(folder / "a.png")
    Image.fromarray(marked_film(angles=(90.0, 108.0))[0]).save(folder / "more" / "b.tif")
    noise = np.random.default_rng(0).integers(90, 110, (300, 400), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "z.png").write_bytes((folder / "a.png").read_bytes()[:900])
    return folder


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "measurements.csv").open(newline="") as file:
        return {Path(row["film"]).name: row for row in csv.DictReader(file)}


def annotate(path, film, landmarks):
    """A table of the landmarks of one film."""
    lines = ["image,side,head_x,head_y,head_radius,rim_x,rim_y"]
    for side, hip in zip(("image_left", "image_right"), landmarks.to_array(), strict=True):
        lines.append(f"{film},{side},{','.join(map(str, hip))}")
    path.write_text("\n".join(lines))


def test_a_folder_is_measured_whatever_is_in_it(films, capsys):
    assert measure.main(["films", "--out", "out"]) == 1
    rows = table(Path("out"))
    status = {name: row["status"] for name, row in rows.items()}
    assert status == {
        "a.png": "measured",
        "b.tif": "measured",
        "noise.png": "refused",
        "z.png": "unreadable",
    }
    # the patient's left hip is at the image's right
    assert float(rows["b.tif"]["patient_left"]) == pytest.approx(108, abs=0.7)
    assert rows["b.tif"]["fci_left"] == "A" and rows["b.tif"]["fci_right"] == "E"
    assert rows["noise.png"]["reason"].startswith("no hips found")
    assert rows["z.png"]["patient_left"] == ""
    stored = json.loads(Path("out/measurements.json").read_text())
    assert [film["status"] for film in stored["films"]].count("measured") == 2
    assert stored["ruler"] == str(measure.SHIPPED_RULER) and len(stored["ruler_sha256"]) == 64
    assert "2 films measured, 0 uncertain, 1 refused, 1 unreadable" in capsys.readouterr().out
    with Image.open("out/overlays/a.png.png") as picture:
        assert picture.info["measured-by"] == "hpc_hipgen"
    assert not Path("out/overlays/z.png.png").exists()


def test_a_drawing_is_measured_and_named(films, capsys):
    (films / "drawn.png").write_bytes(png(marked_film()[0], synthetic=True))
    assert measure.main(["films/a.png", "films/drawn.png", "films/z.png", "--out", "out"]) == 1
    rows = table(Path("out"))
    assert {name: row["synthetic"] for name, row in rows.items()} == {
        "a.png": "False",
        "drawn.png": "True",
        "z.png": "",
    }
    assert rows["drawn.png"]["status"] == "measured"
    assert rows["drawn.png"]["patient_left"] == rows["a.png"]["patient_left"]
    said = capsys.readouterr().err
    assert said.count("marked as synthetic") == 1 and "films/drawn.png: marked as synth" in said
    marks = [Image.open(f"out/overlays/{name}.png").info for name in ("a.png", "drawn.png")]
    assert ["synthetic" in mark for mark in marks] == [False, True]


def test_globs_files_and_folders_name_a_film_once(films):
    found = film_measuring.find_films(["films/*.png", "films/a.png", "films/more"], Path("out"))
    assert [path.name for path in found] == ["a.png", "noise.png", "z.png", "b.tif"]


def test_a_disc_of_dicom_is_read_and_pictures_of_an_earlier_call_are_not(films):
    dicom = bytes(128) + b"DICM"
    for name in ("IM0001", "1.2.840.7", "DICOMDIR", "._IM0001"):
        (films / "more" / name).write_bytes(dicom)
    (films / "more" / "notes").write_text("not a film")
    assert measure.main(["films/a.png", "--out", "films/out"]) == 0
    assert Path("films/out/overlays/a.png.png").is_file()
    found = film_measuring.find_films(["films"], Path("films/out"))
    names = ["a.png", "1.2.840.7", "IM0001", "b.tif", "noise.png", "z.png"]
    assert [path.name for path in found] == names


def test_an_interruption_leaves_what_was_measured(films, monkeypatch, capsys):
    inner = film_measuring._read

    def read(path):
        if path.name == "noise.png":
            raise KeyboardInterrupt
        return inner(path)

    monkeypatch.setattr(film_measuring, "_read", read)
    assert measure.main(["films", "--out", "out", "--batch", "1"]) == 130
    assert set(table(Path("out"))) == {"a.png", "b.tif"}
    assert "interrupted after 2 of 4 files" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["_ruler", "_read"])
def test_an_interruption_before_the_first_film_leaves_an_earlier_table(
    films, monkeypatch, capsys, step
):
    def interrupt(_):
        signal.raise_signal(signal.SIGTERM)  # as Slurm does

    before = signal.getsignal(signal.SIGTERM)
    Path("out").mkdir()
    Path("out/measurements.csv").write_text("of an earlier call")
    if step == "_ruler":
        monkeypatch.setattr(measure, step, interrupt)
    else:
        monkeypatch.setattr(
            film_measuring, "_measured", lambda *_: (interrupt(_) for _ in range(1))
        )
    assert measure.main(["films", "--out", "out"]) == 130
    assert Path("out/measurements.csv").read_text() == "of an earlier call"
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_pictures_that_cannot_be_written_lose_no_measurement(films, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(film_measuring, "_draw", full)
    assert measure.main(["films/a.png", "films/more", "--out", "out"]) == 1
    assert set(table(Path("out"))) == {"a.png", "b.tif"}
    assert "No space left on device; stopped after 2 of 2 files" in capsys.readouterr().err


def test_a_process_that_is_killed_loses_few_films(films, monkeypatch):
    monkeypatch.setattr(film_measuring, "KEPT_EVERY", 3)
    monkeypatch.setattr(measure, "_kept", lambda *_: 0)  # where it never comes
    assert measure.main(["films", "--out", "out"]) == 0
    assert len(table(Path("out"))) == 3


def test_a_disk_that_takes_no_table_either_loses_no_measurement(films, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    begun = []
    monkeypatch.setattr(film_measuring, "_draw", lambda *_: begun.append(1) or full())
    monkeypatch.setattr("hpc_hipgen.files.write_atomic", full)
    assert measure.main(["films", "--out", "out", "--batch", "1"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("film,status,") and said.out.count(",measured,") == 2
    assert "the measurements are printed above" in said.err
    assert not Path("out/measurements.csv").exists()


def test_the_ruler_that_was_made_where_the_site_has_its_runs_is_taken(films, monkeypatch, tmp_path):
    assert measure._default_ruler() == measure.SHIPPED_RULER
    site = tmp_path / "site.yaml"
    site.write_text(f"results: {tmp_path}/scratch")
    monkeypatch.setenv("HIPGEN_SITE", str(site))
    assert measure._default_ruler() == measure.SHIPPED_RULER
    there = tmp_path / "scratch" / "film_ruler" / "film_ruler" / "export"
    there.mkdir(parents=True)
    assert measure._default_ruler() == there
    (tmp_path / measure.OWN_RULER).mkdir(parents=True)
    assert measure._default_ruler() == measure.OWN_RULER


def test_films_that_cannot_be_read_are_not_left_out(films, monkeypatch, capsys):
    (films / "gone.dcm").symlink_to("nowhere")  # content that was not fetched
    for other in ("latest", ".#a.png"):  # a link to a folder that is gone, a lock of an editor
        (films / other).symlink_to("nowhere")
    assert measure.main(["films", "--out", "out"]) == 1
    found = table(Path("out"))
    assert found["gone.dcm"]["status"] == "unreadable" and len(found) == 5

    def closed(top, onerror, **_):
        onerror(PermissionError(13, "Permission denied", f"{top}/more"))
        return iter(())

    monkeypatch.setattr("os.walk", closed)
    assert measure.main(["films", "films/a.png", "--out", "out"]) == 2, "none is left in it"
    said = capsys.readouterr().err
    assert "warning: films/more: cannot be read (Permission denied); its films are left" in said


def test_whatever_stops_it_what_was_measured_is_kept(films, monkeypatch):
    def broken(*_):
        raise RuntimeError("a kernel")

    monkeypatch.setattr(film_measuring, "_draw", broken)
    with pytest.raises(RuntimeError, match="a kernel"):
        measure.main(["films/a.png", "films/more", "--out", "out"])
    assert set(table(Path("out"))) == {"a.png", "b.tif"}


def test_pictures_of_any_earlier_call_are_not_measured(films):
    assert measure.main(["films/a.png", "--out", "films/first"]) == 0
    assert (films / "first" / "overlays" / "a.png.png").is_file()
    found = film_measuring.find_films(["films"], Path("second"))
    assert [path.name for path in found] == ["a.png", "b.tif", "noise.png", "z.png"]


def test_a_table_of_other_films_is_not_replaced(films, capsys):
    assert measure.main(["films/a.png", "films/more", "--out", "out"]) == 0
    before = Path("out", "measurements.csv").read_bytes()
    assert measure.main(["films/a.png", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert "out/measurements.csv has 1 films that are not among these, films/more/b.tif" in said
    assert Path("out", "measurements.csv").read_bytes() == before
    assert measure.main(["films", "--out", "out"]) == 1 and len(table(Path("out"))) == 4


@pytest.mark.parametrize("out", ["file", "file/below", "taken"])
def test_an_out_folder_that_cannot_be_is_said_before_anything_is_measured(
    films, monkeypatch, capsys, out
):
    Path("taken").mkdir()
    for name in ("file", "taken/overlays"):
        Path(name).write_text("")
    monkeypatch.setattr(measure, "measure_files", lambda *_: pytest.fail("measured for nothing"))
    assert measure.main(["films", "--out", out]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --out: cannot write to {out}") and said.count("\n") == 1


def test_any_name_of_a_file_is_reported(films, capsys):
    odd, long = os.fsdecode(b"fallo\xe9.png"), f"{'x' * 251}.png"
    for name in (odd, long):
        shutil.copy(films / "a.png", films / "more" / name)
    annotate(films / "more" / "landmarks.csv", long, marked_film()[1])
    given = ["--out", "out", "--landmarks", "films/more/landmarks.csv"]
    assert measure.main(["films/more", *given]) == 0
    rows = table(Path("out"))
    assert set(rows) == {"b.tif", "fallo\\xe9.png", long}
    assert {row["status"] for row in rows.values()} == {"measured"}
    pictures = {path.name for path in Path("out/overlays").iterdir()}
    assert pictures == {"b.tif.png", "fallo\\xe9.png.png", f"{'x' * 200}.png"}
    assert "2 hips measured, 0 not" in capsys.readouterr().out


def test_no_two_pictures_have_one_name():
    files = [Path(name) for name in ("a/IM1", "b/IM1", "c/IM1-2", "d/IM1", "e/IM1-2-2")]
    names = film_measuring._overlay_names(files)
    assert [names[path] for path in files] == [
        "IM1.png", "IM1-2.png", "IM1-2-2.png", "IM1-3.png", "IM1-2-2-2.png"
    ]  # fmt: skip


def test_results_may_lie_beside_the_films(films):
    for _ in range(2):  # the second call finds the pictures of the first, and leaves them alone
        assert measure.main(["films", "--out", "films"]) == 1
        assert set(table(films)) == {"a.png", "b.tif", "noise.png", "z.png"}


def test_a_file_that_raises_whatever_it_likes_stops_nothing(films, monkeypatch):
    inner = films_module.read_spaced_film

    def read(path):
        if path.name == "a.png":
            raise TypeError("of a decoder")
        return inner(path)

    monkeypatch.setattr(films_module, "read_spaced_film", read)
    assert measure.main(["films", "--out", "out"]) == 1
    rows = table(Path("out"))
    assert rows["a.png"]["reason"] == "of a decoder" and rows["b.tif"]["status"] == "measured"


def test_refused_films_are_no_failure(films):
    assert measure.main(["films/noise.png", "--no-overlays", "--out", "out"]) == 0
    assert not Path("out/overlays").exists()


@pytest.mark.parametrize("wrong", ["nothing.png", "films/*.dcm", "empty"])
def test_an_argument_that_names_nothing_writes_nothing(films, wrong, capsys):
    Path("empty").mkdir()
    assert measure.main(["films/a.png", wrong, "--out", "out"]) == 2
    assert wrong in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_a_ruler_the_way_to_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "SHIPPED_RULER", tmp_path / "absent")
    Image.fromarray(marked_film()[0]).save("a.png")
    assert measure.main(["a.png"]) == 2
    assert "sbatch/film_ruler.sh" in capsys.readouterr().err


def test_errors_against_landmarks(films, capsys):
    annotate(films / "landmarks.csv", "a.png", marked_film()[1])
    given = ["films/a.png", "--landmarks", "films/landmarks.csv", "--out", "out"]
    assert measure.main(given) == 0
    assert "2 hips measured, 0 not; mean absolute error 0." in capsys.readouterr().out
    assert json.loads(Path("out/measurements.json").read_text())["against_landmarks"]["hips"] == 2


def test_annotated_angles_of_a_file_that_cannot_be_read_are_those_of_their_sides(films, capsys):
    annotate(films / "landmarks.csv", "z.png", marked_film(angles=(90.0, 108.0))[1])
    given = ["films/z.png", "--landmarks", "films/landmarks.csv", "--out", "out"]
    assert measure.main(given) == 1
    said = capsys.readouterr().out
    assert "left       108.0   unreadable" in said and "right       90.0   unreadable" in said


@pytest.mark.parametrize(
    ("orientation", "kind", "at_right"),
    [
        (["L", "F"], None, "left"),
        (["R", "F"], None, "right"),
        (["RT", "CD"], "QUADRUPED", "right"),
        (["RF", "FL"], None, "right"),
        (["LFA", "F"], None, "left"),
        (["RTCR", "CD"], "QUADRUPED", "right"),
        (["FR", "R"], None, ""),
        (["R", "CD"], "QUADRUPED", ""),
        (None, None, ""),
    ],
)
def test_sides_are_those_of_the_dicom_file(films, orientation, kind, at_right, capsys):
    film, landmarks = marked_film(angles=(90.0, 108.0))
    dataset = dicom(film)
    dataset.PatientOrientation, dataset.AnatomicalOrientationType = orientation, kind
    dataset.save_as("sided.dcm", enforce_file_format=True)
    annotate(Path("landmarks.csv"), "sided.dcm", landmarks)
    assert measure.main(["sided.dcm", "--out", "out", "--landmarks", "landmarks.csv"]) == 0
    row = table(Path("out"))["sided.dcm"]
    at_left, right = ("right", "left") if at_right != "right" else ("left", "right")
    assert float(row[f"patient_{at_left}"]) == pytest.approx(90, abs=0.7)
    assert float(row[f"patient_{right}"]) == pytest.approx(108, abs=0.7)
    assert row["patient_at_right"] == right
    assert row["sides_from"] == ("PatientOrientation" if at_right else "assumed")
    assert "2 hips measured, 0 not; mean absolute error 0." in capsys.readouterr().out


def test_pixels_that_are_not_square_change_no_angle(films, capsys):
    film, landmarks = marked_film()
    flat = np.asarray(Image.fromarray(film).resize((film.shape[1], film.shape[0] // 2)))
    dataset = dicom(255 - flat)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelSpacing = [0.4, 0.2]
    dataset.save_as("flat.dcm", enforce_file_format=True)
    annotate(Path("landmarks.csv"), "flat.dcm", landmarks.stretch(0.5))
    assert measure.main(["flat.dcm", "--out", "out", "--landmarks", "landmarks.csv"]) == 0
    assert "2 hips measured, 0 not; mean absolute error 0." in capsys.readouterr().out
    row = table(Path("out"))["flat.dcm"]
    true = landmarks.norberg_angles()
    assert float(row["patient_right"]) == pytest.approx(true.image_left, abs=0.8)
    assert row["inverted"] == "False" and float(row["pixel_height_mm"]) == 0.4
    found = Landmarks.from_flat(row).to_array()
    expected = landmarks.stretch(0.5).to_array()
    np.testing.assert_allclose(found[:, [0, 1, 3, 4]], expected[:, [0, 1, 3, 4]], atol=2)


@pytest.mark.parametrize("good, status", [(True, 0), (False, 1)])
def test_a_ruler_is_checked_without_films(good, status, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "_ruler", lambda folder: dot_ruler())
    monkeypatch.setattr(film_check, "verdict", lambda ruler: (["refused: 39 of 40"], good))
    assert measure.main(["--check"]) == status
    assert capsys.readouterr().out == "refused: 39 of 40\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [[], ["--check", "a.png"]])
def test_films_or_a_check(wrong, capsys):
    with pytest.raises(SystemExit) as error:
        measure.main(wrong)
    assert error.value.code == 2 and "either FILES to measure or --check" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        measure.main(["--help"])
    text = capsys.readouterr().out
    for word in ("patient_left", "DICOM", "refused", "overlays", "Exit status"):
        assert word in text


@pytest.mark.slow
def test_the_ruler_that_comes_with_the_program_keeps_its_promises():
    """On a quarter of the phantoms of `--check`; what it does with films is in the README."""
    ruler = load_film_ruler(measure.SHIPPED_RULER)
    refused = film_check.refused_non_films(ruler)
    assert sum(refused.values()) >= film_check.LEAST_REFUSED * len(refused)
    found = film_check.film_ruler_error(ruler, film_check.PHANTOMS[:50])
    assert found["mae"] <= 1 and found["refused"] == 0 and found["called"] > 50
    assert found["within"] >= film_check.LEAST_WITHIN
