"""Nothing that names a patient gets from a film's file into what the project writes."""

import csv

import numpy as np
import pytest
import yaml
from dicom_files import dicom
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hpc_hipgen.radiograph.films import read_spaced_film
from hpc_hipgen.radiograph.phantom import draw_phantom
from jobs.prepare import main

SECRET = "Waldmann"
ATTRIBUTES = (
    *"PatientName PatientID PatientComments ReferringPhysicianName InstitutionName".split(),
    *"OperatorsName StationName AccessionNumber StudyDescription ResponsiblePerson".split(),
)


def write_dicom(path, image):
    """A film whose every identifying attribute, overlay plane and private tag says `SECRET`."""
    pixels = image.astype(np.uint16)
    # an overlay in the unused bits of the pixels too, as old files have it
    pixels[5:15, 5:60] |= 1 << 12
    dataset = dicom(pixels, BitsStored=8, HighBit=7)
    for name in ATTRIBUTES:
        setattr(dataset, name, SECRET[:16])
    dataset.PatientBirthDate = "20110203"
    dataset.private_block(0x0011, SECRET, create=True).add_new(1, "LO", SECRET)
    dataset.BurnedInAnnotation = "YES"
    dataset.add_new((0x6000, 0x3000), "OB", (SECRET * 2).encode())
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run folder made of a DICOM film, and of a PNG and a JPEG with a date in red."""
    folder = tmp_path_factory.mktemp("clinic")
    marks = []
    for n, suffix in enumerate(("dcm", "png", "jpg")):
        phantom = draw_phantom(5, 3 + 4 * n, 384, prompt_class=4)
        path = folder / f"{n}.{suffix}"
        picture = Image.fromarray(phantom.image).convert("RGB")
        ImageDraw.Draw(picture).text(
            (374, 6), "03.02.2011", (230, 30, 30), ImageFont.load_default(16), "ra"
        )
        info, exif = PngInfo(), Image.Exif()
        info.add_text("Patient", SECRET)
        exif[0x010E] = SECRET
        if suffix == "dcm":
            write_dicom(path, phantom.image)
        else:
            picture.save(path, **({"pnginfo": info} if suffix == "png" else {"exif": exif}))
        for side, hip in zip(
            ("image_left", "image_right"), phantom.landmarks.to_array(), strict=True
        ):
            marks.append([path.name, side, *hip, 1 + 3 * (suffix == "png")])
    with (folder / "landmarks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("image side head_x head_y head_radius rim_x rim_y prompt_class".split())
        writer.writerows(marks)
    return folder


def prepare(folder, films, **data):
    folder.mkdir()
    data = {"source": "films", "films": str(films), "resolution": 64, "views": 2, **data}
    training = {"images": 2, "batch": 1, "lr": 1e-3}
    tree = {"name": "own", "data": data, "ruler": {"training": training}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["--run", str(folder)]) == 0
    return folder / "data"


def test_text_is_masked_and_reported_and_attributes_are_dropped(prepared, tmp_path, capsys):
    assert all(SECRET.encode() in f.read_bytes() for f in prepared.glob("[0-9].*"))
    data = prepare(tmp_path / "run", prepared)
    said = capsys.readouterr().out
    assert "3 films searched for burned-in text: 2 places masked in 2 films" in said
    assert "BurnedInAnnotation is YES, but none was found, look: 0.dcm" in said
    assert "1 of these films are of a prompt class whose caption names a date" in said

    with (data / "deidentified.csv").open() as file:
        lines = [(line["film"], line["what"], line["action"]) for line in csv.DictReader(file)]
    assert lines == [
        ("0.dcm", "overlay plane", "dropped"),
        ("0.dcm", "text", "not found"),
        ("1.png", "colour", "masked"),
        ("2.jpg", "colour", "masked"),
    ]
    assert Image.open(data / "deidentified.png").size == (3 * 256, 256)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    for word in (SECRET, "20110203", "2.25.777777777"):
        assert not any(word.encode() in content for content in written)


def test_masking_can_be_switched_off(prepared, tmp_path, capsys):
    data = prepare(tmp_path / "run", prepared, deidentify=False)
    assert "NOT masked (data.deidentify: false)" in capsys.readouterr().out
    assert not (data / "deidentified.csv").exists()


def test_an_overlay_in_unused_bits_is_not_drawn(prepared):
    film = read_spaced_film(prepared / "0.dcm")
    stretched = draw_phantom(5, 3, 384, prompt_class=4).image.astype(float)
    stretched = (stretched - stretched.min()) / np.ptp(stretched) * 255
    assert np.abs(film.image - stretched).max() <= 0.5 and film.overlays == 1
