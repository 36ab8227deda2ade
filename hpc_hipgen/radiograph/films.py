"""Reading films: PNG, JPEG, TIFF and DICOM files to 8-bit grey.

Only pixels leave this module. The attributes of a DICOM file (name, birth date, hospital, ...) and
the text chunks of a PNG or JPEG are read where a pixel value depends on them, or for the mark of a
drawing, and then dropped; what the project writes are PNGs of its own, so nothing of them is
carried along. Overlay planes (60xx)
are not drawn. **Text that is burned into the pixels** (a date, a name in a corner) is not masked
here but by `deidentify.py`, which every film passes on its way into a data set.
"""

import functools
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from hpc_hipgen.radiograph.geometry import Landmarks

if TYPE_CHECKING:
    from pydicom import Dataset

FILM_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
"""Files of a folder that are taken for films (any case)."""

SYNTHETIC = ("synthetic", "hpc_hipgen")
"""PNG text chunk, key and value, that marks an image which is no film."""

_WHITE_IS_ZERO = (262, 0)  # TIFF tag PhotometricInterpretation, and its value

_BITS_A_SAMPLE = 258  # TIFF tag

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture with an EXIF orientation upright."""

_SQUARE = 1e-3  # a pixel whose sides differ by less is taken for square

_OBLONG = 1.02
"""Ratio of the resolutions across and down from which on a picture's pixels are not square."""

_DICOM_MAGIC = b"DICM"  # at offset 128, PS3.10 section 7.1

_NOT_DECODED = {
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
}
"""Transfer syntaxes that nothing installed with the program decodes, and what they are called."""

_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pyjpegls"


class FilmErrors(ValueError):
    """Everything that is wrong with a set of films, one line a problem.

    Attributes:
        lines: the problems, each with its file and row.
    """

    def __init__(self, lines: list[str]) -> None:
        self.lines = list(lines)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__("\n".join([f"{count} with the films, nothing was written:", *lines]))


@dataclass(frozen=True)
class SpacedFilm:
    """A film (h, w) uint8 and, where the file says it, the size of its pixels.

    `spacing`: height and width of a pixel in mm. `aspect`: height by width of a pixel. `colour`:
    (h, w) uint8, by how much the channels of a colour file differ; None of a grey one. What a DICOM
    file says of itself: `burned_in`, its BurnedInAnnotation ("YES", "NO" or ""), how many
    `overlays` it has beside its pixels, which are left out, and the side of the `patient_at_right`
    of the image ("left", "right", or "" where it does not say). `synthetic`: it is marked as a
    drawing, by `SYNTHETIC` in a PNG or Synthetic Data in DICOM.
    """

    image: np.ndarray
    spacing: tuple[float, float] | None = None
    aspect: float = 1.0
    colour: np.ndarray | None = None
    burned_in: str = ""
    overlays: int = 0
    patient_at_right: str = ""
    synthetic: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether the file says that the patient's right is at the image's right."""
        return self.patient_at_right == "right"

    def standard(self) -> np.ndarray:
        """The film as `Angles` takes it: `square`, and the patient's left at the image's right."""
        return np.ascontiguousarray(self.square()[:, ::-1]) if self.mirrored else self.square()

    def standard_landmarks(self, landmarks: Landmarks) -> Landmarks:
        """Landmarks in pixels of the file, in pixels of `standard`."""
        square = landmarks.stretch(self.aspect)
        return square.flip(self.image.shape[1]) if self.mirrored else square

    def square(self) -> np.ndarray:
        """The film stretched in height until its pixels are square: others change angles."""
        return self._square

    @functools.cached_property
    def _square(self) -> np.ndarray:
        if self.aspect == 1:
            return self.image
        height, width = self.image.shape
        shape = (width, max(1, round(height * self.aspect)))
        return np.asarray(Image.fromarray(self.image).resize(shape, Image.Resampling.BICUBIC))


FLAT = "hardly any difference between dark and bright"
"""What is said of a film that `is_flat`."""


DRAWN = "marked as synthetic: a drawing, no film of a patient"
"""What is said of a film that is `SpacedFilm.synthetic`."""


def is_flat(image: np.ndarray) -> bool:
    """Whether a film (h, w) uint8 shows nothing: black, white, or read through a wrong window."""
    return bool(image[::4, ::4].std() < 1.5)


def read_film(path: Path) -> np.ndarray:
    """Read a film as (h, w) uint8, 0 black (air) and 255 white (bone).

    DICOM: modality and VOI transformations are applied and MONOCHROME1 is inverted, so that every
    film looks as on a viewing station. 16-bit PNGs and TIFFs carry no window and are stretched from
    their darkest to their brightest pixel; with colour or transparency they are refused, of which
    Pillow reads half the bits. Colour is turned to grey (ITU-R 601), transparency to
    black, and the EXIF orientation of a JPEG is obeyed. Of a TIFF, the first page.

    Raises:
        ValueError: a missing, truncated or unsupported file; the message starts with the path.
    """
    return read_spaced_film(path).image


def read_spaced_film(path: Path) -> SpacedFilm:
    """As `read_film`, with the pixel spacing or aspect ratio that a DICOM file states."""
    try:
        is_dicom = _is_dicom(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror})") from None
    film = _read_dicom(path) if is_dicom else _read_picture(path)
    height, width = film.image.shape
    if min(height, width) < 2:
        raise ValueError(f"{path}: {width} x {height} pixels is not a film")
    return film


def pixel_aspect(path: Path) -> float:
    """Height by width of a film's pixels, by its header; 1 for a file that cannot be read.

    Whoever reads the film says what is wrong with it.
    """
    try:
        if not _is_dicom(path):
            return 1.0
        from pydicom import dcmread

        return _spacing(dcmread(path, stop_before_pixels=True))[1]
    except Exception:  # pydicom has no common base of what a damaged file raises
        return 1.0


def turned_by_exif(path: Path) -> bool:
    """Whether a picture is shown turned or mirrored, as its EXIF orientation asks for.

    False for a file that cannot be read: whoever reads the film says what is wrong with it.
    """
    try:
        with Image.open(path) as picture:
            return _orientation(picture) != 1
    except Exception:  # Pillow has no common base of what a damaged file raises
        return False


def _is_dicom(path: Path) -> bool:
    return _begins_as_dicom(path) or path.suffix.lower() in (".dcm", ".dicom")


def _begins_as_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == _DICOM_MAGIC


def _read_picture(path: Path) -> SpacedFilm:
    """A PNG, JPEG or TIFF."""
    try:
        return _decode(path)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: not a PNG, JPEG, TIFF or DICOM file") from None
    except Exception as error:  # Pillow has no common base of what a damaged file raises
        if str(error).startswith(f"{path}: "):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: damaged or truncated ({reason})") from None


def _decode(path: Path) -> SpacedFilm:
    with Image.open(path) as picture:
        # MPO: a JPEG that a telephone wrote, with a preview or depths behind it
        if picture.format not in ("PNG", "JPEG", "MPO", "TIFF"):
            raise ValueError(f"{path}: {picture.format} files are not read; use PNG or JPEG")
        if _loses_bits(picture):
            raise ValueError(f"{path}: 16-bit colour or alpha: save it as 16-bit grey")
        picture.load()
        _check_square(path, picture)
        inverted = _white_is_zero(picture)
        key, value = SYNTHETIC
        synthetic = picture.info.get(key) == value
        turn = _TURNS.get(_orientation(picture))
        picture = picture.copy() if turn is None else picture.transpose(turn)
    if picture.mode.startswith(("I", "F")):  # 16 bits and more, grey
        shown = _stretch(np.asarray(picture, dtype=np.float64))
        return SpacedFilm(_to_bytes(1 - shown if inverted else shown), synthetic=synthetic)
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture)
    colour = None if picture.mode in ("1", "L") else _colour(np.asarray(picture.convert("RGB")))
    return SpacedFilm(np.array(picture.convert("L")), colour=colour, synthetic=synthetic)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, as it is, where no other can be read.

    Not ImageOps.exif_transpose: it writes all tags anew, and fails on a damaged one.
    """
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a damaged tag raises, the pixels are good
        return 1
    return found if found in _TURNS else 1


def _loses_bits(picture: Image.Image) -> bool:
    """Whether Pillow would read the high bytes alone: of 16 bits with colour or transparency."""
    if picture.mode.startswith(("I", "F")):
        return False
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(_BITS_A_SAMPLE, (1,))) > 8
    return any(";16" in str(tile.args) for tile in picture.tile)


def _check_square(path: Path, picture: Image.Image) -> None:
    """Raises ValueError where a picture's header says that its pixels are not square."""
    for key in ("dpi", "resolution", "jfif_density", "aspect"):
        across, down = map(float, picture.info.get(key, (1, 1)))
        if across > 0 and down > 0 and not 1 / _OBLONG <= across / down <= _OBLONG:
            raise ValueError(
                f"{path}: its pixels are not square by its header ({key} {across:g} x {down:g}), "
                "which changes angles; resample it, or correct the header"
            )


def _colour(pixels: np.ndarray) -> np.ndarray | None:
    """By how much the channels (h, w, 3) uint8 differ; None where they never do."""
    difference = pixels.max(2) - pixels.min(2)
    return difference if difference.any() else None


def _white_is_zero(picture: Image.Image) -> bool:
    """True for a TIFF whose polarity Pillow leaves reversed: it turns 8 bits over, but not 16."""
    tag, value = _WHITE_IS_ZERO
    return picture.format == "TIFF" and picture.tag_v2.get(tag) == value


def _read_dicom(path: Path) -> SpacedFilm:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_color_lut

    try:
        dataset = dcmread(path)
        if "PixelData" not in dataset:
            raise ValueError("it holds no image")
        if int(dataset.get("NumberOfFrames") or 1) != 1:
            raise ValueError(f"it holds {dataset.NumberOfFrames} frames, one is needed")
        _check_decoder(dataset)
        pixels = dataset.pixel_array
        photometric = str(dataset.PhotometricInterpretation)
        burned_in = str(dataset.get("BurnedInAnnotation") or "").upper()
        overlays = sum((group, 0x3000) in dataset for group in range(0x6000, 0x6020, 2))
        at_right, colour = _side_at_right(dataset), None
        drawn = str(dataset.get("SyntheticData") or "").upper() == "YES"
        if photometric == "PALETTE COLOR":
            wide = apply_color_lut(pixels, dataset)
            pixels = (wide >> 8 if wide.dtype == np.uint16 else wide).astype(np.uint8)
        if pixels.ndim == 3:
            scale = 255 / (2 ** int(dataset.BitsStored) - 1)
            scaled = pixels if photometric == "PALETTE COLOR" else pixels * scale
            rgb = np.rint(scaled).astype(np.uint8)
            grey, colour = np.array(Image.fromarray(rgb).convert("L")), _colour(rgb)
        else:
            grey = _to_bytes(_displayed(dataset, pixels))
        return SpacedFilm(grey, *_spacing(dataset), colour, burned_in, overlays, at_right, drawn)
    except Exception as error:  # pydicom has no common base of what a damaged file raises
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, InvalidDicomError):  # it says how to force pydicom
            reason = "it does not begin as one"
        raise ValueError(f"{path}: damaged, truncated or unsupported DICOM ({reason})") from None


def _check_decoder(dataset: "Dataset") -> None:
    """Raises ValueError with what to install where a decoder is missing that can be had."""
    from pydicom.pixels import get_decoder

    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if (name := _NOT_DECODED.get(syntax)) and not get_decoder(syntax).is_available:
        raise ValueError(f"{name}, for which no decoder is installed: {_DECODERS}")


def _side_at_right(dataset: "Dataset") -> str:
    """The patient's side at the image's right by PatientOrientation (PS3.3 C.7.6.1.1.1), or "".

    The first letters are the principal direction, others refine it, as in RF or LECR. Of a
    quadruped R means rostral, and its sides are LE and RT.
    """
    along_rows = str((dataset.get("PatientOrientation") or ["", ""])[0]).upper()
    quadruped = str(dataset.get("AnatomicalOrientationType") or "").upper() == "QUADRUPED"
    if along_rows.startswith(("LE", "RT")):
        return "left" if along_rows.startswith("LE") else "right"
    if not quadruped and re.fullmatch("[LR][APHF]{0,2}", along_rows):
        return "left" if along_rows.startswith("L") else "right"
    return ""


def is_film_name(path: Path) -> bool:
    """Whether a file of a folder is taken for a film: by its suffix, or as DICOM without one."""
    if path.name.startswith(("._", ".#")) or path.name.upper() == "DICOMDIR":
        return False  # what macOS and Emacs leave behind, and the index of a DICOM disc
    if path.suffix.lower() in FILM_SUFFIXES:
        return True
    # DICOM files are named by identifiers, whose last part looks like a suffix
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        return _begins_as_dicom(path)
    except FileNotFoundError:  # a link to nothing
        return False
    except OSError:  # whoever reads it says why it cannot be
        return True


def films_below(folder: Path) -> list[Path]:
    """The films of a folder and of all that lies below it, in order; links are followed.

    A link to nothing is one of them if its suffix is a film's: whoever reads it says so. A folder
    that cannot be read is named on the console.
    """
    seen: set[str] = set()
    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a second link to it, or one to a folder that it lies in
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [Path(place, name) for name in files]
    return sorted(
        path for path in found if (path.is_file() or path.is_symlink()) and is_film_name(path)
    )


def _unreadable(error: OSError) -> None:
    said = f"warning: {error.filename}: cannot be read ({error.strerror}); its films are left out"
    print(said, file=sys.stderr, flush=True)


def _spacing(dataset: "Dataset") -> tuple[tuple[float, float] | None, float]:
    """Spacing in mm and aspect of the pixels (PS3.3 10.7.1 and C.7.6.3.1.7); None where unknown."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = _numbers(dataset, name)
        if len(values) == 2 and all(math.isfinite(v) and v > 0 for v in values):
            return (values[0], values[1]), _plausible(values[0] / values[1], name)
    ratio = _numbers(dataset, "PixelAspectRatio")
    if len(ratio) == 2 and min(ratio) > 0:
        return None, _plausible(ratio[0] / ratio[1], "PixelAspectRatio")
    return None, 1.0


def _numbers(dataset: "Dataset", name: str) -> list[float]:
    """The values of an attribute; none where it holds anything else."""
    try:
        return [float(value) for value in dataset.get(name) or ()]
    except (TypeError, ValueError):
        return []


def _plausible(aspect: float, source: str) -> float:
    """The aspect of a pixel; ValueError for one that no detector has, which would fill memory."""
    if not 0.2 <= aspect <= 5:
        raise ValueError(f"{source}: a pixel {aspect:.3g} times as high as wide")
    return 1.0 if abs(aspect - 1) < _SQUARE else aspect


def _displayed(dataset: "Dataset", pixels: np.ndarray) -> np.ndarray:
    """Grey levels 0..1 as displayed: modality, then VOI, then polarity (PS3.3 C.7.6.3.1.2)."""
    from pydicom.pixels import apply_modality_lut

    values = apply_modality_lut(pixels, dataset)
    padding = np.zeros(pixels.shape, bool)
    if "PixelPaddingValue" in dataset:
        first = dataset.PixelPaddingValue
        last = dataset.get("PixelPaddingRangeLimit")
        low, high = sorted((first, first if last is None else last))
        padding = (pixels >= low) & (pixels <= high)
    if dataset.get("VOILUTSequence"):
        little = dataset.file_meta.TransferSyntaxUID.is_little_endian
        shown = _look_up(dataset.VOILUTSequence[0], values, "<u2" if little else ">u2")
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        centre, width = (
            float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth")
        )
        shown = window(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    else:
        shown = _stretch(values.astype(np.float64), ~padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.where(padding, 0, shown)


def _look_up(table: "Dataset", values: np.ndarray, word: str) -> np.ndarray:
    """Grey levels 0..1 through a VOI table (PS3.3 C.11.2.1.1).

    Not pydicom's `apply_voi`: version 3.0 wraps around in a table with 8 bits and over 256 entries.
    """
    count, first, bits = (int(value) for value in table.LUTDescriptor)
    count = count or 2**16
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, word if len(data) >= 2 * count else "u1", count)
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return np.asarray(data)[index] / (2**bits - 1)


def window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Window grey levels to 0..1 (PS3.3 C.11.2.1.2: LINEAR, LINEAR_EXACT or SIGMOID).

    Raises:
        ValueError: a width out of range or an unknown function.
    """
    least = 1 if function == "LINEAR" else 0
    if not (width >= least and width > 0):
        raise ValueError(f"window width {width} is too small")
    values = values.astype(np.float64)
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    raise ValueError(f"unknown VOI LUT function {function}")


def _stretch(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Scale linearly so that the valid pixels span 0..1; flat films and what is no number are 0."""
    finite = np.isfinite(values)
    chosen = finite if valid is None or not (valid & finite).any() else valid & finite
    if not chosen.any():
        return np.zeros_like(values)
    low, high = float(values[chosen].min()), float(values[chosen].max())
    if math.isclose(low, high):
        return np.zeros_like(values)
    return np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)


def _to_bytes(shown: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
