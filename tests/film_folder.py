"""Folders of films with a landmark table."""

import csv

import numpy as np
from dicom_files import dicom
from PIL import Image

from hpc_hipgen.radiograph.geometry import Hip, Landmarks

PROPORTIONS = {"train": 219, "validation": 31, "test": 84}
LANDMARKS = Landmarks(Hip(100, 120, 20, 95, 95), Hip(260, 126, 20, 266, 99))


def film_folder(folder, count=2, **columns):
    """A folder of noise films that share their landmarks; returns the rows of its table."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (300, 360), np.uint8)).save(folder / f"{n}.png")
        for side in ("image_left", "image_right"):
            rows.append({"image": f"{n}.png", "side": side, **vars(getattr(LANDMARKS, side))})
            rows[-1].update({name: values[n] for name, values in columns.items()})
    write_table(folder, rows)
    return rows


def as_dicom(folder, rows, name, **attributes):
    """The first film once more as DICOM, but for a corner; returns the rows of both."""
    image = np.array(Image.open(folder / "0.png"))
    image[0, 0] ^= 1  # else it would be the same film of another dog
    dicom(image, **attributes).save_as(folder / name, enforce_file_format=True)
    return [*rows, *({**row, "image": name} for row in rows if row["image"] == "0.png")]


def write_table(folder, rows):
    with (folder / "landmarks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
