"""Drawn films as DICOM: read by pydicom and by our own reader, and marked as what they are."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.evaluation.measured_files import store_table
from hpc_hipgen.evaluation.samples import image_specs, read_samples, shard_bytes
from hpc_hipgen.files import write_atomic
from hpc_hipgen.radiograph.dicom import (
    EMPTY,
    PRIVATE,
    PRIVATE_CREATOR,
    PRIVATE_GROUP,
    DrawnFilm,
    write_dicom,
)
from hpc_hipgen.radiograph.films import read_film, read_spaced_film
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.run import Run
from jobs import export, report

FILM = DrawnFilm(
    np.arange(63, dtype=np.uint8).reshape(7, 9),
    "a caption",
    {"asked_left": 102.5, "asked_right": 98.0, "measured_left": 101.25},
    title="LLCM, 4 steps",
    run="run",
    row="llcm_4",
    index=12,
    series=3,
)


def read_angles(dataset):
    """Asked and measured angles of a drawn film, in degrees, by the names of PRIVATE."""
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    return {name: block[number].value for name, number in PRIVATE.items() if number in block}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("dicom") / "000012.dcm"
    write_dicom(path, FILM)
    return path


def test_a_drawn_film_says_so_in_the_words_of_the_standard(file):
    found = dcmread(file)
    assert found.SOPClassUID == SecondaryCaptureImageStorage and found.Modality == "OT"
    assert found.SyntheticData == "YES" and found.ConversionType == "SYN"
    assert list(found.ImageType) == ["DERIVED", "SECONDARY"]
    assert "Not for diagnosis" in found.DerivationDescription
    assert (found.PatientName, found.PatientID) == ("SYNTHETIC^HPC_HIPGEN", "SYNTHETIC-run-000012")
    assert all(not found[keyword].value for keyword in EMPTY)
    assert len({found.StudyInstanceUID, found.SeriesInstanceUID, found.SOPInstanceUID}) == 3


def test_pixels_and_angles_come_back(file):
    assert np.array_equal(read_film(file), FILM.image)  # of an odd number of bytes
    assert read_angles(dcmread(file)) == FILM.angles


def test_a_reader_finds_the_patients_left_at_the_right_of_the_image(file):
    found = read_spaced_film(file)
    assert found.patient_at_right == "left" and not found.mirrored


def test_a_reader_knows_it_for_a_drawing(file):
    assert read_spaced_film(file).synthetic


def test_the_same_film_gives_the_same_file(file, tmp_path):
    write_dicom(tmp_path / "again.dcm", FILM)
    assert (tmp_path / "again.dcm").read_bytes() == file.read_bytes()


def test_what_was_measured_meanwhile_makes_another_instance_of_the_same_study(file, tmp_path):
    angles = FILM.angles | {"measured_left": 71.0}
    write_dicom(tmp_path / "measured.dcm", replace(FILM, angles=angles))
    one, other = dcmread(file), dcmread(tmp_path / "measured.dcm")
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID == other.SeriesInstanceUID


def test_drawings_for_one_caption_are_of_one_patient(tiny_run, tmp_path, tiny_settings):
    tiny_settings["sampling"] |= {"per_caption": 2, "shard_size": 10}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    films = read_manifest(tiny_run.path("data"), "test", nominal_only=True)
    specs = image_specs(3, films, "llcm_1", {"steps": 1}, per_caption=2)
    images = [np.full((32, 32), index, np.uint8) for index in range(10)]
    path = run.path("samples", "llcm_1", "shard-00000.tar")
    write_atomic(path, shard_bytes(specs, images, synthetic=True))
    assert export.main(["--run", str(run.folder), "--row", "llcm_1"]) == 0
    found = [dcmread(run.path("dicom", "llcm_1", f"{index:06d}.dcm")) for index in (3, 8, 4)]
    one, twin, other = ((f.PatientID, f.StudyInstanceUID) for f in found)
    assert one == twin != other
    assert [f.InstanceNumber for f in found] == [1, 2, 1]
    assert len({f.SOPInstanceUID for f in found}) == 3


def test_a_run_keeps_its_patients_and_shares_them_with_no_other(drawn, tmp_path):
    twin = Run(shutil.copytree(drawn.folder, tmp_path / "twin"))
    for run in (drawn, twin, drawn):
        assert export.main(["--run", str(run.folder), "--row", "llcm_1"]) == 0
    patients = {}
    for run in (drawn, twin):
        path = run.path("dicom", "llcm_1", "000004.dcm")
        patients[run.folder.name] = dcmread(path).PatientID, dcmread(path).StudyInstanceUID
    assert len({*patients["run"], *patients["twin"]}) == 4
    before = patients["run"]
    assert export.main(["--run", str(drawn.folder), "--row", "llcm_2"]) == 0
    found = dcmread(drawn.path("dicom", "llcm_2", "000004.dcm"))
    assert (found.PatientID, found.StudyInstanceUID) == before


def test_dciodvfy_finds_no_error(file):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    said = subprocess.run(["dciodvfy", file], capture_output=True, text=True).stderr
    assert "Error" not in said, said


@pytest.fixture
def drawn(tiny_run, tmp_path):
    """The tiny run without what else it made."""
    shutil.copytree(tiny_run.path("samples"), tmp_path / "run" / "samples")
    shutil.copy(tiny_run.path("config.yaml"), tmp_path / "run")
    return Run(tmp_path / "run")


def test_a_row_is_exported_whole(drawn, capsys):
    assert export.main(["--run", str(drawn.folder), "--row", "llcm_1"]) == 0
    folder = drawn.path("dicom", "llcm_1")
    samples = [
        sample
        for number in (0, 1)
        for sample in read_samples(drawn.path("samples", "llcm_1", f"shard-{number:05d}.tar"))
    ]
    assert sorted(f.name for f in folder.iterdir()) == [f"{s.key}.dcm" for s in samples]
    for sample in samples:
        found = dcmread(folder / f"{sample.key}.dcm")
        assert np.array_equal(found.pixel_array, sample.image)
        asked = {name: sample.info[name] for name in ("asked_left", "asked_right")}
        assert read_angles(found) == asked, "nothing was measured yet"
    said = capsys.readouterr().out
    assert "5 files" in said and "copies" not in said, "phantoms are no patients"


def audited(run, judged, copies):
    """A report that looked for copies among so many drawings of llcm_1; copies: (row, key)."""
    found = {
        "rows": {"llcm_1": {"n": judged}},
        "copies": [{"row": row, "key": key} for row, key in copies],
    }
    path = run.path("report", "metrics.json")
    write_atomic(path, json.dumps({"memorisation": found}))


def test_drawings_that_are_called_copies_are_left_out_unless_asked_for(drawn, capsys):
    audited(drawn, 5, [("llcm_1", "000003"), ("llcm_1", "000004"), ("llcm_2", "000000")])
    command, folder = ["--run", str(drawn.folder), "--row", "llcm_1"], drawn.path("dicom", "llcm_1")
    whole = [f"{index:06d}" for index in range(5)]
    for more, kept, words in (
        (["--copies"], whole, "exported all the same"),
        ([], whole[:3], "left out"),  # also those that an earlier export had written
    ):
        assert export.main([*command, *more]) == 0
        assert sorted(path.stem for path in folder.iterdir()) == kept
        said = capsys.readouterr().out
        assert "llcm_1: 2 of 5 drawings are called copies" in said and words in said
        assert str(drawn.path("report", "copies.csv")) in said
    drawn.path("report", "metrics.json").write_text("{")
    assert export.main(command) == 2
    assert "metrics.json: damaged" in capsys.readouterr().err


def test_where_nobody_looked_for_copies_of_real_films_a_line_says_so(
    tiny_run, tmp_path, tiny_settings, capsys
):
    (tmp_path / "clinic").mkdir()
    films = {"source": "films", "films": str(tmp_path / "clinic"), "resolution": 32}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings | {"data": films}, "x"))
    shutil.copytree(tiny_run.path("samples", "llcm_1"), run.path("samples", "llcm_1"))
    manifest = tiny_run.path("data", "manifest.csv").read_text()
    write_atomic(run.path("data", "manifest.csv"), manifest)
    run.mark_done("prepare")

    def said():
        assert export.main(["--run", str(run.folder), "--row", "llcm_1"]) == 0
        assert len(list(run.path("dicom", "llcm_1").iterdir())) == 5
        return [line for line in capsys.readouterr().out.splitlines() if "nobody has" in line]

    def one_line(words):
        (line,) = said()
        return line.startswith(f"llcm_1: nobody has looked for copies of training films {words}")

    assert one_line("among 5 of 5 drawings"), "there is no report"
    none_and_counted = {"memorisation": None}, {"memorisation": {"rows": {"llcm_1": {"n": 5}}}}
    for metrics in none_and_counted:  # too few validation films; an earlier version only counted
        write_atomic(run.path("report", "metrics.json"), json.dumps(metrics))
        assert one_line("among 5 of 5 drawings")
    audited(run, 4, [])
    assert one_line("among 1 of 5 drawings"), "the report was made before the last shard"
    audited(run, 5, [])
    assert said() == []


def test_a_run_may_be_called_by_its_name(drawn, monkeypatch, capsys):
    site = drawn.folder.parent / "site.yaml"
    site.write_text(f"results: {drawn.folder.parent}")
    monkeypatch.setenv("HIPGEN_SITE", str(site))
    for job in (export, report):
        assert job.main(["--run", "nobody"]) == 2
        assert f"{drawn.folder.parent}/nobody: not a run folder" in capsys.readouterr().err
    assert export.main(["--run", drawn.folder.name, "--row", "llcm_1"]) == 0


def test_what_is_measured_so_far_is_exported(drawn, capsys):
    """An array at work holds up no export."""
    samples = read_samples(drawn.path("samples", "llcm_1", "shard-00000.tar"))
    lines = [{"key": s.key, "measured_left": 91.5, "measured_right": np.nan} for s in samples]
    path = drawn.path("evaluation", "llcm_1", "shard-00000.parquet")
    path.parent.mkdir(parents=True)
    store_table(path, pd.DataFrame(lines))
    assert export.main(["--run", str(drawn.folder), "--row", "llcm_1"]) == 0
    assert "1 of 2 shards are not measured" in capsys.readouterr().out
    files = sorted(drawn.path("dicom", "llcm_1").iterdir())
    measured = [read_angles(dcmread(file)).get("measured_left") for file in files]
    assert measured == [91.5] * len(samples) + [None] * (len(files) - len(samples))


def test_rows_that_are_not_sampled_yet_hold_up_no_other(drawn, capsys):
    shutil.rmtree(drawn.path("samples", "stable_diffusion"))
    assert export.main(["--run", str(drawn.folder)]) == 0
    assert sorted(path.name for path in drawn.path("dicom").iterdir()) == ["llcm_1", "llcm_2"]
    assert "not sampled yet, left out: stable_diffusion\n" in capsys.readouterr().out
    shutil.rmtree(drawn.path("samples"))
    assert export.main(["--run", str(drawn.folder)]) == 2
    assert "no row of a generator is sampled yet" in capsys.readouterr().err


def test_films_and_rows_that_are_not_there_are_refused(drawn, capsys):
    for row, words in (("ruler", "holds films"), ("llcm_3", "is not one of")):
        assert export.main(["--run", str(drawn.folder), "--row", row]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not drawn.path("dicom").exists()
