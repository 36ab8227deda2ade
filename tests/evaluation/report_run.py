"""A run folder of random images with a stub in place of the ruler and of the feature network."""

import io
import json
import math
import tarfile

import numpy as np
from PIL import Image

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rulers.ruler import Measurement
from hpc_hipgen.run import Run

FILMS, SIZE = 12, 16
TRAINING = {"images": 64, "batch": 16, "lr": 0.001}


def experiment(**more):
    tree = {
        "name": "tiny",
        "data": {"train": 64, "test": FILMS, "resolution": 32, "views": 1},
        "ruler": {"training": TRAINING},
        "evaluation": {"permutations": 50},
        **more,
    }
    return parse_experiment(tree, "test")


GENERATORS = {
    "autoencoder": {"training": TRAINING},
    "stable_diffusion": {"training": TRAINING},
    "llcm": {"training": TRAINING},
    "sampling": {"llcm_steps": [1, 4]},
}


def asked(film):
    return 90.0 + film, 100.0 + film / 2  # patient's left, right


def write_shard(path, row, films, rng, drop=(), images=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for film in films:
            image = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
            image = image if images is None else images[film].copy()
            image[0, 0] = film  # the stub ruler below reads it
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            left, right = asked(film)
            info = {
                "row": row, "index": film, "seed": film, "film": f"film-{film:02d}",
                "prompt_class": 1 + film % 2, "asked_left": left, "asked_right": right,
            }  # fmt: skip
            info = {k: v for k, v in info.items() if k not in drop}
            parts = {"png": png.getvalue(), "txt": b"a film", "json": json.dumps(info).encode()}
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{row}-{film:05d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


class StubRuler:
    """Says the film's left angle plus one degree, the right one minus two; refuses film 3."""

    def measure(self, images, batch=64):
        answers = []
        for image in images:
            film = int(image[0, 0])
            left, right = asked(film)
            marks = np.array([[4, 8, 2, 3, 6], [12, 8, 2, 13, 6]], dtype=float)
            if film == 3:
                answers.append(Measurement(math.nan, math.nan, 0.01, marks, "no clear landmarks"))
            else:  # the patient's left is at the image's right
                answers.append(Measurement(right - 2, left + 1, 0.9, marks))
        return answers


class StubBackbone:
    name = "EfficientNet-Lite0"

    def to(self, device):
        return self

    def extract(self, images, batch, label=None):
        return images.reshape(len(images), -1)[:, 1:9].astype(np.float32) / 64


def stub_films(data, split, nominal_only=False):
    """Random images in place of a data folder."""
    n = {"train": 20, "validation": 12}[split]
    return Films(
        ids=[f"{split}-{i}" for i in range(n)],
        images=np.random.default_rng(n).integers(0, 256, (n, SIZE, SIZE), dtype=np.uint8),
        landmarks=np.zeros((n, 2, 5)),
        captions=["a film"] * n,
        patient_left=np.zeros(n),
        patient_right=np.zeros(n),
        prompt_class=np.arange(n) % 2 + 1,
        film=[f"film-{split}-{i}" for i in range(n)],
    )


def make_run(folder, rows=None, **more):
    run = Run.create(folder, experiment(**more))
    rng = np.random.default_rng(0)
    for row in rows or run.rows():
        half = FILMS // 2
        for number, films in enumerate((range(half), range(half, FILMS))):
            path = run.path("samples", row, f"shard-{number:05d}.tar")
            write_shard(path, row, films, rng)
    return run


def plant_copies(run, row):
    """Training films in place of half of a row's images."""
    films = stub_films("", "train")
    run.path("data", "images", "train").mkdir(parents=True)
    for name, image in zip(films.ids, films.images, strict=True):
        Image.fromarray(image).save(run.path("data", "images", "train", f"{name}.png"))
    copies = {film: films.images[film] for film in range(FILMS // 2)}
    path = run.path("samples", row, "shard-00000.tar")
    write_shard(path, row, range(FILMS // 2), np.random.default_rng(1), images=copies)
