"""Drawn films as DICOM files that nobody can take for a patient's.

The SOP class is Secondary Capture (PS3.3 A.8.1): a Digital X-Ray image must say how it was exposed
and detected, and a drawn film was neither. Conversion type SYN and Synthetic Data YES say what it
is, in codes; the derivation description and the image comments say it to people. No attribute
comes from a film or its owner: names and ids are made up, dates are empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

PRIVATE_GROUP, PRIVATE_CREATOR = 0x0011, "HPC_HIPGEN"
PRIVATE = {"asked_left": 1, "asked_right": 2, "measured_left": 3, "measured_right": 4}
"""Elements of the private block, FD, degrees; the patient's sides. One not measured is absent."""

EMPTY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
    "PatientBirthDate", "PatientSex", "PatientSexNeutered", "PatientBreedDescription",
    "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson",
    "ResponsibleOrganization",
)  # fmt: skip
"""What the standard asks for (type 2) and a drawn film has not."""


@dataclass(frozen=True)
class DrawnFilm:
    """A drawn film and what is known of it."""

    image: np.ndarray  # (h, w) uint8, black is air
    prompt: str
    angles: Mapping[str, float]  # by the names of PRIVATE, degrees
    title: str  # what drew it, e.g. "LLCM, 4 steps"
    run: str  # names the run: the same for all its films
    row: str
    index: int  # of the caption
    series: int  # number of the row within the run
    number: int = 1  # of the drawing, of those for its caption


def secondary_capture(film: DrawnFilm) -> Dataset:
    """The DICOM data set of a drawn film; the same film gives the same bytes and UIDs."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "SYN"
    dataset.Modality = "OT"  # no X-ray was taken
    dataset.Manufacturer = dataset.SecondaryCaptureDeviceManufacturer = "hpc_hipgen"
    for keyword in EMPTY:
        setattr(dataset, keyword, [] if keyword.endswith("Sequence") else "")
    dataset.PatientName = "SYNTHETIC^HPC_HIPGEN"
    dataset.PatientID = f"SYNTHETIC-{film.run[:8]}-{film.index:06d}"
    dataset.PatientSpeciesDescription = "Canis lupus familiaris"
    dataset.PatientSpeciesCodeSequence = [_code(codes.SCT.CanisLupusFamiliaris)]
    dataset.AnatomicalOrientationType = "QUADRUPED"
    dataset.PatientOrientation = ["LE", "CD"]  # ventrodorsal: the left side is at the right
    dataset.BodyPartExamined = "PELVIS"
    dataset.DerivationDescription = (
        f"Synthetic image: drawn from a caption by a generative model ({film.title}). "
        "It shows no animal. Not for diagnosis."
    )
    dataset.StudyDescription = "hpc_hipgen, synthetic"
    dataset.SeriesDescription = f"synthetic: {film.title}"[:64]
    dataset.SeriesNumber, dataset.InstanceNumber = film.series, film.number
    _add_angles(dataset, film)
    _add_pixels(dataset, film.image)
    _add_uids(dataset, film)
    return dataset


def _code(concept: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = concept.value, concept.scheme_designator
    item.CodeMeaning = concept.meaning
    return item


def _add_angles(dataset: Dataset, film: DrawnFilm) -> None:
    """Asked and measured angles: as JSON for people, as numbers in a private block."""
    found = {name: round(float(film.angles[name]), 4) for name in PRIVATE if name in film.angles}
    words = {"synthetic": True, "caption": film.prompt, "norberg_angles_degrees": found}
    dataset.ImageComments = json.dumps(words)
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    for name, value in found.items():
        block.add_new(PRIVATE[name], "FD", value)


def _add_pixels(dataset: Dataset, image: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.WindowCenter, dataset.WindowWidth = 128, 256  # grey levels as they are (PS3.3 C.11.2)
    data = np.ascontiguousarray(image, np.uint8).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)  # of even length


def _add_uids(dataset: Dataset, film: DrawnFilm) -> None:
    """A caption of a run is a patient with one study; a row is a series of it.

    A film that was measured meanwhile is another instance: its file says more.
    """
    content = dataset.PixelData.hex() + dataset.ImageComments
    names = ["hpc_hipgen", film.run, str(film.index), film.row, content]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = (
        generate_uid(entropy_srcs=names[:count]) for count in (3, 4, 5)
    )


def write_dicom(path: Path, film: DrawnFilm) -> None:
    """Writes a film and reads it again.

    Raises:
        ValueError: what was read is not what was written.
    """
    dataset = secondary_capture(film)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    found = dcmread(path)
    if found != dataset or not np.array_equal(found.pixel_array, film.image):
        raise ValueError(f"{path}: reads back as something else than was written")
