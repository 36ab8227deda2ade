"""Reading films: bit depths, colour, DICOM windows and polarity, damaged files."""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGLosslessSV1, JPEGLSLossless
from tifffile import imwrite

from hpc_hipgen.radiograph.films import (
    SYNTHETIC,
    FilmErrors,
    read_film,
    read_spaced_film,
    turned_by_exif,
    window,
)

RAMP = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)  # 0 .. 3071


def write_dicom(path: Path, pixels: np.ndarray, **attributes) -> Path:
    """A minimal uncompressed DICOM file; `attributes` override."""
    dataset = dicom(pixels, PatientName="Rex^Secret", **attributes)
    dataset.save_as(path, enforce_file_format=True)
    return path


def stretched(values: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    return np.rint((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)


def test_a_grey_png_is_read_as_it_is(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "film.png")
    np.testing.assert_array_equal(read_film(tmp_path / "film.png"), grey)


def test_sixteen_bits_are_stretched(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "film.png")
    np.testing.assert_array_equal(read_film(tmp_path / "film.png"), stretched(RAMP))


def test_pixels_that_are_no_numbers_are_black(tmp_path):
    film = RAMP.astype(np.float32)
    film[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(film).save(tmp_path / "film.tif")
    expected = np.rint(np.clip((RAMP - 3.0) / (RAMP.max() - 3), 0, 1) * 255)
    np.testing.assert_array_equal(read_film(tmp_path / "film.tif"), expected)
    Image.fromarray(np.full_like(film, np.nan)).save(tmp_path / "film.tif")
    assert read_film(tmp_path / "film.tif").max() == 0


def png_chunk(name, data):
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_with_colour_or_transparency_are_refused(tmp_path, kind, channels):
    """Pillow reads their high bytes alone: of 12 bits, 16 grey levels."""
    pixels = np.repeat(RAMP[..., None], channels, 2)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    head = struct.pack(">IIBBBBB", 64, 48, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    (tmp_path / "film.png").write_bytes(data)
    imwrite(tmp_path / "film.tif", np.repeat(RAMP[..., None], 3, 2), photometric="rgb")
    for suffix in ("png", "tif"):
        with pytest.raises(ValueError, match="16-bit colour or alpha: save it as 16-bit grey"):
            read_film(tmp_path / f"film.{suffix}")


def test_colour_becomes_luma_and_transparency_black(tmp_path):
    Image.new("RGBA", (8, 8), (200, 100, 50, 255)).save(tmp_path / "colour.png")
    Image.new("RGBA", (8, 8), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert np.unique(read_film(tmp_path / "colour.png")) == [luma]
    assert np.unique(read_film(tmp_path / "clear.png")) == [0]


def test_the_orientation_of_a_jpeg_is_obeyed(tmp_path):
    picture = Image.fromarray(np.repeat([[0] * 16 + [255] * 16], 16, 0).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    picture.save(tmp_path / "film.jpg", exif=exif, quality=95)
    film = read_film(tmp_path / "film.jpg")
    assert film.shape == (32, 16)
    assert film[:15].max() < 20 and film[17:].min() > 235
    picture.save(tmp_path / "plain.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    turned = [turned_by_exif(tmp_path / f"{name}.jpg") for name in ("film", "plain", "text", "no")]
    assert turned == [True, False, False, False]


@pytest.mark.parametrize(
    "damaged",
    [(0x011A, 2, 1, b"a"), (0x8769, 9, 1, b"\xff" * 4)],  # text for a resolution; an IFD at -1
)
def test_a_damaged_tag_spoils_no_picture(tmp_path, damaged):
    tags = [(0x0112, 3, 1, b"\6"), damaged]  # turn clockwise by 90 degrees
    directory = b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + directory + bytes(4)
    Image.linear_gradient("L").resize((30, 20)).save(tmp_path / "film.jpg", exif=exif)
    assert read_film(tmp_path / "film.jpg").shape == (30, 20)
    assert turned_by_exif(tmp_path / "film.jpg")


def test_whatever_a_decoder_raises_is_one_line_with_the_file(tmp_path, monkeypatch):
    def fail(picture):
        raise TypeError("of a\ndecoder")

    path = tmp_path / "film.png"
    Image.new("L", (8, 8)).save(path)
    monkeypatch.setattr(Image.Image, "copy", fail)
    with pytest.raises(ValueError, match=rf"^{path}: damaged or truncated \(of a decoder\)$"):
        read_film(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9])
def test_a_truncated_picture_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"film{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=rf"{path}: (damaged or truncated|not a PNG)"):
        read_film(path)


def test_a_jpeg_of_a_telephone_with_a_preview_is_its_first_picture(tmp_path):
    path = tmp_path / "film.jpg"
    picture = Image.fromarray(np.full((40, 30), 200, np.uint8))
    picture.save(path, "MPO", save_all=True, append_images=[Image.new("L", (8, 8))], quality=95)
    assert Image.open(path).format == "MPO"
    film = read_film(path)
    assert film.shape == (40, 30) and abs(int(film[20, 15]) - 200) < 3


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened"):
        read_film(tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("a hip")
    with pytest.raises(ValueError, match="not a PNG, JPEG, TIFF or DICOM"):
        read_film(tmp_path / "text.png")
    Image.new("L", (8, 8)).save(tmp_path / "film.gif")
    with pytest.raises(ValueError, match="GIF files are not read"):
        read_film(tmp_path / "film.gif")


def test_dicom_without_a_window_is_stretched_and_needs_no_suffix(tmp_path):
    path = write_dicom(tmp_path / "IM0001", RAMP)
    np.testing.assert_array_equal(read_film(path), stretched(RAMP))


def test_monochrome1_is_inverted(tmp_path):
    path = write_dicom(tmp_path / "film.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_film(path), stretched(RAMP.max() - RAMP))


@pytest.mark.parametrize("limits", [(4095, None), (4000, 4095), (4095, 4000)])
def test_padding_is_black_and_does_not_count(tmp_path, limits):
    pixels = RAMP + 500
    pixels[:5] = 4095
    attributes = {"PixelPaddingValue": limits[0]}
    if limits[1]:
        attributes["PixelPaddingRangeLimit"] = limits[1]
        pixels[:2] = 4050
    film = read_film(
        write_dicom(
            tmp_path / "film.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **attributes
        )
    )
    assert film[:5].max() == 0
    np.testing.assert_array_equal(film[5:], stretched(RAMP[5:].max() - RAMP[5:]))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("value", [0, 4095])
def test_padding_is_black_at_either_end_of_the_scale(tmp_path, kind, value):
    pixels = RAMP + 500
    pixels[:5] = value
    attributes = {"PixelPaddingValue": value, "PhotometricInterpretation": kind}
    film = read_film(write_dicom(tmp_path / "film.dcm", pixels, **attributes))
    assert film[:5].max() == 0 and film[5:].min() == 0 and film[5:].max() == 255


def test_the_window_is_applied_after_the_rescale(tmp_path):
    path = write_dicom(
        tmp_path / "film.dcm",
        RAMP,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[1000, 7],
        WindowWidth=[2001, 7],
    )
    # LINEAR: y = (x - 999.5) / 2000 + 0.5 between 0 and 1.
    expected = np.clip((RAMP * 2.0 - 1000 - 999.5) / 2000 + 0.5, 0, 1)
    assert np.abs(read_film(path) - expected * 255).max() <= 0.5


@pytest.mark.parametrize(("bits", "words"), [(8, np.uint8), (8, np.uint16), (12, np.uint16)])
def test_a_voi_table_is_applied(tmp_path, bits, words):
    """Indices count from the first mapped value, 100, and stop at the table's ends."""
    curve = np.rint((2**bits - 1) * np.sqrt(np.arange(2048) / 2047)).astype(words)
    table = Dataset()
    table.LUTDescriptor = [2048, 100, bits]
    table.LUTData = curve.tobytes()
    path = write_dicom(tmp_path / "film.dcm", RAMP, VOILUTSequence=[table])
    shown = curve[np.clip(RAMP.astype(int) - 100, 0, 2047)] / (2**bits - 1)
    np.testing.assert_array_equal(read_film(path), np.rint(shown * 255))


def test_window_functions_in_closed_form():
    values = np.array([0.0, 50.0, 100.0])
    assert window(values, 50, 100, "LINEAR_EXACT").tolist() == [0, 0.5, 1]
    assert window(values, 50, 100, "SIGMOID")[2] == pytest.approx(1 / (1 + math.exp(-2)))
    assert window(np.array([49.4, 49.6]), 50, 1, "LINEAR").tolist() == [0, 1]
    with pytest.raises(ValueError, match="too small"):
        window(values, 50, 0, "LINEAR")
    with pytest.raises(ValueError, match="unknown VOI LUT function"):
        window(values, 50, 100, "CUBIC")


def test_a_colour_dicom_becomes_luma(tmp_path):
    pixels = np.full((10, 12, 3), (200, 100, 50), np.uint8)
    film = read_film(write_dicom(tmp_path / "film.dcm", pixels))
    assert film.shape == (10, 12)
    assert np.unique(film) == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


@pytest.mark.parametrize(("suffix", "saved"), [("tif", {}), ("png", {}), ("jpg", {"quality": 90})])
def test_pixels_that_a_header_calls_oblong_are_refused(tmp_path, suffix, saved):
    path, film = tmp_path / f"a.{suffix}", Image.fromarray(np.zeros((20, 30), np.uint8))
    film.save(path, dpi=(300, 150), **saved)
    with pytest.raises(ValueError, match=r"a\.\w+: its pixels are not square by its header"):
        read_film(path)
    film.save(path, dpi=(300, 300), **saved)
    assert read_film(path).shape == (20, 30)


def test_a_tiff_that_states_the_shape_of_its_pixels_alone(tmp_path):
    """Without a unit (ResolutionUnit 1), as of ImageJ, the resolution is an aspect ratio."""
    path, film = tmp_path / "a.tif", Image.fromarray(np.zeros((20, 30), np.uint8))
    film.save(path, tiffinfo={282: 2.0, 283: 1.0, 296: 1})
    with pytest.raises(ValueError, match=r"not square by its header \(resolution 2 x 1\)"):
        read_film(path)
    film.save(path, tiffinfo={282: 2.0, 283: 2.0, 296: 1})
    assert read_film(path).shape == (20, 30)


def test_damaged_dicom_is_refused(tmp_path):
    path = write_dicom(tmp_path / "film.dcm", RAMP)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"film\.dcm: damaged, truncated or unsupported DICOM"):
        read_film(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"unsupported DICOM \(it does not begin as one\)"):
        read_film(path)
    path = write_dicom(tmp_path / "many.dcm", RAMP, NumberOfFrames=2)
    with pytest.raises(ValueError, match="2 frames"):
        read_film(path)


@pytest.mark.parametrize(
    ("syntax", "name"), [(JPEGLosslessSV1, "JPEG Lossless"), (JPEGLSLossless, "JPEG-LS")]
)
def test_dicom_without_a_decoder_says_what_to_install(tmp_path, monkeypatch, syntax, name):
    film = dicom(RAMP)
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    film.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    monkeypatch.setattr(get_decoder(syntax), "_available", {})  # as in the environment
    with pytest.raises(ValueError) as caught:
        read_film(tmp_path / "film.dcm")
    assert f"({name}, for which no decoder is installed: pip install pylibjpeg" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pixels", [RAMP, RAMP.astype(np.uint8)])
def test_a_png_that_is_marked_as_a_drawing_is_known(tmp_path, pixels):
    for value, synthetic in (("hpc_hipgen", True), ("yes", False), (None, False)):
        mark = PngImagePlugin.PngInfo()
        if value:
            mark.add_text(SYNTHETIC[0], value)
        Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=mark)
        assert read_spaced_film(tmp_path / "a.png").synthetic == synthetic


@pytest.mark.parametrize(("value", "synthetic"), [("YES", True), ("NO", False), (None, False)])
def test_dicom_that_says_synthetic_data_is_known(tmp_path, value, synthetic):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **({"SyntheticData": value} if value else {}))
    assert read_spaced_film(path).synthetic == synthetic


def test_film_errors_list_everything():
    error = FilmErrors(["a.csv row 2: one", "a.csv row 3: two"])
    assert isinstance(error, ValueError)
    assert error.lines == ["a.csv row 2: one", "a.csv row 3: two"]
    assert str(error).splitlines()[0].startswith("2 problems")
    assert str(error).splitlines()[1:] == error.lines


def test_tiffs_are_read_in_either_polarity(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "deep.tif")
    Image.fromarray(RAMP).save(tmp_path / "white.tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_film(tmp_path / "deep.tif"), stretched(RAMP))
    np.testing.assert_array_equal(read_film(tmp_path / "white.tiff"), 255 - stretched(RAMP))


@pytest.mark.parametrize(
    "attributes, spacing, aspect",
    [
        ({"PixelSpacing": [0.3, 0.2]}, (0.3, 0.2), 1.5),
        ({"ImagerPixelSpacing": [0.15, 0.15]}, (0.15, 0.15), 1.0),
        ({"PixelAspectRatio": ["3", "2"]}, None, 1.5),
        ({"PixelSpacing": 0.3, "ImagerPixelSpacing": [0.3, 0.2]}, (0.3, 0.2), 1.5),
        ({}, None, 1.0),
    ],
)
def test_the_size_of_pixels_is_read_and_made_square(tmp_path, attributes, spacing, aspect):
    film = read_spaced_film(write_dicom(tmp_path / "film.dcm", RAMP, **attributes))
    assert (film.spacing, film.aspect) == (spacing, pytest.approx(aspect))
    assert film.square().shape == (round(48 * aspect), 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_brought_upright(tmp_path, orientation):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert np.array_equal(read_film(tmp_path / "a.png"), np.asarray(upright))
