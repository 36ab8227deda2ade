"""Layouts: every reader gives back the same views, and nothing is stored twice."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from hpc_hipgen.radiograph.captions import caption
from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.layouts import (
    COLUMNS,
    read_imagefolder,
    read_manifest,
    read_pairs,
    read_shards,
    write_layouts,
)


def fill(folder):
    """Six training views of three films and two test views; returns the manifest's rows."""
    rng = np.random.default_rng(0)
    rows = []
    for split, films, views in (("train", 3, 2), ("test", 2, 1)):
        (folder / "images" / split).mkdir(parents=True)
        for film in range(films):
            for view in range(views):
                landmarks = Landmarks(
                    Hip(20 + film, 40.25, 7, 18, 33 - view), Hip(80, 41, 8, 82.125, 32)
                )
                angles = landmarks.norberg_angles()
                name = f"{split}-{film:05d}-v{view:02d}"
                file = f"images/{split}/{name}.png"
                image = rng.integers(0, 256, (64, 96), dtype=np.uint8)
                Image.fromarray(image).save(folder / file)
                prompt_class = film % 2 + 1
                row = {"id": name, "film": f"film-{film}", "dog": f"dog-{film}", "split": split}
                row |= {"view": view, "flipped": 0, "file": file, "width": 96, "height": 64}
                row |= {**landmarks.flat(), "prompt_class": prompt_class}
                row |= {"patient_left": round(angles.patient_left, 3)}
                row |= {"patient_right": round(angles.patient_right, 3)}
                row |= {"caption": caption(angles, prompt_class)}
                rows.append(row)
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = fill(folder)
    write_layouts(folder, rows[::-1])  # in any order
    return folder, rows


def same(one, two):
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name), err_msg=name)


@pytest.mark.parametrize("split", ["train", "test"])
def test_three_readers_one_answer(data, split):
    folder, rows = data
    films = read_manifest(folder, split)
    same(films, read_imagefolder(folder / "layouts/imagefolder" / split))
    same(films, read_shards(folder / "layouts/shards", split))
    if split == "train":
        same(films, read_pairs(folder))
    chosen = [row for row in rows if row["split"] == split]
    assert films.ids == [row["id"] for row in chosen]
    assert films.captions == [row["caption"] for row in chosen]
    assert films.film == [row["film"] for row in chosen]
    assert films.images.shape == (len(chosen), 64, 96) and films.images.dtype == np.uint8
    assert films.landmarks.dtype == np.float64
    for landmarks, left, right in zip(
        films.landmarks, films.patient_left, films.patient_right, strict=True
    ):
        angles = Landmarks.from_array(landmarks).norberg_angles()
        assert (left, right) == pytest.approx((angles.patient_left, angles.patient_right), abs=6e-4)


def test_the_manifest_has_the_columns_that_others_rely_on(data):
    header = (data[0] / "manifest.csv").read_text().splitlines()[0].split(",")
    assert tuple(header) == COLUMNS
    assert header[:7] == ["id", "film", "dog", "split", "view", "flipped", "file"]
    assert header[-4:] == ["patient_left", "patient_right", "prompt_class", "caption"]


def test_nominal_views_only(data):
    films = read_manifest(data[0], "train", nominal_only=True)
    assert films.ids == ["train-00000-v00", "train-00001-v00", "train-00002-v00"]


def test_class_folders_and_pairs_hold_the_training_split(data):
    folder, rows = data
    train = {row["id"]: row for row in rows if row["split"] == "train"}
    pairs = folder / "layouts/pairs"
    assert {path.stem for path in pairs.glob("*.png")} == set(train)
    for name, row in train.items():
        assert (pairs / f"{name}.txt").read_text().strip() == row["caption"]
        beside = folder / f"layouts/classes/class_{row['prompt_class']}/{name}"
        assert beside.with_suffix(".png").exists() and beside.with_suffix(".txt").exists()
    assert len(list((folder / "layouts/classes").rglob("*.png"))) == len(train)


def test_images_are_stored_once(data):
    folder, _ = data
    first = (folder / "images/train/train-00000-v00.png").stat()
    assert (folder / "layouts/pairs/train-00000-v00.png").stat().st_ino == first.st_ino
    assert first.st_nlink == 4


def test_one_tar_per_class_with_image_text_and_json(data):
    shards = data[0] / "layouts/shards"
    assert sorted(path.name for path in shards.iterdir()) == [
        "test-class_1-000000.tar",
        "test-class_2-000000.tar",
        "test.parquet",
        "train-class_1-000000.tar",
        "train-class_2-000000.tar",
        "train.parquet",
    ]
    with tarfile.open(shards / "train-class_2-000000.tar") as tar:
        names = tar.getnames()
        stored = json.load(tar.extractfile("train-00001-v01.json"))
    assert sorted(names) == sorted(
        f"train-00001-v{view:02d}.{suffix}" for view in (0, 1) for suffix in ("png", "txt", "json")
    )
    assert stored["film"] == "film-1" and stored["image_left_head_x"] == 21


def test_the_same_views_give_the_same_bytes(data, tmp_path):
    write_layouts(tmp_path, fill(tmp_path))
    for path in sorted(data[0].rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(data[0])).read_bytes(), path


def test_an_image_is_copied_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    write_layouts(tmp_path, fill(tmp_path))
    assert len(read_imagefolder(tmp_path / "layouts/imagefolder/train")) == 6


def test_missing_data_is_named(tmp_path, data):
    with pytest.raises(ValueError, match=r"manifest\.csv: no such file"):
        read_manifest(tmp_path, "train")
    with pytest.raises(ValueError, match="no view in split validation"):
        read_manifest(data[0], "validation")
    with pytest.raises(ValueError, match=r"no shard validation-class_\*\.tar"):
        read_shards(data[0] / "layouts/shards", "validation")


def test_a_pair_is_an_image_and_a_text(tmp_path):
    write_layouts(tmp_path, fill(tmp_path))
    pairs = tmp_path / "layouts" / "pairs"
    first = sorted(pairs.glob("*.txt"))[0]
    first.write_text("words of my own\n")
    assert read_pairs(tmp_path).captions[0] == "words of my own"
    first.unlink()
    with pytest.raises(ValueError, match=f"{first.name}: no such file"):
        read_pairs(tmp_path)
    first.with_suffix(".png").rename(pairs / "stranger.png")
    with pytest.raises(ValueError, match=r"stranger\.png: has no row in .*manifest\.csv"):
        read_pairs(tmp_path)
    for image in pairs.glob("*.png"):
        image.unlink()
    with pytest.raises(ValueError, match=r"pairs: no image \*\.png"):
        read_pairs(tmp_path)
